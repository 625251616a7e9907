"""What a file says of itself: one JSON text in its metadata, under the key ``topkast``."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

KEY = "topkast"


@dataclass(frozen=True)
class SiteResult:
    """How one weight was stored.

    Args:
        name: of the parameter, or of the constant in the file where it is no whole parameter.
        format: a name in :data:`topkast.passes.onnx.formats.FORMATS`.
        why: why this format, and if it is not the wanted one, why not that.
        shape: of the weight; of a matrix [out, in].
        block: (rows, columns) of a unit, None where it is stored dense.
        density: share of the entries that are not zero.
        bytes: of its constants in the file.
        dense_bytes: of the weight in float32.
        precision: of its values in the file: "fp32", "fp16" or "int8".
        times: format -> time of a product with the weight, divided by the dense product's; those that were timed. If
            precisions were timed too: "<format>, <precision>" -> time.
    """

    name: str
    format: str
    why: str
    shape: tuple[int, ...]
    block: tuple[int, int] | None
    density: float
    bytes: int
    dense_bytes: int
    precision: str = "fp32"
    times: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Shrunk:
    """Units of a weight that are dead, and what became of them.

    Args:
        name: of the parameter, or of the constant in the file where it is no whole parameter.
        shape: (output units, input units) before.
        dead_rows: output units that do not depend on the model's input: they read nothing, or constants.
        dead_columns: input units that no row reads, or that are constant.
        rows, columns: units taken out. A unit goes only from all tensors it is in, so more or fewer than are dead here.
        kept: why dead ones stayed: "count rows: reason" or "count columns: reason".
    """

    name: str
    shape: tuple[int, int]
    dead_rows: int
    dead_columns: int
    rows: int
    columns: int
    kept: list[str]


def write(
    model: onnx.ModelProto,
    format: str,
    precision: str,
    sites: Iterable[SiteResult],
    shrunk: Iterable[Shrunk],
    max_error: float | None,
    int8_error: float | None = None,
) -> None:
    """Put the record into ``model``.

    ``max_error`` is the largest difference from PyTorch, of a file with int8 that of the same file in float32.
    ``int8_error`` is the change of the outputs by int8. Both are None if they were not measured.
    """
    record = {
        "version": importlib.metadata.version("topkast"),
        "format": format,
        "precision": precision,
        "max_error": max_error,
        "int8_error": int8_error,
        "sites": [asdict(site) for site in sites],
        "shrunk": [asdict(weight) for weight in shrunk],
    }
    model.metadata_props.add(key=KEY, value=json.dumps(record))


def read(properties: Mapping[str, str]) -> dict[str, object] | None:
    """The record of a file's metadata, None where topkast did not write it."""
    return json.loads(properties[KEY]) if KEY in properties else None
