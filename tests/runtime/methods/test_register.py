"""Methods of the user's own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.runtime.errors import CheckpointError, ConfigError
from topkast.runtime.methods import METHODS
from topkast.runtime.state.model import sites

Sets = tuple[Tensor, Tensor]


class Counted(topkast.Method):
    """A and B are the largest weights; the method counts the gradients of each unit that it has seen."""

    name = "counted"
    says = "as topkast, and it counts."
    uses = ("bwd", "refresh_every")
    watches = largest_first = True
    seen: Tensor | None = None

    def start(self, state: topkast.SetState, score: Tensor) -> Sets:
        return state.largest(score, state.fwd_per_group), state.largest(score, state.bwd_per_group)

    renew = start

    def see(self, state: topkast.SetState, rows: topkast.Rows) -> None:
        self.seen = self.saved(state)["seen"] + state.gradient_scores(rows)

    def saved(self, state: topkast.SetState) -> dict[str, Tensor]:
        return {"seen": torch.zeros(state.geometry.units) if self.seen is None else self.seen}

    def restore(self, saved: dict[str, Tensor]) -> None:
        self.seen = saved["seen"]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(METHODS)
    topkast.register_method(Counted)
    yield
    METHODS.clear()
    METHODS.update(before)


def made(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 6))
    return topkast.sparsify(model, fwd=0.8, bwd=0.5, method="counted", refresh_every=2, min_size=1, **options)


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(steps):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert any(key.endswith("method_seen") and bool(value.any()) for key, value in states[0].items())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("block", [(1, 1), (2, 3)], ids=str)
def test_gradient_scores(block: tuple[int, int]) -> None:
    model = made(block=block, balanced=False)
    x = torch.randn(8, 12)
    model(x).square().mean().backward()
    plain = topkast.densify(model)
    plain(x).square().mean().backward()
    for name, site in sites(model).items():
        blocks = site.geometry.to_blocks(plain.get_parameter(name).grad)
        wanted = blocks[:, 0].abs() if block == (1, 1) else blocks.square().sum(1)
        torch.testing.assert_close(site.method.saved(site.set_state())["seen"], wanted)


@pytest.mark.parametrize("way", ["save", "state dict", "deepcopy", "pickle"])
def test_tensors_of_a_method_are_kept(tmp_path: Path, way: str) -> None:
    model, again = made(), made()
    train(model)
    if way == "save":
        topkast.save(model, tmp_path / "file")
        topkast.load(again, tmp_path / "file")
    elif way == "state dict":
        again.load_state_dict(model.state_dict())
    else:
        again = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert_same(model, again)
    train(model)
    train(again)
    assert_same(model, again)


def test_a_file_for_inference_needs_no_tensors_of_the_method(tmp_path: Path) -> None:
    model = made()
    train(model)
    topkast.save(model, tmp_path / "file")
    plain = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 6))
    topkast.load(plain, tmp_path / "file", inference=True)
    x = torch.randn(3, 12)
    assert torch.equal(plain(x), model(x))


@pytest.mark.parametrize("inference", [False, True])
def test_a_file_with_an_unknown_method(tmp_path: Path, inference: bool) -> None:
    model = made()
    topkast.save(model, tmp_path / "file")
    plain = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 6))
    del METHODS["counted"]
    with pytest.raises(CheckpointError, match=r"method='counted', which this program does not know; topkast\.register"):
        topkast.load(plain if inference else model, tmp_path / "file", inference=inference)


def test_a_folder_with_an_unknown_method(tmp_path: Path) -> None:
    hub: Any = pytest.importorskip("huggingface_hub")

    class Net(nn.Sequential, hub.PyTorchModelHubMixin):
        def __init__(self) -> None:
            super().__init__(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 6))

    model = topkast.sparsify(Net(), fwd=0.8, bwd=0.5, method="counted", refresh_every=2, min_size=1)
    train(model)
    model.save_pretrained(tmp_path)
    again = topkast.from_pretrained(tmp_path, Net)
    assert_same(model, again)
    del METHODS["counted"]
    with pytest.raises(CheckpointError, match="which this program does not know"):
        topkast.from_pretrained(tmp_path, Net)


class NoSubclass:
    name = "no-subclass"


class Abstract(topkast.Method):
    name, says, uses = "abstract", "", ()


class Nameless(Counted):
    name = None


class Greedy(Counted):
    name, uses = "greedy", ("bwd", "learning_rate")


class OurName(Counted):
    name = "rigl"


class TheSameName(Counted):
    pass


BAD = {
    NoSubclass: "must be a subclass of topkast.Method",
    Abstract: "Abstract does not define renew, start",
    Nameless: "Nameless.name must be a str",
    Greedy: "Greedy.uses has 'learning_rate'; allowed: .*refresh_every",
    OurName: "'rigl' belongs to RigL",
    TheSameName: "'counted' belongs to Counted",
}


@pytest.mark.parametrize("kind", BAD, ids=lambda kind: kind.__name__)
def test_bad_classes(kind: type) -> None:
    before = dict(METHODS)
    with pytest.raises(ConfigError, match=BAD[kind]):
        topkast.register_method(kind)
    assert before == METHODS


def test_an_option_that_it_does_not_use() -> None:
    with pytest.raises(ConfigError, match="method='counted' does not use it"):
        made(stop_exploring_after=3)
    assert topkast.register_method(Counted) is Counted, "again, as in a notebook"
