"""The decay of B \\ A on a GPU, in the interpreter: the numbers of plain PyTorch, in two launches for all weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import topkast
from topkast.runtime.kernels import explored
from topkast.runtime.state.model import sites
from topkast.runtime.training.exploration_decay import prepare_decay
from topkast.runtime.triton import scaling
from topkast.tests.support.interpreted import INTERPRETED

pytestmark = INTERPRETED
# ATen calls that launch no kernel: they make views, or take memory.
VIEWS = {"view", "unsqueeze", "expand", "slice", "select", "detach", "alias", "permute", "transpose", "t", "as_strided",
         "squeeze", "empty", "new_empty", "empty_like", "lift_fresh", "reshape", "_unsafe_view", "diff"}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts ATen calls that compute; Triton's launches are added by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def held_sites(block: tuple[int, int], dtype: torch.dtype, decay: float | None) -> list[Any]:
    torch.manual_seed(0)
    made = [nn.Linear(40, 24), nn.Linear(24, 56), nn.Linear(70, 33)]
    options = {"block": block, "min_size": 1, "exploration_decay": decay}
    models = [topkast.sparsify(one.to(dtype), 0.8, 0.5, **options) for one in made]
    return [site for model in models for site in sites(model).values()]


def make_decay(held: list[Any], lr: Any) -> None:
    """A step's decay. Another call of what makes it changes nothing."""
    work = prepare_decay([(site, lr) for site in held])
    for part in [*work, *work]:
        part()


# Not bfloat16: the interpreter does not round to it as a GPU does. The emulator's sweep compares it.
@pytest.mark.parametrize("block, decay, lr, dtype", [
    ((1, 1), None, 1e-3, torch.float32), ((8, 8), None, torch.tensor(1e-3), torch.float16),
    ((4, 1), 0.5, 0.1, torch.float64), ((4, 1), 8.0, 0.1, torch.float32),
])  # fmt: skip
def test_it_equals_plain_pytorch(block, decay, lr, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: A, B \\ A and unused slots, whatever the dtype, the block, and the kind of decay and rate."""
    found = {}
    monkeypatch.setattr(explored, "_native", lambda values: False)
    monkeypatch.setattr(scaling, "PARTS", 4)  # the interpreter runs programs one after the other
    for kernel in ("dense", "triton"):
        monkeypatch.setenv("TOPKAST_KERNEL", "dense")
        held = held_sites(block, dtype, decay)
        monkeypatch.setenv("TOPKAST_KERNEL", kernel)
        assert all(explored.together(site.stored()[0]) == (kernel == "triton") for site in held)
        with torch.no_grad():
            make_decay(held, lr)
        found[kernel] = [site.stored()[0].clone() for site in held]
    assert all(map(torch.equal, found["triton"], found["dense"]))


class Kernel:
    """Counts launches in the place of a kernel: the interpreter itself calls ATen."""

    def __init__(self) -> None:
        self.launches = 0

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches += 1

        return launch


def test_launches_do_not_grow_with_the_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, each site took a launch for each of dozens of ATen calls."""
    monkeypatch.setattr(explored, "_native", lambda values: False)
    kernels = [Kernel(), Kernel()]
    monkeypatch.setattr("topkast.runtime.triton.scaling_kernels.squares_kernel", kernels[0])
    monkeypatch.setattr("topkast.runtime.triton.scaling_kernels.scale_kernel", kernels[1])
    held, counted = held_sites((8, 8), torch.float32, None), {}
    for kernel, number in (("dense", 1), ("dense", 3), ("triton", 1), ("triton", 3)):
        monkeypatch.setenv("TOPKAST_KERNEL", kernel)
        with torch.no_grad():
            make_decay(held[:number], 1e-3)  # the tables are copied to the device once
            for one in kernels:
                one.launches = 0
            with Launches() as seen:
                make_decay(held[:number], 1e-3)
        counted[kernel, number] = seen.count.total() + sum(one.launches for one in kernels)
    print(counted)
    assert counted["dense", 3] == 3 * counted["dense", 1] > 100
    assert counted["triton", 1] == counted["triton", 3] == 2
