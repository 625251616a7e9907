"""The result of :func:`topkast.estimate`."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Product:
    """One kind of product in a step.

    Args:
        product: the name of the product, such as "spmm" (forward), "spmm_t" (gradient of the input) or "sddmm"
            (gradient of the weight).
        weight: rows and columns of the weight's matrix.
        runs: how often the product runs in a step.
        kernel: the fastest kernel for the converted model.
        sparse: seconds of that kernel.
        dense: seconds of the dense model's product.
    """

    product: str
    weight: tuple[int, int]
    runs: int
    kernel: str
    sparse: float
    dense: float


@dataclass(frozen=True)
class Expectation:
    """The facts of :func:`topkast.estimate`; ``print`` shows them.

    Args:
        sparse: weight that would become sparse -> its densities in A and in B.
        dense: parameter that would stay dense -> why.
        products: the products of a step with those weights, with their times.
        examples: how many examples of the given batch the steps had, and how many were given; None: all.
        seconds: of a training step, "dense" and "sparse" (with its share of the refreshes), neither with Inductor.
        memory: bytes of values, gradients, AdamW's state, index and reservoir, "dense" and "sparse"; no activations.
        gains: whether the sparse step takes less than 0.95 of the dense step.
        why: why the model will not gain; empty if it gains.
    """

    sparse: dict[str, tuple[float, float]]
    dense: dict[str, str]
    products: list[Product]
    examples: tuple[int, int] | None
    seconds: dict[str, float]
    memory: dict[str, int]
    gains: bool
    why: str

    @property
    def ratio(self) -> float:
        """The sparse step's time divided by the dense step's time."""
        return self.seconds["sparse"] / self.seconds["dense"]

    def to_dict(self) -> dict[str, Any]:
        """The same facts as plain data."""
        return asdict(self)

    def __rich__(self) -> Group:
        table = Table(title="products of a step", title_justify="left")
        for head in ("product", "weight", "runs", "kernel", "sparse ms", "dense ms"):
            table.add_column(head, justify="right")
        for one in sorted(self.products, key=lambda one: -one.dense * one.runs):
            rows, cols = one.weight
            times = f"{1e3 * one.sparse:.3f}", f"{1e3 * one.dense:.3f}"
            table.add_row(one.product, f"{rows} x {cols}", str(one.runs), one.kernel, *times)
        step = {name: f"{1e3 * seconds:.1f} ms" for name, seconds in self.seconds.items()}
        size = {name: f"{count / 1e6:.1f} MB" for name, count in self.memory.items()}
        part = "" if self.examples is None else " with {} of {} examples".format(*self.examples)
        lines = [
            f"sparse: {len(self.sparse)} weights; dense: {len(self.dense)} parameters",
            f"step{part}: {step['sparse']} sparse, {step['dense']} dense: {self.ratio:.2f}",
            f"memory without activations: {size['sparse']} sparse, {size['dense']} dense: "
            f"{self.memory['sparse'] / self.memory['dense']:.2f}",
        ]
        lines += [] if self.gains else [f"This model will not gain time, because {self.why}."]
        return Group(table, Text("\n".join(lines)))

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=100).print(self)
        return text.getvalue().rstrip()
