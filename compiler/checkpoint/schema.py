"""The parts that a checkpoint's header may have. A file may come from a stranger: each part is checked before use."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from topkast.runtime.errors import CheckpointError

# The only names that are looked up in torch.
DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
        *("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    )
}
Check = Callable[[Any], bool]


def is_integer(value: Any) -> bool:
    """An integer of 64 bits that is not negative."""
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_integer, value))


def _is_churn(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and is_integer(value[0]) and all(map(_is_number, value[1:]))


SITE: dict[str, Check] = {
    "shape": _is_shape,
    "perm": _is_shape,
    "lead": is_integer,
    "block": lambda value: _is_shape(value) and len(value) == 2,
    "n_fwd": is_integer,
    "n_bwd": is_integer,
    "seed": is_integer,
    "churn": lambda value: isinstance(value, list) and all(map(_is_churn, value)),
}


def _is_site(value: Any) -> bool:
    return isinstance(value, dict) and all(key in value and check(value[key]) for key, check in SITE.items())


def _is_parameter(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | None) and _is_shape(value[1])


def _is_packed(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_packed, value))
    if not isinstance(value, dict):
        return True  # JSON has nothing else but numbers, strings, booleans and null
    if len(value) != 1:
        return False
    ((kind, content),) = value.items()
    if kind in ("tensor", "dtype"):
        return isinstance(content, str) and (kind == "tensor" or content in DTYPES)
    if kind == "tuple":
        return isinstance(content, list) and all(map(_is_packed, content))
    pairs = isinstance(content, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in content)
    return kind == "dict" and pairs and all(_is_key(key) and _is_packed(item) for key, item in content)


def _is_key(value: Any) -> bool:
    if isinstance(value, dict):
        return _is_packed(value) and all(_is_key(item) for item in value.get("tuple", [])) and "dict" not in value
    return not isinstance(value, list)


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("class"), str):
        return False
    groups = value.get("params")
    fits = isinstance(groups, list) and all(isinstance(g, list) and all(map(_is_parameter, g)) for g in groups)
    return fits and _is_packed(value.get("state")) and isinstance(value.get("state"), dict)


# Parts that hold one entry for each name.
ENTRIES: dict[str, Check] = {
    "sites": _is_site,
    "extra": _is_packed,
    "aliases": lambda value: isinstance(value, str),
    "dense": lambda value: isinstance(value, str),
}
PARTS: dict[str, Check] = {
    "config": lambda value: isinstance(value, dict) and isinstance(value.get("method", ""), str),
    "optimizer": _is_optimizer,
    "times": lambda value: True,  # what does not fit is not used
    **{key: lambda value: isinstance(value, dict) for key in ENTRIES},
}


def parsed(path: Path, header: Mapping[str, str], key: str) -> Any:
    """A part of the header as the JSON in it says.

    Raises:
        CheckpointError: the part is missing, is no JSON or has another form.
    """
    try:
        found = json.loads(header[key])
        fits = PARTS[key](found)
        bad = [name for name, entry in found.items() if not ENTRIES[key](entry)] if fits and key in ENTRIES else []
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header's {key!r} is missing or broken") from error
    if not fits:
        raise CheckpointError(f"{path}: the header's {key!r} is broken: its JSON has another form")
    if bad:
        raise CheckpointError(f"{path}: the header's {key!r} is broken: the entry of {bad[0][:200]!r} has another form")
    return found


def check_format(path: Path, header: Mapping[str, str], format: str, version: int, what: str, mine: str) -> None:
    """Raise CheckpointError if a file is of another format, or of a newer version.

    Args:
        path: the path of the file.
        header: the file's metadata.
        format, version: the format, and its last version that this program reads.
        what: what the file should be, for the message.
        mine: the version of this program.
    """
    if header.get("format") != format:
        raise CheckpointError(f"{path}: a safetensors file, but {what}")
    given = header.get("format_version", "")
    if not (given.isascii() and given.isdecimal() and len(given) < 6) or int(given) > version:
        raise CheckpointError(
            f"{path}: format version {given[:20] or 'unknown'}, this topkast ({mine}) reads up to {version}; "
            f"it was written by topkast {header.get('topkast_version', '?')}"
        )


def check_aliases(path: Path, header: Mapping[str, str]) -> dict[str, str]:
    """The further names of tensors: name -> the name under which the tensor is stored."""
    found: dict[str, str] = parsed(path, header, "aliases") if "aliases" in header else {}
    return found
