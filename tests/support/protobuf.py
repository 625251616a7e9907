"""The passes of ``passes/onnx`` on protobuf, as which tests build their graphs and read what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import onnx
import onnx_ir as ir

from topkast.passes.onnx import convert as conversion
from topkast.passes.onnx.blocks import Block
from topkast.passes.onnx.metadata import Shrunk, SiteResult
from topkast.passes.onnx.shrink import remove_dead_units
from topkast.passes.onnx.writer import serialize


def convert(model: onnx.ModelProto, wanted: conversion.Wanted) -> list[SiteResult]:
    """:func:`topkast.passes.onnx.convert.convert`, in place."""
    return _in_place(model, conversion.convert, wanted)[0]


def shrink(model: onnx.ModelProto, blocks: Iterable[Block] = ((1, 1),)) -> tuple[list[Shrunk], dict[str, str]]:
    """:func:`topkast.passes.onnx.shrink.remove_dead_units.shrink`, in place."""
    return _in_place(model, remove_dead_units.shrink, blocks)


def rewrite_nothing(model: onnx.ModelProto) -> None:
    """Read and written, in place: what a file is that no pass changes."""
    _in_place(model, lambda read: None)


def _in_place(model: onnx.ModelProto, run: Callable[..., Any], *arguments: Any) -> Any:
    read = ir.from_proto(model)
    result = run(read, *arguments)
    model.CopyFrom(serialize(read))
    return result
