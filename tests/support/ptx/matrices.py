"""Tensor cores: mma on registers; and wgmma, which a warp group starts and which then reads shared memory."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from . import Fault
from .arithmetic import Step, from_bfloat16
from .lanes import Lanes
from .memories import Array
from .text import Instruction, members

SWIZZLES = {0: (0, 16), 1: (3, 128), 2: (2, 64), 3: (1, 32)}  # mode of a descriptor -> bits, bytes of a row


def _sides(step: Instruction) -> tuple[int, int, int]:
    shape = next(part for part in step.op if re.fullmatch(r"m\d+n\d+k\d+", part))
    m, n, k = map(int, re.findall(r"\d+", shape))
    return m, n, k


def _numbers(raw: Array, kind: str) -> Array:
    """Bits as float32; raw has the width of the kind."""
    if kind == "bf16":
        return from_bfloat16(raw)
    return raw.view(np.float16).astype(np.float32) if kind == "f16" else (raw & np.uint32(0xFFFFE000)).view(np.float32)


def _unpacked(cta: Lanes, register: str, kind: str) -> Array:
    """A register's one or two numbers, [threads, 1 or 2]."""
    held = np.ascontiguousarray(cta.get(register, "b", 32))
    return _numbers(held if kind == "tf32" else held.view(np.uint16), kind).reshape(cta.n, -1)


def _mma(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    (m, n, k), kind = _sides(step), step.op[-2]
    if (m, n) != (16, 8) or kind not in ("bf16", "f16", "tf32"):
        raise Fault(f"no such product is known: {step.text}")
    to, left, right, plus = (members(operand) for operand in step.args)
    warps, lane = cta.n // 32, np.arange(32)
    row, column, per = lane // 4, lane % 4, 1 if kind == "tf32" else 2
    a, b = np.zeros((warps, 16, k), np.float32), np.zeros((warps, k, 8), np.float32)
    for i, register in enumerate(left):
        for j, value in enumerate(_unpacked(cta, register, kind).reshape(warps, 32, per).transpose(2, 0, 1)):
            a[:, row + 8 * (i % 2), column * per + j + 4 * per * (i // 2)] = value
    for i, register in enumerate(right):
        for j, value in enumerate(_unpacked(cta, register, kind).reshape(warps, 32, per).transpose(2, 0, 1)):
            b[:, column * per + j + 4 * per * i, row] = value
    total = a.astype(np.float64) @ b
    for i, register in enumerate(plus):
        total[:, row + 8 * (i // 2), 2 * column + i % 2] += cta.get(register, "f", 32).reshape(warps, 32)
    for i, register in enumerate(to):
        cta.put(register, total[:, row + 8 * (i // 2), 2 * column + i % 2].astype(np.float32).ravel(), mask)


def _tile(cta: Lanes, descriptor: int, rows: int, k: int, size: int, turned: bool) -> Array:
    """Places in shared memory of an operand [rows, k] with numbers of this size in bytes, as a descriptor has it."""
    start, lead, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    bits, width = SWIZZLES[descriptor >> 62 & 3]
    if descriptor >> 49 & 7:
        raise Fault("a descriptor with an offset")
    row, column = np.arange(rows)[:, None], np.arange(k)[None, :]
    if turned:
        per = width // size
        at = row % per * size + row // per * lead + column % 8 * width + column // 8 * stride
    elif bits:
        at = row // 8 * stride + row % 8 * width + column * size
    else:
        at = row // 8 * stride + row % 8 * 16 + column * size // 16 * lead + column * size % 16
    at = at + start
    at ^= ((at >> 7) & ((1 << bits) - 1)) << 4
    return cta.shared.places(at.ravel(), size, "wgmma")


def _wgmma(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    if "fence" in step.op:
        return
    if "commit_group" in step.op:
        cta.products.append([])
    elif "wait_group" in step.op:
        while len(cta.products) - 1 > int(step.args[0]):
            for finish in cta.products.pop(0):
                finish()
    else:
        cta.products[-1].append(_started(cta, step))


def _started(cta: Lanes, step: Instruction) -> Callable[[], None]:
    """Begin a product; what is returned finishes it, when it is waited for."""
    (_, n, k), kind, groups = _sides(step), step.op[-1], cta.n // 128
    size, in_registers, flags = 4 if kind == "tf32" else 2, step.args[1].startswith("{"), step.args[3:]
    turned = (False, False)
    if size == 2:
        turned = (False, flags[-1] == "1") if in_registers else (flags[3] == "1", flags[4] == "1")
    if flags[1:3] != ("1", "1"):
        raise Fault("a product with a changed sign")

    def places(operand: str, rows: int, swap: bool) -> list[Array]:
        held = cta.get(operand, "u", 64).reshape(groups, 128)
        if (held != held[:, :1]).any():
            raise Fault("the threads of a warp group have different descriptors")
        return [_tile(cta, int(one), rows, k, size, swap) for one in held[:, 0]]

    right = places(step.args[2], n, turned[1])
    left = [] if in_registers else places(step.args[1], 64, turned[0])
    for one in left + right:
        cta.shared.begin_read(one, "wgmma")
    held = [_unpacked(cta, one, kind).copy() for one in members(step.args[1])] if in_registers else []
    keep, sums, thread = cta.get(flags[0], "p", 1), members(step.args[0]), np.arange(128)
    row, column = 16 * (thread // 32) + thread % 32 // 4, 2 * (thread % 4)
    for name in sums:
        cta.summing[name] = cta.summing.get(name, 0) + 1

    def stored(where: Array, rows: int) -> Array:
        raw = cta.shared.bytes[where].view(np.uint16 if size == 2 else np.uint32)
        return _numbers(np.ascontiguousarray(raw.reshape(rows, k)), kind)

    def finish() -> None:
        for name in sums:
            cta.summing[name] -= 1
            if not cta.summing[name]:
                del cta.summing[name]
        for group in range(groups):
            mine = slice(group * 128, group * 128 + 128)
            if in_registers:
                a = np.zeros((64, k), np.float32)
                for i, values in enumerate(held):
                    for j, value in enumerate(values[mine].T):
                        per = len(values[0])
                        a[row + 8 * (i % 2), thread % 4 * per + j + 4 * per * (i // 2)] = value
            else:
                a = stored(left[group], 64)
            total = a.astype(np.float64) @ stored(right[group], n).astype(np.float64).T
            for i, name in enumerate(sums):
                register = cta.register(name)
                before = np.where(keep[mine], register[mine].view(np.float32), 0)
                after = before + total[row + 8 * (i // 2 % 2), 8 * (i // 4) + column + i % 2]
                register[mine] = after.astype(np.float32).view(np.uint32)
        for one in left + right:
            cta.shared.end_read(one)

    return finish


STEPS: dict[str, Step] = {"mma": _mma, "wgmma": _wgmma}
