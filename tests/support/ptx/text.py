"""PTX text -> instructions."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """``@guard op.op.op args``. guard: (register, whether it is negated)."""

    guard: tuple[str, bool] | None
    op: tuple[str, ...]
    args: tuple[str, ...]
    text: str

    @functools.cached_property
    def kind(self) -> tuple[str, int]:
        """Kind (u, s, b, f, p) and width of the type at the end; ("", 0) if there is none."""
        found = re.fullmatch(r"([usbf])(\d+)", self.op[-1])
        return (found[1], int(found[2])) if found else ("p", 1) if self.op[-1] == "pred" else ("", 0)


@dataclass(frozen=True)
class Program:
    """The kernel of a module: instructions, places of labels, widths of registers, and names of parameters."""

    name: str
    parameters: list[str]
    instructions: list[Instruction]
    labels: dict[str, int]
    widths: dict[str, int]


def split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth, part = [], 0, ""
    for letter in text:
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and not depth:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()] if part.strip() else parts


def members(operand: str) -> list[str]:
    """``{a, b}`` or ``a`` as a list of registers."""
    return split(operand.strip("{} ")) if operand.startswith("{") else [operand]


@functools.cache
def parse(source: str) -> Program:
    source = re.sub(r"//[^\n]*", "", source)
    head = re.search(r"\.entry\s+(\w+)\((.*?)\)(.*?)\n\{", source, re.DOTALL)
    assert head is not None
    depth, end = 1, head.end()
    while depth:
        depth += (source[end] == "{") - (source[end] == "}")
        end += 1
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    widths: dict[str, int] = {}
    for raw in re.split(r";|(?<=:)\n", source[head.end() : end - 1]):
        statement = " ".join(raw.split())
        while True:
            label = re.match(r"([$\w]+):\s*", statement)
            debug = re.match(r"\.loc( \d+)+(, function_name \S+( \+ \d+)?, inlined_at \d+ \d+ \d+)?\s*", statement)
            if label:
                labels[label[1]] = len(instructions)
            elif not debug:
                break
            statement = statement[(label or debug).end() :]
        statement = statement.lstrip("{} ") if statement.startswith(("{", "}")) else statement
        if statement.startswith(".reg"):
            declared = re.match(r"\.reg \.(\w+) (.*)", statement)
            assert declared is not None
            width = 1 if declared[1] == "pred" else int(re.sub(r"\D", "", declared[1]))
            for name in split(declared[2]):
                many = re.match(r"(%?[\w$]+)<(\d+)>", name)
                names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
                widths.update(dict.fromkeys(names, width))
        elif statement and not statement.startswith("."):
            instructions.append(_instruction(statement))
    return Program(head[1], re.findall(r"\w+_param_\d+", head[2]), instructions, labels, widths)


def _instruction(statement: str) -> Instruction:
    guarded = re.match(r"@(!?)(%?\w+)\s+", statement)
    rest = statement[guarded.end() :] if guarded else statement
    op = re.match(r"[\w.:]+", rest)
    assert op is not None
    guard = (guarded[2], bool(guarded[1])) if guarded else None
    args = tuple(split(rest[op.end() :].replace("::", ".")))
    return Instruction(guard, tuple(op[0].replace("::", ".").split(".")), args, statement)
