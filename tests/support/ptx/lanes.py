"""The registers of all threads of one program, and operands as numpy vectors with one number for each thread."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from . import Fault
from .memories import Array, Global, Shared
from .text import Program

U: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
S: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
F: dict[int, Any] = {16: np.float16, 32: np.float32, 64: np.float64}
SPECIAL = ("tid", "ctaid", "ntid", "laneid", "nctaid")


class Lanes:
    """One program (CTA) of a launch."""

    def __init__(
        self, program: Program, memory: Global, arguments: list[int], place: tuple[int, int, int],
        grid: tuple[int, int, int], threads: int, shared: int,
    ) -> None:  # fmt: skip
        self.program, self.memory, self.place, self.grid, self.n = program, memory, place, grid, threads
        self.shared = Shared(shared)
        self.arguments = dict(zip(program.parameters, arguments, strict=True))
        self.registers: dict[str, Array] = {}
        self.tid = np.arange(threads, dtype=np.uint32)
        self.lane, self.warp = self.tid.astype(np.int64) % 32, self.tid.astype(np.int64) // 32
        self.number = place[0] + grid[0] * (place[1] + grid[1] * place[2])
        self.all = np.ones(threads, bool)
        # Asynchronous work: what was begun since the last commit, and the groups that were committed.
        self.copies: list[list[Any]] = [[]]
        self.products: list[list[Any]] = [[]]
        self.summing: dict[str, int] = {}  # registers that a product will still write

    def register(self, name: str) -> Array:
        if name not in self.registers:
            width = self.program.widths[name]
            self.registers[name] = np.zeros(self.n, bool if width == 1 else U[width])
        return self.registers[name]

    def get(self, operand: str, kind: str, width: int) -> Array:
        """An operand as u, s, b, f (of this width) or p."""
        if operand in self.program.widths:
            if operand in self.summing:
                raise Fault(f"{operand} is read before the product that writes it was waited for")
            found = self.register(operand)
        elif operand[1:].split(".")[0] in SPECIAL:
            found = self._special(*operand[1:].partition(".")[::2])
        elif operand == "global_smem":
            found = np.zeros(self.n, np.uint64)
        else:
            return self._constant(operand, kind, width)
        if kind == "p":
            return found.astype(bool)
        if found.dtype.itemsize * 8 != width or found.dtype == bool:
            found = found.astype(U[width])
        return found.view(S[width]) if kind == "s" else found.view(F[width]) if kind == "f" else found

    def _special(self, name: str, axis: str) -> Array:
        i = max("xyz".find(axis or "x"), 0)
        value = {
            "tid": self.tid if i == 0 else 0, "laneid": self.tid % 32, "ntid": self.n if i == 0 else 1,
            "ctaid": self.place[i], "nctaid": self.grid[i],
        }[name]  # fmt: skip
        return np.full(self.n, value, np.uint32)

    def _constant(self, operand: str, kind: str, width: int) -> Array:
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", operand):
            bits = 32 if operand[1] in "fF" else 64
            found = np.full(self.n, int(operand[2:], 16), U[bits])
            return found.view(F[bits]) if kind == "f" else found
        value = int(operand.rstrip("U"), 0)
        if kind == "p":
            return np.full(self.n, bool(value))
        found = np.full(self.n, value & ((1 << width) - 1), U[width])
        return found.view(S[width]) if kind == "s" else found.view(F[width]) if kind == "f" else found

    def predicate(self, operand: str) -> Array:
        return self.get(operand.lstrip("!"), "p", 1) ^ operand.startswith("!")

    def put(self, name: str, value: Array, mask: Array | None) -> None:
        """Write a register where the mask is set. Integers are extended as their type says, floats keep their bits."""
        if name == "_":
            return
        if name in self.summing:
            raise Fault(f"{name} is written before the product that writes it was waited for")
        held, value = self.register(name), np.asarray(value)
        if held.dtype == bool:
            value = value.astype(bool)
        else:
            width = held.dtype.itemsize * 8
            if value.dtype.kind == "f":
                value = value.view(U[value.dtype.itemsize * 8])
            value = value.astype(S[width]).view(U[width]) if value.dtype.kind == "i" else value.astype(U[width])
        self.registers[name] = value.copy() if mask is None else np.where(mask, value, held)

    def address(self, operand: str) -> Array:
        """``[register + offset]`` or ``[global_smem + offset]``."""
        base, _, offset = operand.strip("[] ").partition("+")
        distance = int(offset.strip() or "0", 0)
        if base.strip().startswith("global_smem"):
            return np.full(self.n, distance, np.int64)
        found = self.get(base.strip(), "b", self.program.widths[base.strip()])
        if found.dtype == np.uint64:
            return found + np.uint64(distance & (2**64 - 1))
        return found.astype(np.int64) + distance
