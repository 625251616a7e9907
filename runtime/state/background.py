"""Sets that a thread chooses while training goes on, from θ as it was when they were asked for.

Only B's values are copied: what lies outside B does not move until the sets are chosen again, and whoever does that
waits for the thread first.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from topkast.runtime.errors import RefreshError
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.native.theta import assemble


@dataclass(frozen=True)
class Pending:
    """An index that is being made.

    Args:
        name: of the site.
        step: the one whose θ it is chosen from.
        future: gives it, in host memory.
    """

    name: str
    step: int
    future: Future[Index]

    def result(self) -> Index:
        """The index, as soon as there is one.

        Raises:
            RefreshError: choosing failed.
        """
        try:
            return self.future.result()
        except Exception as error:
            raise RefreshError(
                f"{self.name}: its sets of step {self.step}, chosen in the background, failed with "
                f"{type(error).__name__}: {error}"
            ) from error

    def wait(self) -> None:
        """Until the thread reads nothing any more, however it ends."""
        self.future.exception()


def known(name: str, step: int, index: Index) -> Pending:
    """One that is there already."""
    future: Future[Index] = Future()
    future.set_result(index)
    return Pending(name, step, future)


def prepare(
    name: str,
    step: int,
    parts: tuple[Tensor, Tensor, Index],
    geometry: Geometry,
    choose: Callable[[Tensor], Index],
) -> Pending:
    """Let a thread choose.

    Args:
        name, step: see :class:`Pending`.
        parts: values, reservoir and index of θ. The values and the index are copied, the reservoir is not where it is
            in host memory.
        geometry: of the weight.
        choose: from θ, dense, in host memory, to the index of its sets.
    """
    future: Future[Index] = Future()
    try:
        values, reservoir, index = parts
        values, index = values.to("cpu", copy=True), Index(*(tensor.to("cpu", copy=True) for tensor in index))
        reservoir = reservoir.to("cpu")

        def work() -> Index:
            with torch.no_grad():
                return choose(assemble(values, reservoir, index, geometry))

        future = _pool().submit(work)
    except Exception as error:  # raised at the next refresh: the one that asks is under way
        future.set_exception(error)
    return Pending(name, step, future)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One thread, so that one θ is dense at a time; it works on as many as torch is set to."""
    return ThreadPoolExecutor(1, thread_name_prefix="topkast")


if hasattr(os, "register_at_fork"):  # where processes fork, a child has the pool, but not its thread
    os.register_at_fork(after_in_child=_pool.cache_clear)


def as_state(pending: Pending | None, index: Index) -> dict[str, Tensor]:
    """What a site saves of a thread's choice, waited for: its index, or zeros like the one in force."""
    if pending is None:
        found = Index(*(torch.zeros_like(tensor, device="cpu") for tensor in index))
    else:
        found = pending.result()
    return {f"prepared_{field}": tensor for field, tensor in zip(Index._fields, found, strict=True)}
