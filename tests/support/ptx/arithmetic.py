"""Instructions that compute with registers."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from . import Fault
from .lanes import F, Lanes, S, U
from .memories import Array
from .text import Instruction, members

Step = Callable[[Lanes, Instruction, "Array | None"], None]
BITS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
UNARY = {
    "ex2": np.exp2, "rcp": lambda v: 1 / v, "sqrt": np.sqrt, "rsqrt": lambda v: 1 / np.sqrt(v), "lg2": np.log2,
    "tanh": np.tanh,
}  # fmt: skip
ORDERED = {
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
    "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
OPPOSITE = {"geu": "lt", "gtu": "le", "ltu": "ge", "leu": "gt"}  # true too if one of the numbers is NaN


def _move(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    (kind, width), (to, source) = step.kind, step.args
    if source.startswith("{"):
        parts = members(source)
        size = width // len(parts)
        value = np.zeros(cta.n, U[width])
        for i, part in enumerate(parts):
            value |= cta.get(part, "b", size).astype(U[width]) << U[width](i * size)
        cta.put(to, value, mask)
    elif to.startswith("{"):
        parts, value = members(to), cta.get(source, "b", width)
        size = width // len(parts)
        for i, part in enumerate(parts):
            cta.put(part, (value >> U[width](i * size)).astype(U[size]), mask)
    else:
        cta.put(to, cta.get(source, kind if kind in "fp" else "b", width), mask)


def _compare(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    kind, width = step.kind
    x, y = (cta.get(operand, kind, width) for operand in step.args[1:3])
    how, unordered = step.op[1], (x != x) | (y != y)
    if how in OPPOSITE:
        found = ~ORDERED[OPPOSITE[how]](x, y)
    elif how in ("nan", "num"):
        found = unordered if how == "nan" else ~unordered
    elif how in ("neu", "equ"):
        found = (x != y) | unordered if how == "neu" else (x == y) | unordered
    else:
        found = ORDERED[how](x, y) & (~unordered if kind == "f" else True)
    if step.op[2] in BITS:
        found = BITS[step.op[2]](found, cta.predicate(step.args[3]))
    cta.put(step.args[0], found, mask)


def _select(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    _, width = step.kind
    yes, no = (cta.get(operand, "b", width) for operand in step.args[1:3])
    cta.put(step.args[0], np.where(cta.get(step.args[3], "p", 1), yes, no), mask)


def _bits(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    kind, width = step.kind
    operands = [cta.get(operand, "p" if kind == "p" else "b", width) for operand in step.args[1:]]
    cta.put(step.args[0], ~operands[0] if step.op[0] == "not" else BITS[step.op[0]](*operands), mask)


def _shift(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    kind, width = step.kind
    x = cta.get(step.args[1], "s" if kind == "s" else "b", width)
    far = cta.get(step.args[2], "u", 32)
    near = np.minimum(far, width - 1).astype(U[width]).view(x.dtype)
    found, over = (x << near, np.zeros_like(x)) if step.op[0] == "shl" else (x >> near, np.where(x < 0, ~x * 0 - 1, 0))
    cta.put(step.args[0], np.where(far >= width, over.astype(x.dtype), found), mask)


def _field(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    kind, width = step.kind
    unit, first, length = U[width], int(step.args[2]), int(step.args[3])
    low = unit((1 << length) - 1)
    found = (cta.get(step.args[1], "b", width) >> unit(first)) & low
    if kind == "s":
        found = np.where((found >> unit(length - 1)) & unit(1), found | ~low, found)
    cta.put(step.args[0], found.astype(unit), mask)


def _one(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    if step.op[-1] in ("bf16x2", "f16x2"):
        bits = cta.get(step.args[1], "b", 32)
        cta.put(step.args[0], bits ^ 0x80008000 if step.op[0] == "neg" else bits & 0x7FFF7FFF, mask)
        return
    kind, width = step.kind
    x = cta.get(step.args[1], "s" if kind == "b" else kind, width)
    cta.put(step.args[0], -x if step.op[0] == "neg" else np.abs(x), mask)


def _quotient(x: Array, y: Array, kind: str) -> Array:
    """Rounded to zero, as in C; a division by zero gives all ones, as a GPU does."""
    if kind == "f":
        return x / y
    sign = np.where((x < 0) ^ (y < 0), -1, 1) if kind == "s" else 1
    wide = np.abs(x.astype(np.int64)) // np.maximum(np.abs(y.astype(np.int64)), 1) * sign
    return np.where(y == 0, ~np.zeros_like(x), wide.astype(x.dtype))


def _pairs(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    """Two 16-bit integers in a register."""
    kind = np.int16 if step.op[-1].startswith("s") else np.uint16
    x, y = (np.ascontiguousarray(cta.get(operand, "b", 32)).view(kind) for operand in step.args[1:3])
    how = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}[step.op[0]]
    cta.put(step.args[0], how(x, y).view(np.uint32), mask)


def _compute(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    if step.op[-1] in ("s16x2", "u16x2"):
        return _pairs(cta, step, mask)
    (kind, width), op = step.kind, step.op[0]
    x, y = (cta.get(operand, kind, width) for operand in step.args[1:3])
    if "wide" in step.op:
        width *= 2
        x, y = (v.astype((S if kind == "s" else U)[width]) for v in (x, y))
    if "hi" in step.op:
        if width == 64:
            raise Fault(f"no such product is known: {step.text}")
        wide = np.int64 if kind == "s" else np.uint64
        found = ((x.astype(wide) * y.astype(wide)) >> wide(width)).astype(x.dtype)
    elif op in ("mad", "fma"):
        z = cta.get(step.args[3], kind, width)
        found = (x.astype(np.float64) * y + z).astype(F[width]) if kind == "f" else x * y + z
    elif op == "div":
        found = _quotient(x, y, kind)
    elif op == "rem":
        found = x - _quotient(x, y, kind) * y
    elif op in ("min", "max"):
        names = {"min": (np.minimum, np.fmin), "max": (np.maximum, np.fmax)}[op]
        found = names[kind == "f"](x, y)
    else:
        found = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}[op](x, y)
    cta.put(step.args[0], found, mask)
    return None


def _function(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    _, width = step.kind
    cta.put(step.args[0], UNARY[step.op[0]](cta.get(step.args[1], "f", width)).astype(F[width]), mask)


def to_bfloat16(x: Array) -> Array:
    """The bits of float32 numbers rounded to bfloat16."""
    bits = x.view(np.uint32).astype(np.uint64)
    return np.where(np.isnan(x), 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _convert(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    to, source = step.op[-2:]
    narrow = {"bf16": to_bfloat16, "f16": lambda x: x.astype(np.float16).view(np.uint16)}
    if to in ("bf16x2", "f16x2"):
        high, low = (narrow[to[:-2]](cta.get(operand, "f", 32)).astype(np.uint32) for operand in step.args[1:3])
        found: Array = (high << 16) | low
    elif to == "bf16":
        found = to_bfloat16(cta.get(step.args[1], "f", 32))
    elif source == "bf16":
        found = from_bfloat16(cta.get(step.args[1], "b", 16)).astype(F[int(to[1:])])
    elif to == "tf32":
        bits = cta.get(step.args[1], "b", 32).astype(np.uint64)
        found = ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32)
    else:
        x = cta.get(step.args[1], source[0], int(source[1:]))
        found = x.astype({"u": U, "b": U, "s": S, "f": F}[to[0]][int(to[1:])])
    cta.put(step.args[0], found, mask)


def _permute(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    x, y, chosen = (cta.get(operand, "b", 32).astype(np.uint64) for operand in step.args[1:4])
    both, found = x | (y << np.uint64(32)), np.zeros(cta.n, np.uint64)
    for i in range(4):
        byte = (chosen >> np.uint64(4 * i)) & np.uint64(7)
        found |= ((both >> (byte * np.uint64(8))) & np.uint64(255)) << np.uint64(8 * i)
    cta.put(step.args[0], found.astype(np.uint32), mask)


def _count_bits(cta: Lanes, step: Instruction, mask: Array | None) -> None:
    cta.put(step.args[0], np.bitwise_count(cta.get(step.args[1], "b", step.kind[1])).astype(np.uint32), mask)


STEPS: dict[str, Step] = {
    "mov": _move, "setp": _compare, "selp": _select, "bfe": _field, "neg": _one, "abs": _one, "cvt": _convert,
    "prmt": _permute, "popc": _count_bits,
    **dict.fromkeys((*BITS, "not"), _bits),
    **dict.fromkeys(("shl", "shr"), _shift),
    **dict.fromkeys(("add", "sub", "mul", "mad", "div", "rem", "min", "max", "fma"), _compute),
    **dict.fromkeys(UNARY, _function),
}  # fmt: skip
