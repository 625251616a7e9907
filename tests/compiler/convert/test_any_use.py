"""What people do with weights beside calling a layer: held in lists, sliced, joined, asked about, of several dtypes, in
modules that are compiled one by one. Each equals the oracle, and what can run sparse does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast
from topkast.compiler.backend import topkast_aot_eager
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, adamw, plain

OPTIONS = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2}


class Lists(nn.Module):
    """Weights in a ParameterList and a ParameterDict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList([torch.randn(20, 20) / 4, torch.randn(31, 20) / 4])
        self.heads = nn.ParameterDict({"left": torch.randn(31, 7) / 4, "right": torch.randn(31, 7) / 4})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.layers:
            x = torch.tanh(F.linear(x, weight))
        return x @ self.heads["left"] - torch.sigmoid(x @ self.heads["right"])


class Parts(nn.Module):
    """One weight cut into rows before it is used, a part of it never; and weights joined, by either dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.randn(51, 18) / 4)
        self.left, self.right = nn.Parameter(torch.randn(9, 17) / 4), nn.Parameter(torch.randn(14, 17) / 4)
        self.bias = nn.Parameter(torch.randn(23))
        self.first, self.second = nn.Parameter(torch.randn(8, 11) / 4), nn.Parameter(torch.randn(8, 12) / 4)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = F.linear(x, self.packed[:17]), F.linear(x, self.packed[17:34])
        last = self.packed.chunk(3)[2]
        hidden = torch.tanh(value) * torch.sigmoid(gate) + F.linear(x, last)
        hidden = torch.tanh(F.linear(hidden, torch.cat([self.left, self.right]), self.bias))
        wide = torch.cat([self.first, self.second], 1)
        return torch.tanh(F.linear(hidden, wide)) @ wide + (wide @ hidden.t()).sum(0)[:, None]


class Asks(nn.Module):
    """Reads a weight's shape, dtype, device and data in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(19, 40), nn.Linear(40, 6)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.into.weight
        x = x.to(weight.device, weight.dtype).reshape(-1, weight.shape[1])
        hidden = F.gelu(self.into(x)) / weight.size(0) ** 0.5
        assert self.out.weight.data.shape == (6, 40) and self.out.weight.numel() == 240
        return self.out(hidden) * self.out.weight.data.ndim


class Mixed(nn.Module):
    """A body in bfloat16 between float32 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.body, self.out = nn.Linear(16, 40), nn.Linear(40, 40).bfloat16(), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.into(x)).to(self.body.weight.dtype)
        return self.out(torch.tanh(self.body(hidden)).to(self.out.weight.dtype))


CASES = {
    case.name: case
    for case in [
        Case("lists", Lists, (9, 20), ("layers.0", "layers.1", "heads.left", "heads.right")),
        Case("parts", Parts, (9, 18), ("packed", "left", "right", "first", "second")),
        Case("asks", Asks, (9, 19), ("into.weight", "out.weight")),
        Case("mixed", Mixed, (9, 16), ("into.weight", "body.weight", "out.weight")),
    ]
}


@pytest.mark.long
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle(name: str, backend: str) -> None:
    trio = Trio(CASES[name], {**OPTIONS, "backend": backend}, adamw, dtype=None if name == "mixed" else torch.float32)
    assert trio.run(plain) == 5
    if backend == "aot_eager":
        assert not_fused(trio.ours.model) == set()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(24), nn.MultiheadAttention(24, 3, batch_first=True)
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm(x)
        x = x + self.attention(seen, seen, seen, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(x)))


class Blocks(nn.Module):
    """Two blocks of one class, as those are that people compile one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.blocks, self.out = nn.Linear(13, 24), nn.ModuleList([Block(), Block()]), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def in_pieces(model: nn.Module, backend: Any) -> nn.Module:
    for block in model.blocks:
        block.compile(backend=backend)
    return model


SITES = tuple(f"blocks.{i}.{name}" for i in (0, 1) for name in ("attention.in_proj_weight", "up.weight", "down.weight"))


def not_fused(model: nn.Module) -> set[str]:
    return {row["name"] for row in topkast.report(model).sites if row["unfused"]}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_blocks_that_are_compiled_one_by_one() -> None:
    """Before: the model's own graph takes them in. After: each block is a graph, with the passes if it is told to."""
    build = {"before": lambda: in_pieces(Blocks(), "aot_eager"), "after": Blocks}
    for when, backend in (("before", "aot_eager"), ("after", "eager")):
        trio = Trio(Case(when, build[when], (3, 6, 13), SITES), {**OPTIONS, "backend": backend}, adamw)
        if when == "after":
            in_pieces(trio.ours.model, topkast_aot_eager)
        trio.run(plain)
        assert not_fused(trio.ours.model) == (set() if when == "before" else {"into.weight", "out.weight"})


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_part_is_converted_alone(backend: str) -> None:
    """The optimizer of the whole model steps the part; it trains as it does under ``include``."""
    torch.manual_seed(0)
    whole = Blocks()
    model = copy.deepcopy(whole)
    whole = topkast.compile(whole, **OPTIONS, min_size=1, include="blocks.0.*", backend="eager")
    model.blocks[0] = topkast.compile(model.blocks[0], **OPTIONS, min_size=1, backend=backend)
    optimizers = [adamw(list(one.parameters())) for one in (whole, model)]
    for _ in range(5):
        x = torch.randn(3, 6, 13)
        for one, optimizer in zip((whole, model), optimizers, strict=True):
            optimizer.zero_grad()
            one(x).square().mean().backward()
            optimizer.step()
    part = model.blocks[0]
    expected, found = topkast.dense_state_dict(whole, "all"), topkast.dense_state_dict(part, "all")
    found = {f"blocks.0.{key}": value for key, value in found.items()}
    assert found.keys() == {key for key in expected if key.startswith("blocks.0.")}
    rest = {key: value for key, value in model.state_dict().items() if not key.startswith("blocks.0.")}
    assert found.keys() | rest.keys() == expected.keys()
    for key, value in {**found, **rest}.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0 if backend == "eager" else 1e-5)
    with pytest.raises(topkast.ModelError, match=r"of this Blocks only model\.blocks\.0 was converted"):
        topkast.report(model)
    assert {f"blocks.0.{name}" for name in topkast.masks(part)} == topkast.masks(whole).keys()
    assert not_fused(part) == (set() if backend == "aot_eager" else set(topkast.masks(part)))
