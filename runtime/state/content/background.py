"""A thread chooses a site's sets while training continues. The thread uses θ as it was at the time of the request.

Only B's values are copied. The values outside B do not change until the sets are chosen again, and the code that
chooses them first waits for the thread.
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
from topkast.runtime.kernels.theta import assemble
from topkast.runtime.layout import Geometry, Index


@dataclass(frozen=True)
class Pending:
    """An index that a thread computes.

    Args:
        name: the name of the site.
        step: the step whose θ the index is chosen from.
        future: gives the index, in host memory.
    """

    name: str
    step: int
    future: Future[Index]

    def result(self) -> Index:
        """Wait for the index and return it.

        Raises:
            RefreshError: the choice failed.
        """
        try:
            return self.future.result()
        except Exception as error:
            raise RefreshError(
                f"{self.name}: its sets of step {self.step}, chosen in the background, failed with "
                f"{type(error).__name__}: {error}"
            ) from error

    def wait(self) -> None:
        """Wait until the thread no longer reads any tensor, even if the choice fails."""
        self.future.exception()


def already_chosen(name: str, step: int, index: Index) -> Pending:
    """A :class:`Pending` whose index exists already."""
    future: Future[Index] = Future()
    future.set_result(index)
    return Pending(name, step, future)


def choose_in_thread(
    name: str,
    step: int,
    parts: tuple[Tensor, Tensor, Index],
    geometry: Geometry,
    choose: Callable[[Tensor], Index],
) -> Pending:
    """Start a thread that chooses the sets.

    Args:
        name, step: see :class:`Pending`.
        parts: values, reservoir and index of θ. The values and the index are copied. The reservoir is copied only if it
            is not in host memory.
        geometry: the geometry of the weight.
        choose: a function that takes θ, dense, in host memory, and returns the index of its sets.
    """
    future: Future[Index] = Future()
    try:
        values, reservoir, index = parts
        values, index = values.to("cpu", copy=True), index.to(torch.device("cpu"), copy=True)
        reservoir = reservoir.to("cpu")

        def work() -> Index:
            with torch.no_grad():
                return choose(assemble(values, reservoir, index, geometry))

        future = _pool().submit(work)
    except Exception as error:  # raised at the next refresh, because the current refresh has already started
        future.set_exception(error)
    return Pending(name, step, future)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """A pool of one thread, so that only one θ is dense at a time. The thread uses as many cores as torch is set to."""
    return ThreadPoolExecutor(1, thread_name_prefix="topkast")


if hasattr(os, "register_at_fork"):  # after a fork, the child has the pool but not its thread
    os.register_at_fork(after_in_child=_pool.cache_clear)


def pending_state(pending: Pending | None, index: Index) -> dict[str, Tensor]:
    """The tensors that a site saves for a thread's choice: its index (waits for it), or zeros of the index's shapes."""
    if pending is None:
        found = Index(*(torch.zeros_like(tensor, device="cpu") for tensor in index))
    else:
        found = pending.result()
    return {f"prepared_{field}": tensor for field, tensor in zip(Index._fields, found, strict=True)}
