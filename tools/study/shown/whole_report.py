"""All grids at once: TABLES.md and their pictures, from the files of results alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from topkast.tools.study.grid import read_grid
from topkast.tools.study.run_fields import StudyError
from topkast.tools.study.store import Results
from topkast.tools.study.tasks import task_of
from topkast.tools.study.times import times_of

from .estimates import Row, compared, estimate, rows
from .frontier_claims import claims
from .grid_tables import Sheet, baseline, sheets
from .topology import topology

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


def tables(folder: Path, held: Results, measured: Path, pairs: Path) -> str:
    """TABLES.md: each grid of ``folder`` with something to compare, under its own first lines; the table of the files
    in ``pairs``; and the grids without. ``measured`` is the file of times."""
    parts, without = [HEAD], []
    for path in sorted(folder.glob("*.toml")):
        try:
            times = times_of(path.stem, measured)
            found = rows(read_grid(path, times), held, times)
        except StudyError as error:
            without.append(f"`{path.stem}` ({str(error).removeprefix(f'{path}: ')})")
            continue
        if not (found := compared(found)):
            without.append(f"`{path.stem}`")
            continue
        made = [f"\n{sheet.markdown()}" for sheet in sheets(found, baseline(found))]
        if path.stem == "frontier":
            made.append(f"\n{claims(found).markdown()}")
        parts += [f"\n## {path.stem}\n\n{about(path)}\n", *made]
    parts.append(topology(pairs))
    if without:
        parts.append(f"\n## Not run\n\n{', '.join(without)}\n")
    return "".join(parts)


def about(path: Path) -> str:
    """The comment at the top of a grid."""
    lines = path.read_text().splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end])


def summary(found: Sequence[Row]) -> Sheet:
    """A table of docs/study.md: an arm a line, a task a column; order and costs are those of the first task."""
    tasks = list(dict.fromkeys(row.task for row in found))
    by_place = {(row.arm, row.task): row for row in found}
    headings = ["", *(f"{task}: {task_of(task).quality}" for task in tasks), "FLOPs, of dense", "state, MB"]
    lines = []
    for row in sorted((row for row in found if row.task == tasks[0]), key=Row.mean):
        each = [_short(by_place[row.arm, task]) if (row.arm, task) in by_place else "-" for task in tasks]
        costs = [f"{row.costs['flops']:.2f}", f"{row.costs['bytes'] / 1e6:.2f}"] if row.costs else ["-", "-"]
        lines.append([row.arm, *each, *costs])
    return Sheet("", headings, lines)


def _short(row: Row) -> str:
    if not row.qualities:
        return "diverged" if row.diverged else "not run"
    found = estimate(list(row.qualities.values()))
    figure = f"{found.mean:.2f}"
    if found.count > 1:
        figure += f" [{found.mean - found.half:.2f}, {found.mean + found.half:.2f}]"
    return figure + f", n = {found.count}" + f" ({row.diverged} diverged)" * bool(row.diverged)
