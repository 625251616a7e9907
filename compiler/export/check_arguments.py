"""Check the arguments of ``topkast.export`` that need no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topkast.passes.onnx.formats import AUTO, FORMATS
from topkast.runtime.errors import ConfigError

from .unfinished import check_folder

PRECISIONS = ("fp32", "fp16", "int8")
OPSETS = range(18, 24)


def check_arguments(
    path: Path, format: Any, precision: Any, library: Any, opset: Any, use_cache: Any, dynamic_shapes: Any
) -> None:
    """Raise ConfigError or ExportError as ``topkast.export`` describes."""
    formats = (AUTO, *FORMATS)
    if format not in formats:
        raise ConfigError(f"format={format!r}: must be one of {', '.join(map(repr, formats))}")
    precisions = (AUTO, *PRECISIONS)
    if precision not in precisions:
        raise ConfigError(f"precision={precision!r}: must be one of {', '.join(map(repr, precisions))}")
    if precision == AUTO and format != AUTO:
        raise ConfigError(f'precision="auto": is for format="auto", the format is {format!r}')
    if not isinstance(library, bool) or (format == "custom" and not library):
        raise ConfigError(f'library={library!r}: must be True or False, and format="custom" needs True')
    if type(opset) is not int or opset not in OPSETS:
        raise ConfigError(f"opset={opset!r}: must be an integer from {OPSETS[0]} to {OPSETS[-1]}")
    if not isinstance(use_cache, bool):
        raise ConfigError(f"use_cache={use_cache!r}: must be True or False")
    if use_cache and dynamic_shapes is not None:
        raise ConfigError("dynamic_shapes: must be None with use_cache=True, which names all axes that vary")
    check_folder(path)
