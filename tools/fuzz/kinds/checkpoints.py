"""Damaged and hostile checkpoints: refused with nothing changed, or loaded whole and fit to train on."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

import topkast
from topkast.compiler.checkpoint.tensor_file import SUMS
from topkast.compiler.cli.main import main

from .trained import assert_sound, everything, net, same, train, trained

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([float("nan"), float("inf"), -1.5, "", "\x1b[2J", "float32", "load", "0.weight", [], {}, [[]]]),
    st.sampled_from([{"tensor": "0.weight"}, {"tensor": "no"}, {"dtype": "load"}, {"dict": [[[], 1]]}, {"tuple": 3}]),
    st.just([None] * 3),
)
DTYPES = ("float64", "float16", "int32", "uint8", "bool")
PARTS = ("config", "sites", "optimizer", "extra", "aliases", "times", "step", "format", "format_version")

bytes_changed = st.tuples(st.just("bytes"), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1))
cut = st.tuples(st.just("cut"), st.floats(0, 1))
# A path into the JSON of a part: the n-th key or element at each depth.
header = st.tuples(
    st.just("header"),
    st.sampled_from(PARTS),
    st.lists(st.integers(0, 30), max_size=6),
    st.sampled_from(["replace", "drop"]),
    ODD,
)
tensor = st.tuples(
    st.just("tensor"),
    st.integers(0, 40),
    st.sampled_from(["drop", "flat", "empty", "longer", "negative", "huge", "nan", *DTYPES]),
)
# (what is done to the file, whether the checksums go, how it is read)
cases = st.tuples(
    st.lists(st.one_of(bytes_changed, cut, header, header, tensor, tensor), min_size=1, max_size=2),
    st.sampled_from(["load", "load", "load", "model", "inference", "report"]),
)


@functools.cache
def base() -> tuple[bytes, Any, Any]:
    """A whole file; what the model that it was saved from holds; its dense weights."""
    model, optimizer = trained(4, seed=5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        topkast.save(model, path, optimizer)
        return path.read_bytes(), everything(model, optimizer), everything(model)


def changed(whole: bytes, changes: list[Any]) -> bytes:
    for change in changes:
        if not whole:
            break
        if change[0] == "bytes":
            damaged = bytearray(whole)
            for at, byte in change[1]:
                damaged[min(int(at * len(damaged)), len(damaged) - 1)] = byte
            whole = bytes(damaged)
        elif change[0] == "cut":
            whole = whole[: int(change[1] * len(whole))]
        else:
            whole = rewritten(whole, change)
    return whole


def rewritten(whole: bytes, change: Any) -> bytes:
    """The file as somebody writes it who knows the format: there are no checksums."""
    try:
        tensors = load(whole)
        metadata = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")]).get("__metadata__", {})
    except Exception:  # damaged before
        return whole
    metadata.pop(SUMS, None)
    if change[0] == "header":
        _, part, path, what, value = change
        metadata[part] = replaced(metadata.get(part, ""), path, what, value)
    elif tensors:
        name = sorted(tensors)[change[1] % len(tensors)]
        found = tensors.pop(name)
        if change[2] != "drop":
            tensors[name] = odd(found, change[2])
    return save(tensors, metadata)


def replaced(text: str, path: list[int], what: str, value: Any) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return str(value)
    if not path:
        return json.dumps(value)
    holder = found
    for depth, number in enumerate(path):
        if not isinstance(holder, (dict, list)) or not holder:
            break
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key: Any = keys[number % len(keys)]
        deeper = holder[key]
        if depth == len(path) - 1 or not isinstance(deeper, (dict, list)) or not deeper:
            if what == "drop":
                del holder[key]
            else:
                holder[key] = value
            break
        holder = deeper
    return json.dumps(found)


def odd(found: torch.Tensor, how: str) -> torch.Tensor:
    numbers = found.clone()
    if how == "flat":
        return numbers.reshape(-1)
    if how == "empty":
        return numbers.reshape(-1)[:0].clone()
    if how == "longer":
        return torch.cat([numbers.reshape(-1), numbers.reshape(-1)])
    if how in DTYPES:
        return numbers.to(getattr(torch, how))
    value = {"negative": -1, "huge": 1 << 62, "nan": float("nan")}[how]
    if how == "nan" and not numbers.is_floating_point():
        return numbers
    if not numbers.is_floating_point() and numbers.dtype != torch.int64:
        value = 255 if numbers.dtype == torch.uint8 else 1
    return numbers.fill_(value)


def check(case: Any) -> str:
    changes, way = case
    whole, saved, _ = base()
    file = changed(whole, list(changes))
    by_accident = all(change[0] in ("bytes", "cut") for change in changes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(file)
        if way == "report":
            with redirect_stdout(io.StringIO()) as shown:
                status = main(["report", str(path)])
            assert status in (0, 2) and not set("\x1b\x07") & set(shown.getvalue()), "a terminal is commanded"
            return "reported"
        if way == "inference":
            return inferred(path, by_accident)
        model, optimizer = trained(3)
        before = everything(model, optimizer)
        try:
            topkast.load(model, path, optimizer if way == "load" else None)
        except topkast.CheckpointError:
            assert same(everything(model, optimizer), before), "refused, and something has changed"
            train(model, optimizer, 1)
            return "refused"
        now = everything(model, optimizer)
        if by_accident:
            assert same(now[0], saved[0]) and (way == "model" or same(now, saved)), (
                "loaded, and it is not what was saved"
            )
        train(model, optimizer, 4)
        assert_sound(model)
        return "loaded"


def inferred(path: Path, by_accident: bool) -> str:
    model = net()
    before = dict(model.state_dict())
    before = {key: value.clone() for key, value in before.items()}
    try:
        topkast.load(model, path, inference=True)
    except topkast.CheckpointError:
        assert "_topkast" not in vars(model) and same(dict(model.state_dict()), before), "refused, and changed"
        return "refused"
    model(torch.ones(2, 12))
    if by_accident:
        twin, _ = trained(4, seed=5)
        assert torch.equal(model(torch.ones(2, 12)), twin.eval()(torch.ones(2, 12))), "loaded, and it is another model"
    return "loaded"
