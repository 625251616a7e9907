"""hypothesis draws small modules and configurations; each equals the oracle step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from topkast.tests.runtime.training.test_optimizers import OPTIMIZERS
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, plain


class Product(nn.Module):
    """x @ w.t(), x @ w or F.linear, on a parameter of its own."""

    def __init__(self, inputs: int, outputs: int, way: str) -> None:
        super().__init__()
        self.way = way
        shape = (inputs, outputs) if way == "x @ w" else (outputs, inputs)
        self.w = nn.Parameter(torch.randn(shape) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "x @ w":
            return x @ self.w
        return x @ self.w.t() if self.way == "x @ w.t()" else torch.einsum("...i,oi->...o", x, self.w)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[tuple[Any, ...], ...]:
    """Layers as plain tuples, so that a failing example reads and shrinks well."""
    width, layers = draw(st.integers(3, 19)), []
    for _ in range(draw(st.integers(1, 4))):
        outputs = draw(st.integers(3, 23))
        kind = draw(st.sampled_from(["linear", "conv1d", "x @ w", "x @ w.t()", "einsum"]))
        layers.append((kind, width, outputs, draw(st.booleans())))
        layers.append((draw(st.sampled_from(["relu", "gelu", "norm", "none"])), outputs))
        width = outputs
    return tuple(layers)


def assemble(layers: tuple[tuple[Any, ...], ...]) -> nn.Module:
    made: list[nn.Module] = []
    for kind, *sizes in layers:
        if kind == "linear":
            made.append(nn.Linear(sizes[0], sizes[1], bias=sizes[2]))
        elif kind == "conv1d":
            made.append(Conv1D(sizes[1], sizes[0]))
        elif kind in ("x @ w", "x @ w.t()", "einsum"):
            made.append(Product(sizes[0], sizes[1], kind))
        elif kind != "none":
            made.append({"relu": nn.ReLU, "gelu": nn.GELU, "norm": partial(nn.LayerNorm, sizes[0])}[kind]())
    # The last product may be a classifier, which stays dense by default: one more in front makes sure of a site.
    first = layers[0][1]
    return nn.Sequential(nn.Linear(first, first), nn.Tanh(), *made)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    fwd = draw(st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.9, 0.99]))
    bwd = draw(st.sampled_from([None, 0.0, fwd / 2, fwd]))
    block = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 4), (4, 1), (3, 2), (3, 5)]))
    return {
        "fwd": fwd,
        "bwd": bwd,
        "block": block,
        "balanced": draw(st.booleans()),
        "refresh_every": draw(st.sampled_from([1, 2, 3])),
        "stop_exploring_after": draw(st.sampled_from([None, None, 1, 2, 4])),
        "exploration_decay": draw(st.sampled_from([None, None, 0.0, 3.0, 400.0])),
        "explore": draw(st.sampled_from(["topk", "topk", "random"])),
        "seed": 1,
    }


NAMES = ["sgd momentum", "sgd nesterov", "adagrad", "adamax", "sgd weight decay"]
examples = partial(settings, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def check(layers: Any, config: dict[str, Any], optimizer: str, backend: str) -> None:
    torch._dynamo.reset()
    dims = (4, 3) if len(layers) % 4 else (5,)
    case = Case("fuzz", partial(assemble, layers), (*dims, layers[0][1]), ())
    Trio(case, {**config, "backend": backend}, OPTIMIZERS[optimizer]).run(plain, bitwise=False)


@pytest.mark.long
@examples(max_examples=25)
@given(stacks(), configs(), st.sampled_from(NAMES))
def test_eager(layers: Any, config: dict[str, Any], optimizer: str) -> None:
    check(layers, config, optimizer, "eager")


@pytest.mark.long
@examples(max_examples=6)
@given(stacks(), configs(), st.sampled_from(NAMES))
def test_aot_eager(layers: Any, config: dict[str, Any], optimizer: str) -> None:
    check(layers, config, optimizer, "aot_eager")
