"""A whole refresh by Triton kernels, in the interpreter: equal to the refresh of the CPU, and nothing is read back."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import topkast
from topkast.runtime.state.change import streaming
from topkast.runtime.state.change.uploading import upload
from topkast.runtime.state.content.parts import Change, Parts
from topkast.runtime.state.model import sites
from topkast.runtime.state.refresh import renewed
from topkast.runtime.state.site import Site
from topkast.tests.compiler.checkpoint.test_checkpoint import same
from topkast.tests.support.interpreted import INTERPRETED
from topkast.tools.gpu.launches import refreshes

pytestmark = INTERPRETED

RULES: dict[str, dict[str, Any]] = {
    "single": {},
    "blocks": {"block": (16, 1)},
    "wide blocks, B = A": {"block": (4, 8), "bwd": 0.8},
    "all of B": {"bwd": 0.0},
    "balanced, the end of exploration": {"block": (1, 3), "balanced": True, "stop_exploring_after": 1},
    "a method that prunes": {"method": "gmp", "bwd": None, "stop_exploring_after": 9},
    "a method that grows": {"method": "set", "bwd": None},
}


def trained(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after a step of AdamW, with the gradient of the step after it."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(20, 12), nn.GELU(), nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 33)).to(dtype)
    model = topkast.sparsify(dense, 0.8, min_size=1, refresh_every=9, **{"bwd": 0.6, "balanced": False, **options})
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.step()
        model(torch.randn(7, 20, dtype=dtype)).square().mean().backward()
    return model, optimizer


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """All that a refresh changes."""
    grads = [parameter.grad for parameter in model.parameters()]
    churn = [site.churn for site in sites(model).values()]
    return [dict(model.state_dict()), copy.deepcopy(optimizer.state_dict()), grads, churn]


def in_a(model: nn.Module) -> int:
    """The number of units in A of all weights."""
    return sum(int((site.row_fwd - site.row_ptr[:-1]).sum()) for site in sites(model).values())


@pytest.mark.parametrize("rule, dtype", [
    *itertools.product(["single", "blocks"], [torch.float32]), ("all of B", torch.bfloat16),
    *(pytest.param(*one, marks=pytest.mark.long) for one in itertools.product(RULES, (torch.float32, torch.bfloat16))),
])  # fmt: skip
def test_equals_the_refresh_of_the_cpu(rule: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """θ, sets, optimizer state, gradients and churn, bit for bit."""
    found = []
    for kernel in ("dense", "triton"):
        model, optimizer = trained(dtype, **RULES[rule])
        sizes = in_a(model)
        monkeypatch.setenv("TOPKAST_KERNEL", kernel)
        topkast.refresh(model)
        monkeypatch.setenv("TOPKAST_KERNEL", "dense")
        found.append(state(model, optimizer))
    # Gradual pruning takes nothing new into its sets.
    assert same(*found) and (in_a(model) < sizes or any(share for site in found[0][3] for share in site[-1][1:]))


class Reads(TorchDispatchMode):
    """The names of operators in which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if refreshes.reads(func, args, kwargs or {}):
            self.found.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def reads_in(work: Callable[[], Any]) -> list[str]:
    with Reads() as mode:
        work()
    return mode.found


@pytest.mark.parametrize("rule", ["single", "a method that grows"])
def test_the_host_reads_nothing_back(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers are requested one after the other, whatever the device has done so far. The plain code reads sizes."""
    model, _ = trained(**RULES[rule])
    monkeypatch.setenv("TOPKAST_KERNEL", "triton")
    assert reads_in(lambda: topkast.refresh(model)) == []
    monkeypatch.setenv("TOPKAST_KERNEL", "dense")
    monkeypatch.setattr("topkast.runtime.native.theta.library", lambda: None)
    assert {"_local_scalar_dense", "index"} <= set(reads_in(lambda: topkast.refresh(model)))


class Late:
    """Copies between host memory and a device that are made only when somebody waits for them.

    Args:
        reservoirs: the host's memory; all other tensors are the device's.
    """

    def __init__(self, reservoirs: list[Tensor]) -> None:
        self.host = {tensor.data_ptr() for tensor in reservoirs}
        self.queue: list[Callable[[], Any]] = []
        self.made = 0
        self.log: list[str] = []
        self.alive: list[weakref.ref[Tensor]] = []
        self.most = 0  # the largest number of reservoirs that were on the device at the same time

    def _request(self, what: str, copied: Callable[[], Any]) -> int:
        self.log.append(what)
        self.queue.append(copied)
        return self.made + len(self.queue)

    def _count(self, tensor: Tensor) -> None:
        self.alive = [one for one in self.alive if one() is not None] + [weakref.ref(tensor)]
        self.most = max(self.most, len(self.alive))

    def up(self, source: Tensor) -> tuple[Tensor, int]:
        assert source.data_ptr() in self.host
        room = torch.full_like(source, 77)
        self._count(room)
        return room, self._request("up", lambda: room.copy_(source))

    def copy(self, target: Tensor, source: Tensor) -> None:
        if target.data_ptr() not in self.host:
            target.copy_(source)
            return
        self._count(source)
        held = weakref.ref(source)

        def down() -> None:
            kept = held()
            assert kept is not None, "its memory was given back before it was copied"
            target.copy_(kept)

        self._request("down", down)

    def down_mark(self) -> int:
        return self.made + len(self.queue)

    def after(self, mark: int) -> None:
        while self.made < mark:
            self.queue.pop(0)()
            self.made += 1

    def finish(self) -> None:
        self.log.append("finish")
        self.after(self.made + len(self.queue))


def streamed(model: nn.Module) -> tuple[list[Site], Late]:
    found: list[Site] = list(sites(model).values())
    return found, Late([site.reservoir for site in found])


def test_a_reservoir_comes_up_and_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one layer is worked on, the next comes up and the last goes back; nothing is read before it is there."""
    (model, optimizer), (plain, its) = (trained(reservoir="host") for _ in range(2))
    topkast.refresh(plain)
    found, roads = streamed(model)
    monkeypatch.setenv("TOPKAST_KERNEL", "triton")

    def change(site: Site, parts: Parts) -> Change:
        roads.log.append(site.name)
        return renewed(site, parts)

    with torch.no_grad():
        assert upload(found, change, roads) == []
    assert roads.log == ["up", "up", "0.weight", "down", "up", "2.weight", "down", "4.weight", "down", "finish"]
    assert roads.most <= 4  # the next layer's, this layer's old and new, and the last layer's
    assert same(state(model, optimizer), state(plain, its))


@pytest.mark.parametrize("where", ["0.weight", "2.weight", "4.weight"])
def test_too_little_memory(where: str) -> None:
    """The sites that fit are whole, the others are as they were and are returned."""
    model, _ = trained(reservoir="host")
    found, roads = streamed(model)
    before = copy.deepcopy(model.state_dict())

    def change(site: Site, parts: Parts) -> Change:
        if site.name == where:
            raise torch.OutOfMemoryError("no")
        return renewed(site, parts)

    names = [site.name for site in found]
    with torch.no_grad():
        left = upload(found, change, roads)
    assert [site.name for site in left] == names[names.index(where) :] and not roads.queue
    assert [len(site.churn) for site in found] == [int(site not in left) for site in found]
    for name in (site.name for site in left):
        prefix = name.replace("weight", "sparse_state.weight.")
        for key, tensor in model.state_dict().items():
            assert not key.startswith((prefix, name)) or tensor.equal(before[key]), key


def test_which_sites_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with values on a GPU and a reservoir in host memory, unless a thread chooses their sets. The host chooses
    for those that do not fit, with a warning."""
    monkeypatch.setattr(streaming, "runs_on", lambda device: True)
    for options, expected in (
        ({"reservoir": "host"}, True),
        ({"reservoir": "disk"}, False),
        ({"reservoir": "host", "refresh_in_background": True}, False),
    ):
        (model, _) = trained(**options)
        assert {streaming.comes_up(site) for site in sites(model).values()} == {expected}
    monkeypatch.setattr(streaming, "runs_on", lambda device: False)
    model, _ = trained(reservoir="host")
    assert not any(map(streaming.comes_up, sites(model).values()))
    given: list[str] = []

    def none_fits(group: list[Site], *_: Any) -> list[Site]:
        given.extend(site.name for site in group)
        return group

    monkeypatch.setattr(streaming, "comes_up", lambda site: True)
    monkeypatch.setattr(streaming, "upload", none_fits)
    monkeypatch.setattr(streaming, "roads", lambda device: None)
    monkeypatch.setattr(Site, "home", torch.device("meta"))  # not the device of the values
    with torch.no_grad(), pytest.warns(UserWarning, match="too little memory for the dense 0.weight"):
        streaming.at_home(sites(model).values(), lambda site, parts: Change(fields={"refreshed_at": 7}))
    assert given == ["0.weight", "2.weight", "4.weight"]
    assert [site.refreshed_at for site in sites(model).values()] == [7, 7, 7]
