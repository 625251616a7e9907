"""Global and shared memory, which notice what a GPU would silently do wrong."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from . import Fault

Array = Any  # numpy's arrays, of many types
NOBODY, MANY = -1, -2  # instead of the number of a warp


def aligned(addresses: Array, size: int, what: str) -> None:
    if (addresses % addresses.dtype.type(size)).any():
        raise Fault(f"{what}: not aligned to {size} bytes")


class Global:
    """The storages of the tensors that a launch was given."""

    def __init__(self) -> None:
        self.held: list[tuple[int, int, Array, Array]] = []

    def add(self, pointer: int, size: int) -> None:
        """A storage; ``writer`` of each byte is the program that wrote it in this launch."""
        if size and all(pointer != begin for begin, *_ in self.held):
            view = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
            self.held.append((pointer, size, view, np.full(size, NOBODY, np.int32)))
            self.held.sort(key=lambda one: one[0])

    def at(self, addresses: Array, size: int, what: str) -> list[tuple[Array, Array, Array, Array]]:
        """For each storage: its bytes, their writers, the lanes that use it, and their places [lanes, size]."""
        aligned(addresses, size, what)
        begins = np.array([begin for begin, *_ in self.held], np.uint64)
        which = np.searchsorted(begins, addresses, side="right").astype(np.int64) - 1
        ends = np.array([begin + length for begin, length, *_ in self.held], np.uint64)
        outside = (which < 0) | (addresses + np.uint64(size) > ends[np.maximum(which, 0)])
        if outside.any():
            raise Fault(f"{what}: {outside.sum()} lanes out of bounds, first {int(addresses[outside.argmax()]):x}")
        found = []
        for i in np.unique(which):
            lanes = np.nonzero(which == i)[0]
            places = (addresses[lanes] - begins[i]).astype(np.int64)[:, None] + np.arange(size)
            found.append((self.held[i][2], self.held[i][3], lanes, places))
        return found

    def load(self, addresses: Array, size: int) -> Array:
        out = np.empty((addresses.size, size), np.uint8)
        for data, _, lanes, places in self.at(addresses, size, "load from global memory"):
            out[lanes] = data[places]
        return out

    def store(self, addresses: Array, size: int, raw: Array, program: int) -> None:
        for data, writers, lanes, places in self.at(addresses, size, "store to global memory"):
            if ((writers[places] != NOBODY) & (writers[places] != program)).any():
                raise Fault("two programs write the same place of global memory")
            data[places], writers[places] = raw[lanes], program


class Shared:
    """The shared memory of one program.

    Of each byte it is known which warp wrote it and which warps read it since which barrier, whether a copy to it is on
    its way, and how many asynchronous products still read it.
    """

    def __init__(self, size: int) -> None:
        size = max(size, 16)
        self.bytes = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
        self.barriers = 0
        self.written, self.writer = np.full(size, -1), np.full(size, NOBODY)
        self.read, self.reader = np.full(size, -1), np.full(size, NOBODY)
        self.copying, self.reading = np.zeros(size, np.int32), np.zeros(size, np.int32)

    def places(self, addresses: Array, size: int, what: str) -> Array:
        addresses = addresses.astype(np.int64)
        aligned(addresses, size, what)
        if addresses.size and (addresses.min() < 0 or addresses.max() + size > self.bytes.size):
            raise Fault(f"{what}: shared memory out of bounds")
        return addresses[:, None] + np.arange(size)

    def load(self, addresses: Array, size: int, warps: Array, what: str = "load") -> Array:
        """Bytes [lanes, size]. warps: of each lane."""
        places = self.places(addresses, size, what)
        self.check_read(places, warps[:, None], what)
        again = (self.read[places] == self.barriers) & (self.reader[places] != warps[:, None])
        self.reader[places] = np.where(again, MANY, warps[:, None])
        # Lanes of two warps may read one byte in one instruction.
        self.reader[places[self.reader[places] != warps[:, None]]] = MANY
        self.read[places] = self.barriers
        return self.bytes[places]

    def check_read(self, places: Array, warps: Array, what: str) -> None:
        if self.copying[places].any():
            raise Fault(f"{what}: reads shared memory while a copy to it is on its way")
        if (self.written[places] < 0).any():
            raise Fault(f"{what}: reads shared memory that nobody wrote")
        if ((self.written[places] == self.barriers) & (self.writer[places] != warps)).any():
            raise Fault(f"{what}: no barrier since another warp wrote this shared memory")

    def check_write(self, places: Array, warps: Array, what: str) -> None:
        if self.copying[places].any():
            raise Fault(f"{what}: writes shared memory while a copy to it is on its way")
        if self.reading[places].any():
            raise Fault(f"{what}: writes shared memory that a product still reads")
        for when, who in ((self.written, self.writer), (self.read, self.reader)):
            if ((when[places] == self.barriers) & (who[places] != warps)).any():
                raise Fault(f"{what}: no barrier since another warp used this shared memory")

    def store(self, addresses: Array, size: int, raw: Array, warps: Array, what: str = "store") -> None:
        places = self.places(addresses, size, what)
        self.check_write(places, warps[:, None], what)
        self.land(places, raw, warps)
        if (self.bytes[places] != raw).any():
            raise Fault(f"{what}: two lanes write different numbers to one place of shared memory")

    def land(self, places: Array, raw: Array, warps: Array) -> None:
        self.bytes[places], self.written[places] = raw, self.barriers
        self.writer[places] = np.broadcast_to(warps[:, None], places.shape)

    def begin_copy(self, addresses: Array, size: int, warps: Array) -> Array:
        places = self.places(addresses, size, "cp.async")
        self.check_write(places, warps[:, None], "cp.async")
        np.add.at(self.copying, places, 1)
        return places

    def end_copy(self, places: Array, raw: Array, warps: Array) -> None:
        np.subtract.at(self.copying, places, 1)
        self.land(places, raw, warps)

    def begin_read(self, places: Array, what: str) -> None:
        """By a product of a warp group, in the background: every warp of the group reads what every other wrote."""
        self.check_read(places, np.int64(MANY), what)
        self.reading[places] += 1

    def end_read(self, places: Array) -> None:
        self.reading[places] -= 1
        self.read[places], self.reader[places] = self.barriers, MANY
