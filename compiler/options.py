"""The record of one option: its name, its default, its check and its meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from topkast.runtime.errors import ConfigError

Check = Callable[[str, Any], Any]  # (name, value) -> the normalised value, or a ConfigError if it is not allowed


def anything(name: str, value: Any) -> Any:
    """The check that accepts every value, for an option whose value can be checked only with the model."""
    return value


@dataclass(frozen=True)
class Option:
    """One argument of :func:`topkast.compile`.

    Args:
        name: the name of the argument.
        default: the value if the argument is not given.
        annotation: the type, as the signature shows it.
        check: returns the normalised value, or raises ConfigError.
        says: the meaning in one sentence, for the table in the docs and as the first sentence in the docstring.
        more: further sentences of the docstring.
        kept_by_site: whether the option is a field of every site's :class:`topkast.runtime.rule.Rule`.
        free_at_load: whether a checkpoint may be loaded into a model with another value of the option.
    """

    name: str
    default: Any
    annotation: str
    check: Check
    says: str
    more: str = ""
    kept_by_site: bool = False
    free_at_load: bool = False


def option(default: Any, says: str, more: str = "", check: Check = anything, **marks: bool) -> Any:
    """A field of a dataclass that is a table of options; see :class:`Option`."""
    return field(default=default, metadata={"check": check, "says": says, "more": more, **marks})


def options(table: type) -> list[Option]:
    """The records of a dataclass whose fields are made by :func:`option`, in their order."""
    return [Option(found.name, found.default, str(found.type), **found.metadata) for found in fields(table)]


def pick(table: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``arguments`` that are options of this table."""
    return {one.name: arguments[one.name] for one in options(table) if one.name in arguments}


def number(low: float, high: float = math.inf, whole: bool = False) -> Check:
    """A number in [low, high), never a bool."""

    def check(name: str, value: Any) -> Any:
        fits = isinstance(value, int) or (isinstance(value, float) and not whole)
        if not fits or isinstance(value, bool) or not low <= value < high:
            kind = "an integer" if whole else "a number"
            upper = f"{high:g})" if high < math.inf else "inf)"
            raise ConfigError(f"{name}={value!r}: must be {kind} in [{low:g}, {upper}")
        return value

    return check


def integer(low: int) -> Check:
    """An integer, at least ``low``."""
    return number(low, whole=True)


def optional(check: Check) -> Check:
    """None, or a value that ``check`` allows."""
    return lambda name, value: None if value is None else check(name, value)


def choice(*allowed: str | bool | None) -> Check:
    """One of the allowed values; 1 is not accepted as True."""

    def check(name: str, value: Any) -> Any:
        if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
            raise ConfigError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")
        return value

    return check


def globs(name: str, value: Any) -> tuple[str, ...]:
    """One glob over parameter names, or several globs."""
    several = value if isinstance(value, Iterable) else ()
    found = (value,) if isinstance(value, str) else tuple(several)
    if not found or not all(isinstance(glob, str) for glob in found):
        raise ConfigError(f"{name}={value!r}: must be a glob over parameter names, or a list of them")
    return found


def device_mesh(name: str, value: Any) -> Any:
    """A ``torch.distributed.device_mesh.DeviceMesh`` of one dimension, or of two."""
    if type(value).__name__ != "DeviceMesh" or value.ndim > 2:
        raise ConfigError(f"{name}={value!r}: must be a DeviceMesh of one dimension or two, as fully_shard takes")
    return value


def block_shape(name: str, value: Any) -> tuple[int, int]:
    """Two positive integers."""
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(type(b) is int and b > 0 for b in value)):
        raise ConfigError(f"{name}={value!r}: must be two positive integers, (rows, columns)")
    return value[0], value[1]


def shares(*names: str) -> Check:
    """A name of a rule that distributes densities over the layers, or a dict from globs to (fwd, bwd)."""
    by_name = choice(*names)

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return by_name(name, value)
        if not value:
            raise ConfigError(f"{name}={{}}: must name at least one glob")
        for glob, pair in value.items():
            if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
                raise ConfigError(f"{name}[{glob!r}]={pair!r}: must be (fwd, bwd)")
        return {glob: tuple(pair) for glob, pair in value.items()}

    return check
