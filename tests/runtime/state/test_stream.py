"""A refresh in host memory of a model on a device: equal to the one in one memory, and nothing is added to the device.

The device is a stand-in (tests/support/standin.py), so that it can be counted what lies on it and when copies are made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.runtime.state.change import streaming as stream
from topkast.runtime.state.content.parts import Change
from topkast.runtime.state.model import sites
from topkast.runtime.state.refresh import renewed
from topkast.runtime.state.site import Site
from topkast.tests.compiler.checkpoint.test_checkpoint import same
from topkast.tests.support.standin import DEVICE, MEMORY, Device, Engine, OnDevice, move


@pytest.fixture
def late() -> bool:
    return True


@pytest.fixture
def engine(late: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    found = Engine(late)
    monkeypatch.setattr(stream, "copies", lambda device: found)
    with Device():
        yield found


def pair(**options: Any) -> tuple[nn.Module, nn.Module]:
    """The same model twice: in host memory, and on the device with its reservoir left behind."""
    dense = nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 36))
    model = topkast.sparsify(dense, 0.8, 0.6, min_size=1, refresh_every=2, reservoir="host", **options)
    twin = copy.deepcopy(model)
    move(twin)
    assert {site.original.device for site in sites(twin).values()} == {DEVICE}
    assert {site.reservoir.device.type for site in sites(twin).values()} == {"cpu"}
    return model, twin


def here(value: Any) -> Any:
    """The same value with every tensor in host memory."""
    if isinstance(value, Tensor):
        return (value.held if isinstance(value, OnDevice) else value).detach().clone()
    if isinstance(value, dict):
        return {key: here(item) for key, item in value.items()}
    return [here(item) for item in value] if isinstance(value, (list, tuple)) else value


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """All that a refresh touches: the model's state, the optimizer's, gradients that wait, the refreshes' record."""
    found = sites(model).values()
    grads = [parameter.grad for parameter in model.parameters()]
    return here([model.state_dict(), optimizer.state_dict(), grads, [(site.churn, site.step) for site in found]])


RULES: dict[str, dict[str, Any]] = {
    "single": {},
    "blocks": {"block": (4, 4), "balanced": True},
    "random": {"explore": "random", "seed": 3},
    "stop": {"stop_exploring_after": 3},
    "background": {"refresh_in_background": True},
    "background, blocks, stop": {"refresh_in_background": True, "block": (3, 5), "stop_exploring_after": 5},
}


@pytest.mark.parametrize("rule, late", [*((rule, True) for rule in RULES), ("single", False), ("background", False)])
def test_equals_the_refresh_in_one_memory(rule: str, engine: Engine) -> None:
    """Bit for bit, over steps of AdamW; the last one's gradient is still there when the sets are chosen again."""
    model, twin = pair(**RULES[rule])
    optimizers = [torch.optim.AdamW(each.parameters(), 0.05) for each in (model, twin)]
    for step in range(8):
        x = torch.randn(7, 40)
        for each, optimizer, batch in zip((model, twin), optimizers, (x, OnDevice(x.clone())), strict=True):
            loss = each(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert same(state(model, optimizers[0]), state(twin, optimizers[1])), f"step {step}"
    topkast.refresh(model)
    topkast.refresh(twin)
    assert same(state(model, optimizers[0]), state(twin, optimizers[1])), "refresh"
    assert len(sites(twin)["0.weight"].churn) >= 3 and {"up", "down"} <= set(engine.log)


def trained() -> nn.Module:
    """A model on the device with gradients and two moments for each value."""
    _, model = pair()
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    model(OnDevice(torch.randn(7, 40))).square().mean().backward()
    optimizer.step()
    model.optimizer = optimizer  # it must outlive this function: sites know it weakly
    return model


def held(site: Site) -> int:
    return sum(tensor.nbytes for tensor in site.parts().tensors())


def test_adds_nothing_to_the_device(engine: Engine) -> None:
    model = trained()
    before = MEMORY.now
    MEMORY.reset()
    topkast.refresh(model)
    assert MEMORY.most == MEMORY.now == before > 0
    # In host memory there is room for what is held of three layers, and no more.
    assert 0 < engine.pinned.most <= sum(sorted(map(held, sites(model).values()))[-3:])
    assert engine.pinned.now == 0


def test_the_next_layer_comes_down_while_one_is_worked_on(engine: Engine) -> None:
    """And the last one goes up behind it, in one order: no layer waits for what is not its own."""
    model = trained()
    engine.log.clear()
    names = {id(site): name for name, site in sites(model).items()}

    def change(site: Site, parts: stream.Parts) -> Change:
        engine.log.append(names[id(site)])
        engine.queue.append(lambda: None)  # it has its place in the log, and is nothing to make
        return renewed(site, parts)

    with torch.no_grad():
        stream.at_home(sites(model).values(), change)
    runs = [what for i, what in enumerate(engine.log) if i == 0 or engine.log[i - 1] != what]
    assert runs == ["down", "0.weight", "up", "down", "2.weight", "up", "4.weight", "up", "finish"]
    assert engine.log.count("down") == engine.log.count("up") == 3 * (5 + 3)


def test_a_refresh_that_fails_leaves_no_copy_behind(engine: Engine) -> None:
    """The layers before it are whole, the others as they were."""
    model = trained()
    before = state(model, model.optimizer)

    def change(site: Site, parts: stream.Parts) -> Change:
        if site.name == "2.weight":
            parts.values.zero_()
            raise ValueError("no")
        return renewed(site, parts)

    with torch.no_grad(), pytest.raises(ValueError, match="no"):
        stream.at_home(sites(model).values(), change)
    assert engine.log[-1] == "finish" and not engine.queue
    after = state(model, model.optimizer)
    for name in ("2.weight", "4.weight"):
        prefix = name.replace("weight", "sparse_state.weight.")
        for key in (key for key in before[0] if key.startswith((prefix, name))):
            assert before[0][key].equal(after[0][key]), key
    assert [len(site.churn) for site in sites(model).values()] == [1, 0, 0]


@pytest.mark.parametrize("kind", [torch.device("cuda:0"), torch.device("xpu")])
def test_which_copies(kind: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream where there are streams, else one after the other."""
    monkeypatch.setattr(stream, "OnStream", lambda device: device)
    found = stream.copies(kind)
    assert found == kind if kind.type == "cuda" else isinstance(found, stream.InTurn)


def test_copies_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "copies", lambda device: stream.InTurn())
    with Device():
        model, twin = pair()
        optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in (model, twin)]
        topkast.refresh(model)
        topkast.refresh(twin)
        assert same(state(model, optimizers[0]), state(twin, optimizers[1]))
