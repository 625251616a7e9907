"""The tables of the page docs/study.md, in Markdown, from the files of results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from topkast.tools.common.places import RESULTS
from topkast.tools.study.grid import read_grid
from topkast.tools.study.run_fields import StudyError
from topkast.tools.study.store import read
from topkast.tools.study.times import times_of

from .estimates import Row, rows
from .frontier_claims import claims
from .grid_tables import Sheet
from .whole_report import summary

FOLDER = RESULTS / "study"
GRIDS = Path(__file__).parents[1] / "grids"


def rivals() -> Sheet:
    """Top-KAST, as ``topkast.compile`` does it by default, beside its rivals."""
    return summary(_rows("rivals"))


def tuned() -> Sheet:
    """Top-KAST beside dense models, each at the two rates that its tuning runs chose."""
    return summary([*_rows("tuned"), *_rows("tuned-digits")])


def frontier() -> Sheet:
    """The four claims about the best model for a given cost."""
    return claims(_rows("frontier"))


def balanced() -> Sheet:
    """Means with sets chosen freely and with as many members in every row of blocks."""
    held = {(row.task, row.arm, dict(row.where)["fwd"]): row for row in _rows("range-balanced")}
    places = sorted({fwd for *_, fwd in held})
    lines = [
        [f"{task}, {arm}", *(_pair(held[task, arm, fwd], held[task, f"{arm}, balanced", fwd]) for fwd in places)]
        for task in dict.fromkeys(task for task, *_ in held)
        for arm in ("static", "topkast")
    ]
    return Sheet("", ["free / balanced", *map(str, places)], lines)


def rates() -> Sheet:
    """Bits per byte of Top-KAST less those of static sets, at every rate on its own."""
    held = {(row.arm, dict(row.where)["fwd"], row.lr): row for row in _rows("rates") if row.task == "bytes"}
    wanted = [
        (0.8, "topkast"),
        (0.8, "topkast, before"),
        (0.8, "topkast, before, initial random"),
        (0.9, "topkast"),
        (0.95, "topkast, before"),
        (0.98, "topkast, before"),
    ]
    each = sorted({lr for *_, lr in held})
    lines = [
        [f"{fwd}, {arm}", *(_less(held[arm, fwd, lr], held["static", fwd, lr]) for lr in each)] for fwd, arm in wanted
    ]
    return Sheet("", ["sparsity, arm", *(f"{lr:g}" for lr in each)], lines)


def churn(path: Path) -> Sheet:
    """How A moved at each refresh of a run that tools/study/mask_dynamics.py recorded: means over the seeds.

    Args:
        path: the tool's dynamics.json.
    """
    held = json.loads(path.read_text(encoding="utf-8"))
    seeds: Mapping[str, Any] = held["seeds"]
    lines = []
    for number, one in enumerate(zip(*(seed["total"] for seed in seeds.values()), strict=True)):
        layers = [seen[number]["new_a"] for seed in seeds.values() for seen in seed["layers"].values()]
        shares = [[moved[name] for moved in one] for name in ("new_a", "from_first_a", "ever_active")]
        new, *others = [f"{sum(share) / len(share):.1%}" for share in shares]
        lines.append([str(one[0]["step"]), new, f"{min(layers):.1%} to {max(layers):.1%}", *others])
    given, machine = held["arguments"], held["machine"]
    note = (
        f"`python -m topkast.tools.study.mask_dynamics --lr {given['lr']}`, {len(seeds)} seeds: {given['model']} at "
        f"{given['fwd']}/{given['bwd']}, block {given['block']}, {given['steps']} steps, a refresh every "
        f"{given['refresh_every']} steps; {machine['date'][:10]}, {machine['cpu']}, torch {machine['torch']}."
    )
    return Sheet("", ["step", "new in A", "layers", "distance of A from the first A", "ever in A"], lines, note)


def _rows(name: str) -> Sequence[Row]:
    """The rows of a grid, from what is stored."""
    times = times_of(name, FOLDER / "times.json")
    return rows(read_grid(GRIDS / f"{name}.toml", times), read(FOLDER / "runs.jsonl.gz"), times)


def _pair(free: Row, even: Row) -> str:
    digits = 3 if free.task == "bytes" else 2
    return f"{free.mean():.{digits}f} / {even.mean():.{digits}f}"


def _less(row: Row, other: Row) -> str:
    gap = row.against(other)
    if gap is None:
        raise StudyError(f"{row.arm}: no seed in common with {other.arm}")
    return f"{gap.mean:+.3f} ± {gap.half:.3f}"
