"""A refresh works where the reservoir is; what else it changes comes there and goes back.

Where that is the values' own device, nothing moves. Where the reservoir was kept off the device, everything is done in
host memory, layer by layer: while the host chooses one layer's sets, the next layer's values are on their way down and
the last one's on their way up. The copies come from and go to where the tensors live, so that a refresh allocates
nothing on the device: of a dense layer it holds B's values there and no more. In host memory it takes pinned room for
the values of at most three layers, and of one layer θ twice: as it was put together, and taken apart anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from topkast.runtime.layout import Index

from .commit import commit
from .parts import Change, Parts
from .site import Site

Prepare = Callable[[Site, Parts], Change]


def at_home(sites: Iterable[Site], prepare: Prepare) -> None:
    """Change sites one after the other, each as a whole, by what ``prepare`` makes of their parts.

    Args:
        sites: in the order in which they are changed, those of one device one after the other.
        prepare: (site, its parts in the place of its reservoir) -> the change; it changes nothing itself.
    """
    away: dict[torch.device, list[Site]] = {}
    for site in sites:
        if site.home == site.original.device:
            parts = site.parts()
            commit(site, parts, prepare(site, parts))
        else:
            away.setdefault(site.original.device, []).append(site)
    for device, group in away.items():
        _stream(group, prepare, copies(device))


def _stream(sites: list[Site], prepare: Prepare, copies: Copies) -> None:
    try:
        coming = _down(sites[0], copies)
        for site, following in zip(sites, [*sites[1:], None], strict=True):
            live, parts, arrived = coming
            if following is not None:
                coming = _down(following, copies)
            arrived.synchronize()
            change = prepare(site, parts)
            if change.parts is not None:
                # Into the pinned room of what came down, from where it goes up beside other work.
                for room, new in zip(parts.tensors(), change.parts.tensors(), strict=True):
                    room.copy_(new)
                change.parts = replace(parts, reservoir=change.parts.reservoir)
            commit(site, live, change, copies.copy)
    finally:
        copies.finish()


def _down(site: Site, copies: Copies) -> tuple[Parts, Parts, Mark]:
    """A site's parts, the same on their way to the host, and what says that they are there."""

    def fetch(tensor: Tensor) -> Tensor:
        room = copies.room(tensor)
        copies.copy(room, tensor)
        return room

    there = site.parts()
    index, kept = Index(*map(fetch, there.index)), list(map(fetch, there.kept))
    down = Parts(fetch(there.values), there.reservoir, index, fetch(there.ever), kept, there.starts)
    return there, down, copies.mark()


class Mark(Protocol):
    """A place in the order of copies."""

    def synchronize(self) -> None:
        """Wait for all that was asked for before."""


class Copies(Protocol):
    """Copies between a device and the host, made in the order in which they are asked for."""

    def room(self, like: Tensor) -> Tensor:
        """Host memory for a tensor like this."""

    def copy(self, target: Tensor, source: Tensor) -> None: ...

    def mark(self) -> Mark: ...

    def finish(self) -> None:
        """What the device is asked for from here on finds every copy made."""


def copies(device: torch.device) -> Copies:
    """How a device's copies are made."""
    return OnStream(device) if device.type == "cuda" else InTurn()


class OnStream:
    """On a CUDA stream of their own, from pinned memory, which torch keeps until they are made."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def room(self, like: Tensor) -> Tensor:
        return torch.empty_like(like, device="cpu", pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        return self.stream.record_event()

    def finish(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


class InTurn:
    """Each copy at once: for devices of other kinds."""

    def room(self, like: Tensor) -> Tensor:
        return torch.empty_like(like, device="cpu")

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def mark(self) -> Mark:
        return self

    def synchronize(self) -> None:
        """Nothing is under way."""

    def finish(self) -> None:
        """Nothing is under way."""
