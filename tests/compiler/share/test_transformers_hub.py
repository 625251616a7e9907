"""``push_to_hub`` of transformers: the sets and the card are in the commit, with a stand-in for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import topkast
from topkast.tests.compiler.share.test_transformers_folder import trained

transformers: Any = pytest.importorskip("transformers")


class Hub:
    """In the place of huggingface_hub's API: what a commit uploads, and the card that the repository has."""

    def __init__(self) -> None:
        self.commits: list[dict[str, bytes]] = []
        self.card: str | None = None

    def create_repo(self, *args: Any, **kwargs: Any) -> Any:
        return type("Repository", (), {"repo_id": "somebody/model"})

    def create_commit(self, repo_id: str, operations: Any, **kwargs: Any) -> None:
        self.commits.append({one.path_in_repo: Path(one.path_or_fileobj).read_bytes() for one in operations})

    def load_card(self, *args: Any, **kwargs: Any) -> Any:
        if self.card is None:
            raise transformers.utils.hub.EntryNotFoundError("no card")
        return transformers.utils.hub.ModelCard(self.card)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found, module = Hub(), transformers.utils.hub
    monkeypatch.setattr(module, "hf_api", lambda: found)
    monkeypatch.setattr(transformers.modeling_utils, "hf_api", lambda: found)
    monkeypatch.setattr(module.ModelCard, "load", found.load_card)
    return found


def test_pushing_uploads_the_sets_and_the_card_with_the_table(tmp_path: Path, hub: Hub) -> None:
    model = trained()
    model.push_to_hub("somebody/model", tags=["mine"])
    model.save_pretrained(tmp_path, push_to_hub=True)
    assert len(hub.commits) == 2
    for files in hub.commits:
        assert {"model.safetensors", "topkast.safetensors", "README.md"} <= set(files), set(files)
        card = files["README.md"].decode()
        assert "library_name: transformers" in card and "automatically generated" in card
        assert card.count("## Sparse weights") == 1 and "| `2 × transformer.h.*.mlp.c_fc` | 32×128 |" in card
    assert "- mine" in hub.commits[0]["README.md"].decode()
    assert (tmp_path / "README.md").read_text().count("## Sparse weights") == 1


def test_pushing_again_renews_the_section_and_leaves_cards_of_the_users_own(hub: Hub) -> None:
    model = trained()
    hub.card = "---\ntags: []\n---\nMine.\n\n## Sparse weights\n\nTrained for 1 step.\n\n## Licence\n\nFree.\n"
    model.push_to_hub("somebody/model")
    card = hub.commits[-1]["README.md"].decode()
    assert "Mine." in card and "Trained for 1 step" not in card and card.count("## Sparse weights") == 1
    assert card.index("| `2 × transformer.h.*.mlp.c_fc`") < card.index("## Licence\n\nFree.")
    hub.card = "---\ntags: []\n---\nOnly mine.\n"
    model.push_to_hub("somebody/model")
    assert "Sparse weights" not in hub.commits[-1]["README.md"].decode()
    topkast.densify(model).push_to_hub("somebody/model")
    assert "topkast.safetensors" not in hub.commits[-1]
