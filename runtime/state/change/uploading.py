"""A refresh on a GPU of sites whose reservoir is in host memory: what lies outside B comes up, and goes back.

One layer is worked on at a time. Meanwhile the reservoir of the next layer comes up on one stream, and that of the last
layer goes back on another; the layers wait for one another on the device, and the host waits once, at the end, because
host memory may be read after that. Beside a layer's dense θ the device holds at most two reservoirs of neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from topkast.runtime.state.content.parts import Change, Parts

from .commit import commit

Prepare = Callable[[Any, Parts], Change]


class Roads(Protocol):
    """Copies between host memory and a device beside the device's own work. A mark is a place in their order."""

    def up(self, source: Tensor) -> tuple[Tensor, Any]:
        """A copy on the device, still in progress, and a mark that follows it."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy a tensor of the device, after all work that was requested on the device so far."""

    def down_mark(self) -> Any:
        """A mark that follows all copies to the host that were requested."""

    def after(self, mark: Any) -> None:
        """Make later work on the device wait for a mark."""

    def finish(self) -> None:
        """Wait until every copy is complete."""


def upload(sites: Sequence[Any], prepare: Prepare, roads: Roads) -> list[Any]:
    """Change sites of one device one after the other, each as a whole.

    Args:
        sites: sites whose reservoir is in host memory.
        prepare: (site, its parts on the device) -> the change.
        roads: the copies to and from the device.

    Returns:
        The sites for which the device has too little memory, unchanged.
    """
    done, going = 0, deque[tuple[Any, Change]]()
    try:
        coming = _up(sites[0], roads)
        for site, following in zip(sites, [*sites[1:], None], strict=True):
            live, parts, arrived = coming
            if following is not None:
                coming = _up(following, roads)
            while len(going) > 1:  # the memory of a reservoir is given back after it was copied
                roads.after(going[0][0])
                going.popleft()
            roads.after(arrived)
            change = prepare(site, parts)
            commit(site, live, change, roads.copy)
            done += 1
            going.append((roads.down_mark(), change))
    except torch.OutOfMemoryError:
        if not sites[done:] or sites[done].broken is not None:
            raise
    finally:
        roads.finish()
    return list(sites[done:])


def _up(site: Any, roads: Roads) -> tuple[Parts, Parts, Any]:
    """A site's parts, the same with the reservoir on the device, and a mark that follows this copy."""
    live = site.parts()
    reservoir, arrived = roads.up(live.reservoir)
    return live, replace(live, reservoir=reservoir), arrived


class OnStreams:
    """Copies from and to pinned memory on two CUDA streams, one for each direction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.coming, self.going = torch.cuda.Stream(device), torch.cuda.Stream(device)

    @property
    def _here(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def up(self, source: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        room = torch.empty_like(source, device=self.device)
        self.coming.wait_stream(self._here)  # earlier work may still use this memory
        with torch.cuda.stream(self.coming):
            room.copy_(source, non_blocking=True)
        return room, self.coming.record_event()

    def copy(self, target: Tensor, source: Tensor) -> None:
        if target.device == self.device:
            target.copy_(source)
            return
        self.going.wait_stream(self._here)
        with torch.cuda.stream(self.going):
            target.copy_(source, non_blocking=True)

    def down_mark(self) -> torch.cuda.Event:
        return self.going.record_event()

    def after(self, mark: torch.cuda.Event) -> None:
        self._here.wait_event(mark)

    def finish(self) -> None:
        self._here.wait_stream(self.coming)
        self.going.synchronize()
