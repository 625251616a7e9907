"""Launch a kernel: at once, or, while a product is traced, as a node of the graph that Inductor generates code from."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index

_here = threading.local()


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Inside the ``with``, :func:`launch` in this thread adds a node to the graph that is traced, and runs nothing."""
    _here.traced = True
    try:
        yield
    finally:
        _here.traced = False


@functools.cache
def _with_options(kernel: Any, options: tuple[tuple[str, int], ...]) -> Any:
    """The kernel with the options of its launch. Inductor takes them from an autotuner with one choice. Kept, because
    Inductor compiles every autotuner by itself."""
    import triton

    return triton.autotune([triton.Config({}, **dict(options))], key=[])(kernel)


def is_traced() -> bool:
    """Whether this thread is inside :func:`traced`."""
    return getattr(_here, "traced", False)


def check_memory(values: Tensor | None, index: Index, geometry: Geometry, **activations: Tensor) -> None:
    """As :func:`topkast.runtime.operands.on_device`. While a product is traced, no tensor has memory yet."""
    if not is_traced():
        operands.on_device(values, index, geometry, **activations)


def launch(kernel: Any, grid: tuple[int, ...], near: Tensor, *args: Any, **named: Any) -> None:
    """Run a Triton kernel.

    Args:
        kernel: the kernel.
        grid: how many programs there are in each dim.
        near: a tensor on the device that runs the kernel.
        args: the kernel's arguments by position.
        named: its arguments by name, with ``num_warps`` and, unless Triton's default is right, ``num_stages``.
    """
    if not is_traced():
        with torch.cuda.device_of(near):
            kernel[grid](*args, **named)
        return
    options = tuple((name, named.pop(name)) for name in ("num_warps", "num_stages") if name in named)
    torch.library.wrap_triton(_with_options(kernel, options))[grid](*args, **named)
