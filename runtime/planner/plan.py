"""Find the kernel that runs a product fastest: measured once per problem, remembered on disk per machine and version.

``TOPKAST_KERNEL`` can change this: ``first`` takes the first kernel that fits, without measuring; the name of a kernel
takes this kernel for every problem that it fits. ``TOPKAST_CACHE`` is the folder of the file; the default is
``~/.cache/topkast``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.errors import ConfigError
from topkast.runtime.kernels import native_library
from topkast.runtime.kernels.candidates import CSR_DENSITY, DENSE, KERNELS, candidates, launch
from topkast.runtime.layout import Geometry, build_index
from topkast.runtime.reference.products import ConvArgs

Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides
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

    @property
    def key(self) -> str:
        g = self.geometry
        where = [g.shape, g.perm, g.lead, g.block, self.n_fwd, self.n_bwd]
        how = [self.threads, self.device.type, self.conv, self.widths, self.act]
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


def remembered(key: str, measured: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The seconds that the file has under a key. If the file has none, they are measured and written."""
    seconds = _remembered().get(key)
    if seconds is None:
        seconds = measured()
        _remember(key, seconds)
    return seconds


def _matrix(geometry: Geometry) -> tuple[int, int, tuple[int, int]]:
    """The properties of a weight that a kernel sees. A product may use a view of the parameter with another shape."""
    return geometry.rows, geometry.cols, geometry.block


def choose(problem: Problem) -> str:
    """The kernel for a problem, by :func:`setting`."""
    fitting = _fitting(problem)
    wanted = setting()
    if wanted in fitting:
        return wanted
    fitting = worth_trying(problem, fitting)
    if wanted != "measure" or len(fitting) == 1:
        return fitting[0]
    seconds = _remembered().get(problem.key)
    if seconds is None or set(seconds) != set(fitting):
        seconds = measure(problem, fitting)
        _remember(problem.key, seconds)
    return min(fitting, key=lambda name: seconds[name])


def _fitting(problem: Problem) -> list[str]:
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
    """Median seconds of each kernel, interleaved, on random sets of the same size.

    Args:
        problem: the problem to run.
        names: the kernels.
        seconds: how long to repeat after the first three rounds.
    """
    operands, weight = draw(problem)
    bias = (None,) if problem.product in ("spmm", "conv") else ()
    conv = () if problem.conv is None else (problem.conv,)
    given = (*operands, *weight, *bias, *conv)
    calls = {name: partial(launch(name, problem.product), *given) for name in names}
    return interleave(calls, seconds, problem.device)


def draw(problem: Problem) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Random activations (with the ends of their runs) and a random weight: those of values, index and geometry that
    the product takes."""
    geometry, device = problem.geometry, problem.device
    generator = torch.Generator(device).manual_seed(0)
    drawn = torch.rand(geometry.grid, generator=generator, device=device)
    bwd = drawn < problem.n_bwd / geometry.units
    index = build_index(drawn < problem.n_fwd / geometry.units, bwd, int(bwd.sum()))
    operands = [_random(layout, problem.dtype, generator) for layout in problem.operands]
    count = index.cols.numel() * geometry.unit
    values = torch.randn(count, generator=generator, device=device).to(problem.dtype)
    if problem.product.startswith("grouped"):  # every weight gets the same number of rows
        weights = geometry.permuted[0]
        operands.append(torch.arange(1, weights + 1, device=device) * operands[0].shape[0] // weights)
    of_weight = problem.product in ("sddmm", "grouped_sddmm", "conv_weight_grad")
    return operands, (index, geometry) if of_weight else (values, index, geometry)


def interleave(
    calls: Mapping[str, Callable[[], object]], seconds: float, device: torch.device = _CPU
) -> dict[str, float]:
    """Median seconds of each call, called in turn. The first round is a warm-up and does not count. The rounds end as
    described in :func:`measure`."""
    clock = _cuda_seconds if device.type == "cuda" else _seconds
    times: dict[str, list[float]] = {name: [] for name in calls}
    rounds, end = 0, time.perf_counter() + seconds
    with torch.no_grad():
        while rounds < 4 or (time.perf_counter() < end and rounds < 20):
            for name, call in calls.items():
                times[name].append(clock(call, device))
            rounds += 1
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds between two events. Writing zeros first empties the cache and lets the CPU queue all launches in time."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other = torch.empty(2**27, dtype=torch.uint8, device=device)
        for _ in range(4):
            other.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def _random(layout: Layout, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A random tensor with these strides. If a stride is 0, elements share memory; so the memory is filled first."""
    shape, strides = layout
    held = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if all(shape) else 0
    return torch.randn(held, generator=generator, device=generator.device).to(dtype).as_strided(shape, strides)


def measured(geometry: Geometry, n_fwd: int, n_bwd: int) -> list[dict[str, Any]]:
    """The measurements for sites with these sizes: product, shape of the activations, threads, seconds by kernel."""
    found = []
    for key, seconds in _remembered().items():
        product, operands, dtype, this, threads, *more = json.loads(key)
        if this is None:  # a conversion, which has no weight
            continue
        shape, perm, lead, (r, c), *counts = this
        seen = Geometry(tuple(shape), tuple(perm), lead, (r, c))
        if _matrix(seen) == _matrix(geometry) and counts == [n_fwd, n_bwd]:
            *_, widths, act = more
            what = f"{product}{' on tiles' if widths else ''}{f' with {act}' if act else ''}"
            shape = operands[0][0]
            found.append({"product": what, "shape": shape, "dtype": dtype, "threads": threads, "seconds": seconds})
    return found


@functools.cache
def machine() -> str:
    """The processors and versions that a measurement is valid for."""
    try:
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    lib = native_library.library()
    digest = hashlib.blake2b(Path(lib._name).read_bytes(), digest_size=8).hexdigest() if lib else "none"
    gpus = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    cpu = f"{model} x{os.cpu_count()}, torch {torch.__version__}, kernels {digest}, {native_library.isa()}"
    return ", ".join([cpu, *sorted(gpus)])


def _path() -> Path:
    return Path(os.environ.get("TOPKAST_CACHE", "~/.cache/topkast")).expanduser() / "kernels.json"


_measurements: dict[Path, dict[str, dict[str, dict[str, float]]]] = {}


def _read(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # no file yet, or an incomplete file: measure again
        return {}
    return found if isinstance(found, dict) else {}


def _remembered() -> dict[str, dict[str, float]]:
    path = _path()
    if path not in _measurements:
        _measurements[path] = _read(path)
    return _measurements[path].setdefault(machine(), {})


def _remember(key: str, seconds: dict[str, float]) -> None:
    """Store a measurement. Several processes may write, so the file is read again and replaced in one step."""
    _remembered()[key] = seconds
    path = _path()
    merged = _read(path)
    merged.setdefault(machine(), {}).update(_remembered())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(merged, file)
        os.replace(file.name, path)
    except OSError:
        return  # the folder cannot be written to: only this process remembers the measurement
