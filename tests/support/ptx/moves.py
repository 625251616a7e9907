"""Instructions that load, store, copy, and pass numbers between the lanes of a warp."""

from __future__ import annotations

import re

import numpy as np

from . import Fault
from .arithmetic import Step
from .lanes import Lanes, S, U
from .memories import Array
from .text import Instruction, members


def _load(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    kind, width = step.kind
    if step.op[1] == "param":
        value = cta.arguments[step.args[1].strip("[] ").split("+")[0].strip()]
        found = np.full(cta.n, value & ((1 << width) - 1), U[width])
        return cta.put(step.args[0], found.view(S[width]) if kind == "s" else found, mask)
    registers, live = members(step.args[0]), cta.all if mask is None else mask
    size, where = width // 8 * len(registers), cta.address(step.args[1])
    raw = np.zeros((cta.n, size), np.uint8)
    if step.op[1] == "global":
        raw[live] = cta.memory.load(where.astype(np.uint64)[live], size)
    else:
        raw[live] = cta.shared.load(where[live], size, cta.warp[live])
    found = raw.view(U[width])
    for i, register in enumerate(registers):
        loaded = found[:, i].copy()
        cta.put(register, loaded.view(S[width]) if kind == "s" else loaded, mask)
    return None


def _store(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    registers, live, (_, width) = members(step.args[1]), cta.all if mask is None else mask, step.kind
    raw = np.ascontiguousarray(np.stack([cta.get(one, "b", width) for one in registers], 1)).view(np.uint8)
    raw, where = raw.reshape(cta.n, -1), cta.address(step.args[0])
    if step.op[1] == "global":
        cta.memory.store(where.astype(np.uint64)[live], raw.shape[1], raw[live], cta.number)
    else:
        cta.shared.store(where[live], raw.shape[1], raw[live], cta.warp[live])


def _copy(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    """cp.async: the bytes arrive as late as a wait allows."""
    if "commit_group" in step.op:
        cta.copies.append([])
    elif "wait_group" in step.op or "wait_all" in step.op:
        left = int(step.args[0]) if step.args else 0
        while len(cta.copies) - 1 > left:
            for arrive in cta.copies.pop(0):
                arrive()
    else:
        live, size = cta.all if mask is None else mask, int(step.args[2], 0)
        short = len(step.args) > 3
        wanted = cta.get(step.args[3], "u", 32)[live] if short else np.full(live.sum(), size, np.uint32)
        if not set(np.unique(wanted)) <= {0, size}:
            raise Fault("cp.async of a part")
        warps, raw, some = cta.warp[live], np.zeros((int(live.sum()), size), np.uint8), wanted > 0
        if some.any():
            raw[some] = cta.memory.load(cta.address(step.args[1]).astype(np.uint64)[live][some], size)
        places = cta.shared.begin_copy(cta.address(step.args[0])[live], size, warps)
        cta.copies[-1].append(lambda: cta.shared.end_copy(places, raw, warps))


def _barrier(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    """A barrier of all threads; one of a single warp holds nothing up here, because a warp's lanes go together."""
    if "warp" not in step.op:
        if step.args[0] != "0" or len(step.args) > 1:
            raise Fault("a barrier of some of the threads")
        cta.shared.barriers += 1


def _nothing(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    """Fences order one thread's accesses, and here every access happens in its order."""


def _shuffle(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    x, far, me = cta.get(step.args[1], "b", 32), cta.get(step.args[2], "u", 32).astype(np.int64), cta.lane
    lane = {"idx": far % 32, "bfly": me ^ far, "up": me - far, "down": me + far}[step.op[2]]
    lane = np.where((lane < 0) | (lane > 31), me, lane)
    cta.put(step.args[0].split("|")[0], x[cta.warp * 32 + lane], mask)


def _vote(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    live = (cta.predicate(step.args[1]) & (cta.all if mask is None else mask)).reshape(-1, 32)
    if "ballot" in step.op:
        found = (live.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)
    else:
        found = live.any(1) if "any" in step.op else live.all(1)
    cta.put(step.args[0], np.repeat(found, 32), mask)


def _reduce(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    x = cta.get(step.args[1], "s" if step.kind[0] == "s" else "u", 32).reshape(-1, 32)
    how = {"add": np.sum, "min": np.min, "max": np.max}[step.op[2]]
    cta.put(step.args[0], np.repeat(how(x, axis=1).astype(x.dtype), 32), mask)


def _add_to_shared(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    """An atomic addition; of two warps no barrier is needed between them, only before and after."""
    if "shared" not in step.op or "add" not in step.op:
        raise Fault("an atomic operation on global memory, or another than an addition")
    to, address = (step.args[0], 1) if step.op[0] == "atom" else ("_", 0)
    live, added = cta.all if mask is None else mask, cta.get(step.args[address + 1], "u", 32)
    places = cta.shared.places(cta.address(step.args[address]), 4, "atom")
    before = np.zeros(cta.n, np.uint32)
    for i in np.nonzero(live)[0]:
        cell = cta.shared.bytes[places[i]].view(np.uint32)
        before[i] = cell[0]
        cta.shared.bytes[places[i]] = (cell + added[i]).view(np.uint8)
    cta.shared.written[places[live]], cta.shared.writer[places[live]] = cta.shared.barriers, -2
    cta.put(to, before, mask)


def _matrix(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    """ldmatrix, stmatrix: 8 x 8 numbers of 16 bits, the addresses of whose rows come from eight lanes."""
    storing, turned = step.op[0] == "stmatrix", "trans" in step.op
    count = next(int(part[1:]) for part in step.op if re.fullmatch(r"x\d", part))
    registers, where = members(step.args[storing]), cta.address(step.args[not storing])
    for i in range(count):
        rows = where.reshape(-1, 32)[:, i * 8 : i * 8 + 8].reshape(-1)
        warps = np.repeat(np.arange(cta.n // 32), 8)
        if storing:
            tile = cta.get(registers[i], "b", 32).copy().view(np.uint16).reshape(-1, 8, 8)
            tile = np.ascontiguousarray(tile.transpose(0, 2, 1) if turned else tile)
            cta.shared.store(rows, 16, tile.view(np.uint8).reshape(-1, 16), warps, "stmatrix")
        else:
            tile = cta.shared.load(rows, 16, warps, "ldmatrix").view(np.uint16).reshape(-1, 8, 8)
            tile = np.ascontiguousarray(tile.transpose(0, 2, 1) if turned else tile)
            cta.put(registers[i], tile.reshape(-1, 2).view(np.uint32).ravel(), mask)


STEPS: dict[str, Step] = {
    "ld": _load, "st": _store, "cp": _copy, "bar": _barrier, "barrier": _barrier, "shfl": _shuffle, "vote": _vote,
    "redux": _reduce, "ldmatrix": _matrix, "stmatrix": _matrix,
    **dict.fromkeys(("membar", "fence", "nanosleep"), _nothing),
    **dict.fromkeys(("atom", "red"), _add_to_shared),
}  # fmt: skip
