"""Find the kernel that runs a product fastest: measured once per problem, then remembered (:mod:`.cache`).

``TOPKAST_KERNEL`` can change this: ``first`` takes the first kernel that fits, without measuring; the name of a kernel
takes this kernel for every problem that it fits.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.errors import ConfigError
from topkast.runtime.kernels.candidates import CSR_DENSITY, DENSE, KERNELS, candidates, launch, repeated
from topkast.runtime.layout import Geometry, Index, build_index
from topkast.runtime.reference.products import ConvArgs

from . import cache
from .interleave import interleave

Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides
Drawn = tuple[list[Tensor], tuple[Any, ...]]  # activations, and the weight as the product takes it
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Problem:
    """Everything that decides how long a product takes.

    Args:
        product: one of :data:`topkast.runtime.kernels.candidates.PRODUCTS`.
        operands: shape and strides of the activations, in the product's order.
        dtype: the dtype of the activations and values.
        geometry: the geometry of the weight.
        n_fwd, n_bwd: the number of blocks in A and in B.
        threads: torch's number of threads.
        device: the device that runs the product.
        conv: the arguments of a convolution; None for the other products.
        widths: empty, or one number each for operand and result (dy and x): the width of tiles, or 0 for rows.
        act: the activation after the product; "" for none.
        repeated: whether the product runs many times with one weight, see
            :func:`topkast.runtime.kernels.candidates.repeated`.
    """

    product: str
    operands: tuple[Layout, ...]
    dtype: torch.dtype
    geometry: Geometry
    n_fwd: int
    n_bwd: int
    threads: int
    device: torch.device = _CPU
    conv: ConvArgs | None = None
    widths: tuple[int, ...] = ()
    act: str = ""
    repeated: bool = False

    @property
    def key(self) -> str:
        g = self.geometry
        where = [g.shape, g.perm, g.lead, g.block, self.n_fwd, self.n_bwd]
        how = [self.threads, self.device.type, self.conv, self.widths, self.act, self.repeated]
        return json.dumps([self.product, self.operands, str(self.dtype), where, *how])


def setting() -> str:
    """The value of ``TOPKAST_KERNEL``; the default is "measure".

    Raises:
        ConfigError: the value is not "measure", "first" or the name of a kernel.
    """
    found, allowed = os.environ.get("TOPKAST_KERNEL", "measure"), ["measure", "first", *KERNELS]
    if found not in allowed:
        raise ConfigError(f"TOPKAST_KERNEL={found!r}: must be one of {', '.join(allowed)}")
    return found


def _matrix(geometry: Geometry) -> tuple[int, int, tuple[int, int]]:
    """The properties of a weight that a kernel sees. A product may use a view of the parameter with another shape."""
    return geometry.rows, geometry.cols, geometry.block


def choose(problem: Problem) -> str:
    """The kernel for a problem, by :func:`setting`."""
    fitting = fitting_kernels(problem)
    wanted = setting()
    if wanted in fitting:
        return wanted
    fitting = worth_trying(problem, fitting)
    if wanted != "measure" or len(fitting) == 1:
        return fitting[0]
    seconds = _times(problem, fitting)
    return min(fitting, key=lambda name: seconds[name])


def _times(problem: Problem, fitting: list[str]) -> dict[str, float]:
    return cache.remembered(problem.key, partial(measure, problem, fitting), bound(problem), fitting)


def fitting_kernels(problem: Problem) -> list[str]:
    """The kernels that take a problem."""
    with torch._subclasses.FakeTensorMode():
        operand = torch.empty_strided(*problem.operands[0], dtype=problem.dtype, device=problem.device)
    return candidates(problem.product, operand, problem.geometry, problem.conv)


def worth_trying(problem: Problem, fitting: list[str]) -> list[str]:
    """The kernels to measure: only the first dense product, which is the fastest; "csr" only below its density."""
    dense = next(name for name in fitting if name in DENSE)
    read = problem.n_bwd if problem.product.endswith("sddmm") else problem.n_fwd
    slow = {name for name in fitting if name in DENSE} - {dense}
    if read > CSR_DENSITY * problem.geometry.units:
        slow.add("csr")
    return [name for name in fitting if name not in slow]


def measure(problem: Problem, names: list[str], seconds: float = 0.15) -> dict[str, float]:
    """Seconds of each kernel, in turn, on random sets of the same size.

    Args:
        problem: the problem to run.
        names: the kernels.
        seconds: how long to repeat.
    """
    return interleave(calls(problem, names), seconds, problem.device)


def calls(problem: Problem, names: list[str], drawn: Drawn | None = None) -> dict[str, Callable[[], object]]:
    """A call of each kernel on random sets of a problem's size; ``drawn``: those of :func:`draw`, if they exist."""
    operands, weight = drawn or draw(problem)
    if problem.repeated:
        runs = {name: repeated(name, problem.product, *weight) for name in names}
        return {name: partial(run, *operands) for name, run in runs.items()}
    bias = (None,) if problem.product in ("spmm", "conv") else ()
    conv = () if problem.conv is None else (problem.conv,)
    given = (*operands, *weight, *bias, *conv)
    return {name: partial(launch(name, problem.product), *given) for name in names}


DRAWN = 2**16  # numbers of a random tensor that differ
SLACK = 20  # how many times slower than a matrix product of a good size a product may be for its FLOPs


def bound(problem: Problem) -> float:
    """Seconds that a problem takes at most, on a machine that does nothing else: for its FLOPs, its bytes and its call.

    A longer time was measured while other programs ran, or the kernel is unusually slow. On a GPU there is no bound,
    because events time only the GPU.
    """
    if problem.device.type != "cpu":
        return math.inf
    shape, g = problem.operands[0][0], problem.geometry
    rows = math.prod(shape[:-1]) if problem.conv is None else shape[0] * math.prod(shape[2:])
    flops = 2 * rows * g.rows * g.cols
    moved = 4 * (g.rows * g.cols + rows * (g.rows + g.cols))
    return SLACK * flops / _flops_a_second(problem.dtype) + moved / 1e9 + 2e-4


@functools.cache
def _flops_a_second(dtype: torch.dtype) -> float:
    """FLOPs a second of PyTorch's product of two 256 x 256 matrices, with the threads of this process."""
    x = torch.full((256, 256), 0.5, dtype=dtype, device="cpu")  # no random numbers: the user's must not move
    return 2 * 256**3 / interleave({"": lambda: x @ x}, 0.02)[""]


def draw(problem: Problem, index: Index | None = None) -> Drawn:
    """Random activations (with the ends of their runs) and a random weight: those of values, index and geometry that
    the product takes. ``index``: a result of :func:`draw_index`, which takes longer than the rest."""
    geometry, device = problem.geometry, problem.device
    generator = torch.Generator(device).manual_seed(0)
    index = draw_index(problem) if index is None else index
    operands = [_random(layout, problem.dtype, generator) for layout in problem.operands]
    count = index.cols.numel() * geometry.unit
    values = torch.randn(count, generator=generator, device=device).to(problem.dtype)
    if problem.product.startswith("grouped"):  # every weight gets the same number of rows
        weights = geometry.permuted[0]
        operands.append(torch.arange(1, weights + 1, device=device) * operands[0].shape[0] // weights)
    of_weight = problem.product in ("sddmm", "grouped_sddmm", "conv_weight_grad")
    return operands, (index, geometry) if of_weight else (values, index, geometry)


def draw_index(problem: Problem) -> Index:
    """The index of random sets; products with one weight can share it."""
    geometry, device = problem.geometry, problem.device
    drawn = torch.rand(geometry.grid, generator=torch.Generator(device).manual_seed(0), device=device)
    bwd = drawn < problem.n_bwd / geometry.units
    return build_index(drawn < problem.n_fwd / geometry.units, bwd, int(bwd.sum()))


def _random(layout: Layout, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A random tensor with these strides. If a stride is 0, elements share memory; so the memory is filled first.

    Some numbers are repeated: to draw 3 million took as long as three convolutions with them.
    """
    shape, strides = layout
    held = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if all(shape) else 0
    drawn = torch.randn(min(held, DRAWN), generator=generator, device=generator.device).to(dtype)
    return drawn.repeat(-(-held // DRAWN) or 1).as_strided(shape, strides)


def measured(geometry: Geometry, n_fwd: int, n_bwd: int) -> list[dict[str, Any]]:
    """The measurements for sites with these sizes: product, shape of the activations, threads, seconds by kernel."""
    found = []
    for key, entry in cache.entries().items():
        seconds = entry["seconds"]
        product, operands, dtype, this, threads, *more = json.loads(key)
        if this is None:  # a conversion, which has no weight
            continue
        shape, perm, lead, (r, c), *counts = this
        seen = Geometry(tuple(shape), tuple(perm), lead, (r, c))
        if _matrix(seen) == _matrix(geometry) and counts == [n_fwd, n_bwd]:
            *_, widths, act, is_repeated = more
            what = f"{product}{' on tiles' if widths else ''}{f' with {act}' if act else ''}"
            what = f"{what} of a recurrent layer" if is_repeated else what
            shape = operands[0][0]
            found.append({"product": what, "shape": shape, "dtype": dtype, "threads": threads, "seconds": seconds})
    return found


def times_of(sites: Iterable[Any]) -> dict[str, Any]:
    """What a checkpoint holds of the planner's times, see :func:`topkast.runtime.planner.cache.of_model`.

    Args:
        sites: the model's sites.
    """
    own = {(_matrix(site.geometry), site.n_fwd, site.n_bwd) for site in sites}

    def belongs(key: list[Any]) -> bool:
        where = key[3]
        if where is None:  # a conversion, which any model may need
            return True
        shape, perm, lead, (r, c), *counts = where
        return (_matrix(Geometry(tuple(shape), tuple(perm), lead, (r, c))), *counts) in own

    return cache.of_model(belongs)
