"""Folders of huggingface_hub's mixin for models of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.runtime.errors import CheckpointError
from topkast.runtime.state.model import sites

hub: Any = pytest.importorskip("huggingface_hub")


class Net(nn.Module, hub.PyTorchModelHubMixin, library_name="nets", tags=["mine"]):  # type: ignore[call-arg]
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, width), nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.into(x).relu())


def train(model: nn.Module, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        model(torch.randn(8, 16, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def trained() -> Any:
    torch.manual_seed(0)
    model = topkast.sparsify(Net(width=48), fwd=0.8, bwd=0.5, refresh_every=2, min_size=1)
    train(model, 3)
    return model


def test_round_trip(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    plain = Net.from_pretrained(tmp_path)
    assert type(plain.into) is nn.Linear
    x = torch.randn(4, 16)
    assert torch.equal(plain(x), model(x))
    again = topkast.from_pretrained(tmp_path, Net)
    for _ in range(2):
        assert topkast.report(again).config == topkast.report(model).config
        state = again.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert all(torch.equal(site.theta(), sites(model)[name].theta()) for name, site in sites(again).items())
        train(model, 4)
        train(again.train(), 4)


def test_the_card_keeps_the_mixins_own(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "- mine" in card and "library_name: nets" in card, "the mixin's card"
    assert "## Sparse weights" in card and "| 48×16 |" in card


def test_pushing_saves_the_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[str] = []

    class Api:
        def __init__(self, **kwargs: Any) -> None: ...

        def create_repo(self, **kwargs: Any) -> Any:
            return type("Repository", (), {"repo_id": "somebody/net"})()

        def upload_folder(self, folder_path: Any, **kwargs: Any) -> str:
            uploaded.extend(sorted(path.name for path in Path(folder_path).iterdir()))
            return "address"

    monkeypatch.setattr(hub.hub_mixin, "HfApi", Api)
    assert trained().push_to_hub("somebody/net") == "address"
    assert uploaded == ["README.md", "config.json", "model.safetensors", "topkast.safetensors"]


def test_a_model_of_another_width(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    wide = Net(width=64)
    with pytest.raises(CheckpointError, match=r"into.weight: \[48, 16\] in .*\[64, 16\] in the model"):
        topkast.from_pretrained(tmp_path, lambda folder: wide)
    other = Net(width=48)
    with pytest.raises(CheckpointError, match="is another weight there"):
        topkast.from_pretrained(tmp_path, lambda folder: other)
