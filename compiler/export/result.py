"""The result of ``topkast.export``: facts about the written file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topkast.passes.onnx.metadata import Shrunk, SiteResult


@dataclass(frozen=True)
class ExportResult:
    """Facts about the written file.

    Args:
        path: the path of the file.
        format: the format that the user asked for.
        precision: the precision of the sparse weights' values that the user asked for.
        bytes: the size of the file; if there is a separate file of weights, its size is included.
        dense_bytes: the size of all parameters and buffers, stored dense.
        max_error: the largest difference from PyTorch over all outputs and tried inputs; None if not verified.
        opset: the version of the standard operators.
        inputs, outputs: name -> shape; a dynamic dimension is given by its name.
        sites: how each weight of two dimensions or more is stored, and why.
        shrunk: for each weight with dead units, the removed units or the reason why they stayed.
        notes: further facts that the user should know.
    """

    path: Path
    format: str
    precision: str
    bytes: int
    dense_bytes: int
    max_error: float | None
    opset: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    sites: list[SiteResult]
    shrunk: list[Shrunk]
    notes: list[str]

    def __str__(self) -> str:
        def shapes(named: dict[str, list[int | str]]) -> str:
            return ", ".join(f"{name}[{', '.join(map(str, shape))}]" for name, shape in named.items())

        parity = "not verified" if self.max_error is None else f"max error {self.max_error:.2e} in ONNX Runtime"
        lines = [
            f"{self.path}: format {self.format}, {self.precision}, opset {self.opset}, {self.bytes:,} bytes "
            f"(dense weights {self.dense_bytes:,}), {parity}",
            f"  {shapes(self.inputs)} -> {shapes(self.outputs)}",
            *(
                f"  {count} weight{'s' * (count > 1)} {format}: {why}"
                for (format, why), count in Counter((site.format, site.why) for site in self.sites).items()
            ),
            *(f"  {line}" for line in dead_units(self.shrunk)),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def dead_units(shrunk: list[Shrunk]) -> list[str]:
    """One line of text for each weight with dead units."""
    return [
        f"{one.name} [{one.shape[0]} x {one.shape[1]}]: {one.dead_rows} rows and {one.dead_columns} columns dead, "
        f"{one.rows} and {one.columns} taken out" + "".join(f"; {why}" for why in one.kept)
        for one in shrunk
    ]
