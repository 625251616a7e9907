"""The command ``topkast export``: a checkpoint, and the code of its architecture, to an ONNX file."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from topkast.compiler.checkpoint.file import load
from topkast.compiler.export.api import export
from topkast.runtime.errors import ConfigError

from .answer import Answer

NAME = "export"
HELP = "write a checkpoint as an ONNX file; the model's code comes from a function of yours"
EXAMPLES = (
    "topkast export checkpoint.safetensors model.onnx --model train:make_model --shape 8x64",
    "topkast export checkpoint.safetensors model.onnx --model train:make_model --inputs train:example_inputs",
    "topkast export checkpoint.safetensors small.onnx --model train:make_model --shape 1x3x224x224 --precision int8",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument("checkpoint", type=Path, help="a file that topkast.save wrote")
    parser.add_argument("file", type=Path, help="the ONNX file to write")
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns the plain model, as before topkast.compile; a checkpoint "
        "holds no code. The module is imported from the current folder or from the installed packages",
    )
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--inputs", metavar="MODULE:FUNCTION", help="a function that makes example inputs")
    inputs.add_argument("--shape", type=_shape, metavar="8x64", help="the model takes one float tensor of this shape")
    parser.add_argument("--format", default="auto", help="how weights are stored (default: auto)")
    parser.add_argument("--precision", default="fp32", help="fp32, fp16 or int8 (default: fp32)")


def answer(args: argparse.Namespace) -> Answer:
    """Load the checkpoint for inference, and export the model."""
    model = function(args.model, "--model")()
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"--model {args.model}: returns a {type(model).__name__}, and not a torch.nn.Module")
    inputs = torch.randn(args.shape) if args.inputs is None else function(args.inputs, "--inputs")()
    load(model, args.checkpoint, inference=True)
    result = export(model, args.file, inputs, format=args.format, precision=args.precision)
    data = {
        "file": str(result.path),
        "bytes": result.bytes,
        "dense_bytes": result.dense_bytes,
        "max_error": result.max_error,
        "formats": {site.name: site.format for site in result.sites},
        "notes": result.notes,
    }
    return Answer(data, [str(result)])


def function(place: str, option: str) -> Callable[[], Any]:
    """The function that ``module:function`` names.

    Args:
        place: a module and a name in the module, with a colon between.
        option: the option that gave the place, for messages.

    Raises:
        ConfigError: the place is not of this form, the module cannot be imported, or the module has no such function.
    """
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"{option} {place}: must be MODULE:FUNCTION, such as train:make_model")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ConfigError(f"{option} {place}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{option} {place}: the module {module!r} has no function {name!r}")
    return found


def _shape(text: str) -> tuple[int, ...]:
    try:
        sides = tuple(map(int, text.lower().split("x")))
    except ValueError:
        sides = ()
    if not sides or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write sizes with x between, such as 8x64")
    return sides
