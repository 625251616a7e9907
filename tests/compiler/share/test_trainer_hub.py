"""``Trainer.push_to_hub`` uploads the sets and a card with the report's table, with a stand-in for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import topkast
from topkast.tests.compiler.share.test_trainer_resume import trainer

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Job:
    """An upload that has ended."""

    def done(self) -> bool:
        return True

    def result(self) -> None: ...


class Hub:
    """In the place of huggingface_hub's API: the files of each uploaded folder."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str, dict[str, bytes]]] = []

    def create_repo(self, *args: Any, **kwargs: Any) -> Any:
        return type("Repository", (), {"repo_id": "somebody/model"})

    def upload_folder(self, folder_path: Any, **kwargs: Any) -> Job:
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir() if path.is_file()}
        self.uploads.append((kwargs["commit_message"], files))
        return Job()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: found)
    return found


def assert_complete(files: dict[str, bytes]) -> None:
    card = files["README.md"].decode()
    assert card.count("## Sparse weights") == 1 and "| `transformer.h.0.mlp.c_fc` | 16×64 |" in card
    assert "topkast.safetensors" in files and "model.safetensors" in files


def test_the_uploaded_card_has_the_table(tmp_path: Path, hub: Hub) -> None:
    run = trainer(tmp_path)
    run.train()
    for message in ("first", "again"):
        run.push_to_hub(message, tags=["mine"])
    assert [message for message, _ in hub.uploads] == ["first", "again"]
    for _, files in hub.uploads:
        assert_complete(files)
        card = files["README.md"].decode()
        assert "- mine" in card and "generated_from_trainer" in card, "Trainer's own card"
        assert "for 6 steps" in card


def test_uploads_during_training_have_the_sets_of_their_checkpoint(tmp_path: Path, hub: Hub) -> None:
    run = trainer(tmp_path)
    run.args.push_to_hub, run.args.hub_strategy = True, transformers.trainer_utils.HubStrategy.EVERY_SAVE
    run.init_hf_repo()
    run.train()
    during = [files for message, files in hub.uploads if message.startswith("Training in progress")]
    assert len(during) == 3
    for step, files in zip((2, 4, 6), during, strict=True):
        assert_complete(files)
        checkpoint = tmp_path / f"checkpoint-{step}"
        for name in ("topkast.safetensors", "model.safetensors"):
            assert files[name] == (checkpoint / name).read_bytes()


def test_a_dense_model_gets_no_section(tmp_path: Path, hub: Hub) -> None:
    run = trainer(tmp_path)
    run.model = topkast.densify(run.model)
    run.push_to_hub()
    ((_, files),) = hub.uploads
    assert "## Sparse weights" not in files["README.md"].decode() and "topkast.safetensors" not in files
