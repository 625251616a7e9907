"""Weights that are cut along their rows before they are used: fused in parts, and equal to the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import topkast
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, adamw, plain


class Packed(nn.Module):
    """Three projections in one matrix, used in ``how`` many ways; rows 0-8, 8-16 and 16-24."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.packed, self.out = how, nn.Parameter(torch.randn(24, 10) / 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "chunk":
            q, k, v = self.packed.chunk(3)
        elif self.how == "split":
            q, k, v = torch.split(self.packed, 8)
        elif self.how == "columns":  # no rows: left as it is
            return self.out(F.linear(x[:, :5], self.packed[:, :5])[:, :8])
        else:  # one part is not used, another one twice
            q, k, v = self.packed[:8], self.packed[16:], self.packed[16:]
        return self.out(F.linear(x, q) * torch.tanh(F.linear(2 * x, k)) + F.linear(x.flip(0), v))


class Loop(nn.Module):
    """Three experts in one tensor, one after the other, each on all rows and weighted by a gate."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.gate = how, nn.Linear(10, 3)
        self.experts, self.out = nn.Parameter(torch.randn(3, 8, 10) / 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(-1)
        weights = self.experts.unbind() if self.how == "unbind" else [self.experts[e] for e in (0, 1, -1)]
        return self.out(sum(gate[:, e, None] * F.linear(x, w) for e, w in enumerate(weights)))


OPTIONS = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "aot_eager"}


@pytest.mark.long
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("how", ["chunk", "split", "slice"])
def test_parts_are_fused(how: str, block: tuple[int, int]) -> None:
    trio = Trio(Case(how, lambda: Packed(how), (7, 10), ("packed",)), {**OPTIONS, "block": block}, adamw)
    assert trio.run(plain) == 5
    (row,) = [row for row in topkast.report(trio.ours.model).sites if row["name"] == "packed"]
    assert row["unfused"] == []
    assert sum(row["fused"]["forward"].values()) == 5 * 3


@pytest.mark.parametrize(("how", "block"), [("select", (1, 1)), ("unbind", (4, 2))])
def test_experts_in_a_loop_are_fused(how: str, block: tuple[int, int]) -> None:
    options = {**OPTIONS, "block": block, "example_inputs": torch.randn(7, 10)}
    trio = Trio(Case(how, lambda: Loop(how), (7, 10), ("experts",)), options, adamw)
    trio.run(plain)
    (row,) = [row for row in topkast.report(trio.ours.model).sites if row["name"] == "experts"]
    assert row["unfused"] == []
    assert sum(row["fused"]["weight gradient"].values()) == 5 * 3


@pytest.mark.parametrize("slimmable", [False, True])
def test_a_place_that_is_not_known_stays_dense(slimmable: bool) -> None:
    class Picked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.last = nn.Parameter(torch.randn(3, 8, 10)), nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            picked = self.experts.flatten(0, 1)[:n] if slimmable else self.experts[n % 3]
            return self.last(x) @ picked.T

    model = topkast.compile(Picked(), min_size=1, backend="aot_eager", dynamic=True, example_inputs=torch.randn(7, 10))
    twin = topkast.densify(model)
    for n in (7, 8):
        x = torch.randn(n, 10)
        torch.testing.assert_close(model(x), twin(x))
    model(x).sum().backward()
    assert [bool(row["unfused"]) for row in topkast.report(model).sites] == [True, False]


@pytest.mark.parametrize(("how", "block"), [("columns", (1, 1)), ("chunk", (3, 1)), ("chunk", (16, 1))])
def test_what_is_no_whole_block_rows_stays_dense_and_right(how: str, block: tuple[int, int]) -> None:
    trio = Trio(Case(how, lambda: Packed(how), (7, 10), ("packed",)), {**OPTIONS, "block": block}, adamw)
    trio.run(plain)
    (row,) = [row for row in topkast.report(trio.ours.model).sites if row["name"] == "packed"]
    assert {entry["product"] for entry in row["unfused"]} == {"read", "read gradient"}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo reads it of what crosses the break
def test_a_weight_that_leaves_the_graph() -> None:
    """Between two graphs that break apart: nobody cuts it."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.layer.weight
            torch._dynamo.graph_break()
            return F.linear(x, weight, self.layer.bias)

    trio = Trio(Case("broken", Broken, (4, 6), ("layer.weight",)), OPTIONS, adamw)
    trio.run(plain)


def test_exploration_that_ended_leaves_unused_slots() -> None:
    options = {**OPTIONS, "stop_exploring_after": 2}
    Trio(Case("chunk", lambda: Packed("chunk"), (7, 10), ("packed",)), options, adamw).run(plain)


def test_cross_attention() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys, self.attention = nn.Linear(12, 12), nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, self.keys(x), self.keys(x), need_weights=False)[0]

    trio = Trio(Case("cross", Cross, (2, 5, 12), ("attention.in_proj_weight",)), OPTIONS, adamw)
    trio.run(plain)
    assert all(row["unfused"] == [] for row in topkast.report(trio.ours.model).sites)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inductor() -> None:
    case = Case("chunk", lambda: Packed("chunk"), (7, 10), ("packed",))
    trio = Trio(case, {**OPTIONS, "backend": "inductor"}, adamw)
    trio.run(plain)
    (row,) = [row for row in topkast.report(trio.ours.model).sites if row["name"] == "packed"]
    assert row["unfused"] == []
