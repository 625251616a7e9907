"""All grids at once: TABLES.md and the page's pictures, from the files of results alone."""

from __future__ import annotations

import itertools
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from topkast.tools.study.grid import read_grid
from topkast.tools.study.run_fields import StudyError
from topkast.tools.study.store import Results
from topkast.tools.study.times import times_of

from .estimates import Row, compared, rows
from .frontier_claims import claims
from .grid_tables import baseline, sheets
from .plot import plot

PICTURES = ("tuned", "frontier", "rivals", "range-balanced", "rates")  # grids whose picture is kept
HEAD = """# Tables of the study

Made by `python -m topkast.tools.study report` from `runs.jsonl.gz` and `times.json`; nothing here is written by hand.
Lower is better in every quality. A figure is a mean over seeds, its standard deviation and the 95 % interval of the
mean (Student's t); the difference from an arm is taken seed by seed, over the seeds that ended well in both, with half
the width of its interval. Seeds that diverged (a loss that is not finite) or were not run are counted, and in no mean.
In `tuned`, `tuned-digits` and `frontier` each arm has two rates, for matrices and for norms, biases and embeddings,
chosen by as many tuning runs an arm, which train without an eighth of the training data and are judged by that eighth.
Dense models are in these grids only. In the others an arm that had several rates is shown at the best of them, chosen
by these same figures: that favours arms that had more rates, and makes intervals somewhat too narrow. Each interval is
for its figure alone, none is corrected for how many there are. FLOPs are those of the products of weights that can be
sparse. Measured time is steps x the median ratio of the compiled step to the compiled dense one (one thread, with its
share of the refreshes) x the dense step; a dash: not measured.
"""


def found_of(folder: Path, held: Results, measured: Path) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of each grid in ``folder`` with something to compare; and, for a line, the grids without.

    Args:
        held: the results.
        measured: the file of times.
    """
    found, without = {}, []
    for path in sorted(folder.glob("*.toml")):
        try:
            times = times_of(path.stem, measured)
            own = compared(rows(read_grid(path, times), held, times))
        except StudyError as error:
            without.append(f"`{path.stem}` ({str(error).removeprefix(f'{path}: ')})")
        else:
            if own:
                found[path.stem] = own
            else:
                without.append(f"`{path.stem}`")
    return found, without


def report(folder: Path, out: Path, held: Results, measured: Path, console: Console) -> None:
    """Write TABLES.md and the pictures into ``out``, and take away pictures of what is gone."""
    found, without = found_of(folder, held, measured)
    (out / "TABLES.md").write_text(tables(folder, found, without), encoding="utf-8")
    for old in out.glob("*.svg"):
        old.unlink()
    for name in PICTURES:
        if name in found:
            console.print(f"wrote {escape(str(plot(found[name], name, out / f'{name}.svg')))}", soft_wrap=True)
    if without:
        console.print(f"[yellow]left out:[/] {escape(', '.join(without))}", highlight=False, soft_wrap=True)


def tables(folder: Path, found: dict[str, list[Row]], without: list[str]) -> str:
    """TABLES.md: each grid under its own first lines, and the grids without anything to compare."""
    parts = [HEAD]
    for name, own in found.items():
        parts.append(f"\n## {name}\n\n{about(folder / f'{name}.toml')}\n")
        parts += [f"\n{sheet.markdown()}" for sheet in sheets(own, baseline(own))]
        if name == "frontier":
            parts.append(f"\n{claims(own).markdown()}")
    return "".join([*parts, *([f"\n## Not run\n\n{', '.join(without)}\n"] if without else [])])


def about(path: Path) -> str:
    """The comment at the top of a grid."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return "\n".join(line.removeprefix("#").strip() for line in lines)
