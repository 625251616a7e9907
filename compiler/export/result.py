"""The result of ``topkast.export``: facts about the written file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from topkast.compiler.report.groups import by_kind, grouped, label, with_counts
from topkast.compiler.report.numbers import plural
from topkast.compiler.report.shown.plain_text import labelled, to_text

if TYPE_CHECKING:
    from topkast.compiler.export.int8.calibrate import Calibration
    from topkast.passes.onnx.metadata import Shrunk, SiteResult

NAMES = 4  # groups of weights that lost dead units
REASONS = 2  # for each format, and for dead units that stayed
DENSE = "dense"


@dataclass(frozen=True)
class ExportResult:
    """Facts about the written file.

    ``print`` shows the sizes, the parity with PyTorch, and what the export changed; ``topkast inspect`` shows every
    weight of the file.

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
        int8_error: with precision "int8", the change of the file's outputs by int8: the root mean square of the
            difference from the float32 model on the example inputs, as a share of that of the output; the largest of
            all outputs. None for other precisions, or if not verified. ``max_error`` is then that of the same file in
            float32, and every int8 product was equal to integer arithmetic in PyTorch, bit for bit.
        calibration: what int8 changes on the batches of ``calibration``; None without such batches.
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
    int8_error: float | None = None
    calibration: Calibration | None = None

    def __rich__(self) -> Table:
        return labelled(self._sentences())

    def __str__(self) -> str:
        return to_text(self)

    def _sentences(self) -> Iterator[tuple[str, str]]:
        """(label, sentence) about the file, and about all that the export changed."""
        of_dense = f"{self.bytes / self.dense_bytes:.1%} of {self.dense_bytes:,} dense" if self.dense_bytes else ""
        yield "file", str(self.path)
        yield "size", f"{self.bytes:,} bytes" + (f", {of_dense}" if of_dense else "")
        yield "format", f"{self.format}, {self.precision}, opset {self.opset}"
        yield "parity", self._parity()
        if self.int8_error is not None:
            yield "int8", f"products exact to the bit; outputs change by {self.int8_error:.2%} (root mean square)"
        if self.calibration is not None:
            yield "calibration", _changes(self.calibration)
        yield "inputs", _shapes(self.inputs)
        yield "outputs", _shapes(self.outputs)
        for format in sorted({site.format for site in self.sites}, key=lambda format: format == DENSE):
            whys = Counter(site.why for site in self.sites if site.format == format)
            yield format, with_counts(by_kind(whys), REASONS, "weight")
        times = _times(self.sites)
        if times:
            yield "timed here", times
        yield from dead_units(self.shrunk)
        for note in self.notes:
            yield "note", note

    def _parity(self) -> str:
        if self.max_error is None:
            return "not verified"
        same = "" if self.int8_error is None else ", of the same file in float32"
        return f"max error {self.max_error:.2e} in ONNX Runtime{same}"


def _times(sites: list[SiteResult]) -> str:
    """The times that decided between formats, beside the dense products' times."""
    found = dict[str, list[float]]()
    for site in sites:
        for name, share in site.times.items():
            found.setdefault(name, []).append(share)
    ranges = (f"{name} {min(times):.2f} to {max(times):.2f}" for name, times in found.items())
    return f"{', '.join(ranges)} of the dense products' time" if found else ""


def _changes(measured: Calibration) -> str:
    """What int8 changes, beside ONNX Runtime's int8 of the dense model."""
    dense = "failed" if measured.dense_int8 is None else f"{measured.dense_int8:+.2%}"
    what = f"loss {measured.loss:.4g}: " if measured.loss is not None else "outputs: "
    batches = f"{measured.batches:,} batch" + "es" * (measured.batches != 1)
    kept = f"; {plural(len(measured.kept), 'weight')} in float32 for the budget" if measured.kept else ""
    return f"{what}{measured.int8:+.2%} by this file, {dense} by dense int8 of ONNX Runtime ({batches}){kept}"


def dead_units(shrunk: list[Shrunk]) -> Iterator[tuple[str, str]]:
    """(label, sentence) about the dead units that were removed, and about those that stayed; nothing if there are
    none."""
    cut = [one for one in shrunk if one.rows or one.columns]
    if cut:
        counts = (
            f"{plural(sum(one.rows for one in cut), 'row')} and {plural(sum(one.columns for one in cut), 'column')}"
        )
        groups = [label(names) for names in grouped(one.name for one in cut)]
        more = f" and {len(groups) - NAMES} more" if len(groups) > NAMES else ""
        yield "removed", f"{counts} of dead units: {', '.join(groups[:NAMES])}{more}"
    kept = Counter[str]()
    for one in shrunk:
        for text in one.kept:  # "3 rows: why"
            number, _, said = text.partition(" ")
            kept[said.partition(": ")[2]] += int(number)
    if kept:
        yield "not removed", with_counts(by_kind(kept), REASONS, "dead unit")


def _shapes(named: dict[str, list[int | str]]) -> str:
    return ", ".join(f"{name}[{', '.join(map(str, shape))}]" for name, shape in named.items())
