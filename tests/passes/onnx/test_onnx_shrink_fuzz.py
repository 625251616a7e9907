"""hypothesis draws nets with rows and columns of zeros; without their dead units they compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from topkast.tests.passes.onnx.test_onnx_shrink import check
from topkast.tests.support.models.nets import Net

ANY = ["act", "residual", "gate", "cat", "twin", "scale", "where"]
IMAGE = [*ANY, "linear", "padded", "norm", "pool", "mean pool", "groups", "up", "pad"]
VECTOR = [*ANY, "linear", "matmul", "norm", "slice", "twice"]


@st.composite
def nets(draw: st.DrawFn) -> tuple[list[str], str, list[str], int]:
    """(layers on images, how they become vectors, layers on vectors, seed): plain, so that examples shrink well."""
    images = draw(st.lists(st.sampled_from(IMAGE), min_size=2, max_size=6)) if draw(st.booleans()) else []
    vectors = draw(st.lists(st.sampled_from(VECTOR), max_size=6))
    return images, draw(st.sampled_from(["mean", "flatten", "reshape"])), vectors, draw(st.integers(0, 9))


class Grown:
    """A net while layers are put on its last value, [batch, width, 5, 5] or [batch, width]."""

    def __init__(self, images: list[str], joint: str, vectors: list[str], seed: int) -> None:
        self.width, self.image = (3, True) if images else (6, False)
        self.net = Net(*((3, 5, 5) if images else (6,)), seed=seed)
        self.x = "x"
        for kind in images:
            self.layer(kind)
        if images:
            self.join(joint)
        for kind in vectors:
            self.layer(kind)
        self.x, self.width = self.linear(4), 4

    def dead(self, size: int) -> Any:
        return np.flatnonzero(self.net.rng.random(size) < self.net.rng.choice([0, 0.3, 0.7]))

    def linear(self, out: int, x: str | None = None, pad: bool = True, **more: Any) -> str:
        dead = {"dead_rows": self.dead(out)} | ({} if more else {"dead_columns": self.dead(self.width)})
        if self.image:
            size = 3 if pad else 1
            return self.net.conv(x or self.x, self.width, out, size, size // 2, **dead, **more)
        return self.net.linear(x or self.x, self.width, out, **dead)

    def join(self, how: str) -> None:
        net = self.net
        if how == "mean":
            self.x = net.add("ReduceMean", self.x, net.constant([2, 3], np.int64), keepdims=0)
        else:
            flat = [net.constant([-1, self.width * 25], np.int64)] if how == "reshape" else []
            self.x, self.width = net.add(how.capitalize(), self.x, *flat), self.width * 25
        self.image = False

    def layer(self, kind: str) -> None:
        net, x, width = self.net, self.x, self.width
        out, spread = int(net.rng.integers(1, 4)) * 4, (1, 1) if self.image else ()
        if kind == "act":
            self.x = net.add(str(net.rng.choice(["Relu", "Gelu", "Sigmoid", "Softplus"])), x)
        elif kind == "residual":
            self.x = net.add("Add", x, self.linear(width, net.add("Tanh", self.x)))
        elif kind == "gate" and width % 2 == 0:
            a, b = net.add("Split", x, outputs=2, axis=1, num_outputs=2)
            self.x, self.width = net.add("Mul", a, net.add("Sigmoid", b)), width // 2
        elif kind == "cat":
            self.x, self.width = net.add("Concat", x, self.linear(out), axis=1), width + out
        elif kind == "twin":
            self.x, self.width = net.add("Mul", self.linear(out), net.add("Sigmoid", self.linear(out))), out
        elif kind == "scale":
            scale = net.random(width, *spread)
            net.constants[scale][self.dead(width)] = 0
            self.x = net.add("Mul", scale, x)
        elif kind == "where":
            zeros = net.constant(np.zeros((width, *spread)))
            self.x = net.add("Where", net.add("Less", x, net.random(1)), zeros, x)
        elif kind in ("linear", "padded"):
            self.x, self.width = self.linear(out, pad=kind == "padded"), out
        elif kind == "norm" and self.image:
            self.x = net.add("BatchNormalization", x, *(net.constant(net.rng.uniform(0.5, 1.5, width)) for _ in "1234"))
        elif kind == "norm":
            self.x = net.add("LayerNormalization", x, net.random(width), net.random(width))
        elif kind == "pool":
            self.x = net.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
        elif kind == "mean pool":
            include = int(net.rng.integers(2))
            self.x = net.add("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=include)
        elif kind == "groups":
            groups = int(net.rng.choice([g for g in (1, 2, width) if width % g == 0]))
            self.x = self.linear(width, pad=bool(net.rng.integers(2)), groups=groups)
        elif kind == "up":
            weights = [net.random(width, out, 3, 3, dead_columns=self.dead(out)), net.random(out)]
            self.x, self.width = net.add("ConvTranspose", x, *weights, pads=[1] * 4), out
        elif kind == "pad":
            padded = net.add("Pad", x, net.constant([0, 0, 1, 1, 0, 0, 0, 0], np.int64))
            ends = (net.constant(at, np.int64) for at in ([0, 0], [5, 5], [2, 3]))
            self.x = net.add("Slice", padded, *ends)
        elif kind == "matmul":
            self.x = net.add("MatMul", x, net.random(width, out, dead_columns=self.dead(out)))
            self.width = out
        elif kind == "slice":
            start = int(net.rng.integers(width))
            end = int(net.rng.integers(start + 1, width + 1))
            self.x = net.add("Slice", x, *(net.constant([at], np.int64) for at in (start, end, -1)))
            self.width = end - start
        elif kind == "twice" and width < 40:
            weight = net.random(width, width, dead_rows=self.dead(width), dead_columns=self.dead(width))
            for _ in "12":
                self.x = net.add("Tanh", net.add("Gemm", self.x, weight, net.random(width), transB=1))


@pytest.mark.long
@settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), max_examples=60)
@given(nets())
def test_random_nets(drawn: tuple[list[str], str, list[str], int]) -> None:
    grown = Grown(*drawn)
    check(grown.net, grown.x, where=str(drawn))


def test_the_nets_have_dead_units() -> None:
    """That most of what is dead goes: a shrink that refused everything would pass the test above."""
    dead = gone = 0
    for seed in range(6):
        grown = Grown(["linear", "act", "padded", "norm", "pool"], "mean", ["linear", "act", "cat", "linear"], seed)
        _, found = check(grown.net, grown.x)
        dead, gone = dead + sum(one.dead_rows for one in found), gone + sum(one.rows for one in found)
    assert gone > dead > 20
