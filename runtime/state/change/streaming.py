"""A refresh works on one device; the tensors that it changes and that are not there move there and back.

If the reservoir is on the values' own device, nothing moves. A reservoir in host memory comes to a GPU, see
``uploading.py``. Otherwise (on disk, in the background mode, or if the GPU has too little memory) all work is done in
host memory, layer by layer: while the host chooses one layer's sets, the next layer's values move to the host and the
last layer's values move back. The copies read and write the site's tensors directly, so such a refresh allocates
nothing on the device: the device holds only B's values of a layer, never its dense weight. In host memory it needs
pinned memory for the values of at most three layers, and twice θ of one layer: the assembled θ and its newly stored
parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from topkast.runtime.kernels.theta import runs_on
from topkast.runtime.layout import Index
from topkast.runtime.state.content.parts import Change, Parts
from topkast.runtime.state.sharding.part import Whole, at_work
from topkast.runtime.state.site import Site

from .commit import commit
from .uploading import OnStreams, Roads, upload

Prepare = Callable[[Site, Parts], Change]


def at_home(sites: Iterable[Site], prepare: Prepare) -> None:
    """Change sites one after the other, each as a whole, by the changes that ``prepare`` makes from their parts.

    Args:
        sites: in the order of the changes; sites of one device come one after the other.
        prepare: (site, its parts on one device) -> the change; the function itself changes nothing.
    """
    away: dict[torch.device, list[Site]] = {}
    coming: dict[torch.device, list[Site]] = {}
    for site in map(at_work, sites):
        if site.home == site.original.device:
            parts = site.parts()
            commit(site, parts, prepare(site, parts))
        else:
            there = coming if comes_up(site) else away
            there.setdefault(site.original.device, []).append(site)
    for device, group in coming.items():
        if left := upload(group, prepare, roads(device)):
            warnings.warn(
                f"topkast: {device} has too little memory for the dense {left[0].name}, so the host chooses the sets "
                f"of {len(left)} of {len(group)} weights, which takes longer",
                stacklevel=2,
            )
            away.setdefault(device, []).extend(left)
    for device, group in away.items():
        _stream(group, prepare, copies(device))


def comes_up(site: Any) -> bool:
    """Whether the sets of a site whose reservoir is elsewhere are chosen on the device of its values. A thread chooses
    in host memory, and the parts of a site that was gathered are there too."""
    gathers = isinstance(site, Whole)
    return site.place.comes_up and not (site.rule.refresh_in_background or gathers) and runs_on(site.original.device)


def roads(device: torch.device) -> Roads:
    """The copies between a GPU and host memory."""
    return OnStreams(device)


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
                # Reuse the pinned memory of the parts: copies from there to the device overlap with other work.
                for room, new in zip(parts.tensors(), change.parts.tensors(), strict=True):
                    room.copy_(new)
                change.parts = replace(parts, reservoir=change.parts.reservoir)
            commit(site, live, change, copies.copy)
    finally:
        copies.finish()


def _down(site: Site, copies: Copies) -> tuple[Parts, Parts, Event]:
    """A site's parts, host copies of these parts (still in progress), and a mark that waits until they are complete."""

    def fetch(tensor: Tensor) -> Tensor:
        room = copies.room(tensor)
        copies.copy(room, tensor)
        return room

    there = site.parts()
    index, kept = Index(*map(fetch, there.index)), list(map(fetch, there.kept))
    down = Parts(fetch(there.values), there.reservoir, index, fetch(there.ever), kept, there.starts)
    return there, down, copies.record_event()


class Event(Protocol):
    """A place in the order of copies."""

    def synchronize(self) -> None:
        """Wait for all copies that were requested before the mark."""


class Copies(Protocol):
    """Copies between a device and the host, made in the order of the requests."""

    def room(self, like: Tensor) -> Tensor:
        """Host memory for a tensor with the shape and dtype of ``like``."""

    def copy(self, target: Tensor, source: Tensor) -> None: ...

    def record_event(self) -> Event: ...

    def finish(self) -> None:
        """Make later work on the device wait until every copy is complete."""


def copies(device: torch.device) -> Copies:
    """The object that makes the copies of a device."""
    return OnStream(device) if device.type == "cuda" else InTurn()


class OnStream:
    """Copies on a separate CUDA stream, from pinned memory, which torch keeps until the copies are complete."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def room(self, like: Tensor) -> Tensor:
        return torch.empty_like(like, device="cpu", pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        if target.device == self.device:  # A by columns is made from the new index right after the copies
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def record_event(self) -> Event:
        return self.stream.record_event()

    def finish(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


class InTurn:
    """Copies that are made immediately, for devices other than CUDA."""

    def room(self, like: Tensor) -> Tensor:
        return torch.empty_like(like, device="cpu")

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def record_event(self) -> Event:
        return self

    def synchronize(self) -> None:
        """Do nothing: every copy is complete already."""

    def finish(self) -> None:
        """Do nothing: every copy is complete already."""
