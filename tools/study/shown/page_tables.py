"""The tables of the page docs/study.md, from the files of results alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from topkast.tools.common.places import RESULTS
from topkast.tools.study.grid import read_grid
from topkast.tools.study.run_fields import StudyError
from topkast.tools.study.store import read
from topkast.tools.study.times import times_of

from .estimates import Row, estimate, rows
from .frontier_claims import claims
from .grid_tables import Sheet, less, sheets, summary

FOLDER = RESULTS / "study"
GRIDS = Path(__file__).parents[1] / "grids"
WAYS = ("as they are", "matched", "shuffled", "shuffled, matched")


def of_grids(*names: str) -> list[Row]:
    """The rows of these grids, from what is stored."""
    held, found = read(FOLDER / "runs.jsonl.gz"), []
    for name in names:
        times = times_of(name, FOLDER / "times.json")
        found += rows(read_grid(GRIDS / f"{name}.toml", times), held, times)
    return found


def frontier() -> Sheet:
    """Models of the first task with their costs, the best one first."""
    found = of_grids("frontier")
    base = next(row for row in found if row.arm == "dense 128")
    lines = []
    for row in sorted(found, key=Row.mean):
        costs = row.measured | row.costs
        shares = [
            f"{costs[c] / base.costs[c]:.2f}" if c in costs else "-" for c in ("time", "bytes", "file", "latency")
        ]
        ends = f"{row.mean():.3f}" if row.qualities else "not run"
        lines.append([row.arm, ends, less(row, base) if row is not base else "", str(len(row.qualities)), *shares])
    return Sheet("", ["", "bits", "less dense 128", "seeds", "time", "state", "file", "latency"], lines)


def recipe() -> Sheet:
    """Parts of a recipe beside the default."""
    (sheet,) = sheets(of_grids("recipe"), "topkast")
    kept = [sheet.headings.index(name) for name in sheet.headings if name.startswith(("arm", "bits", "less", "FLOPs"))]
    return Sheet("", [sheet.headings[i] for i in kept], [[line[i] for i in kept] for line in sheet.lines])


def balanced() -> Sheet:
    """Means with sets chosen freely and with as many members in every row of blocks."""
    held = {(row.task, row.arm, dict(row.where)["fwd"]): row for row in of_grids("range-balanced")}
    places, digits = sorted({fwd for *_, fwd in held}), {"bytes": 3, "digits": 2}
    lines = []
    for task in dict.fromkeys(task for task, *_ in held):
        for arm in ("static", "topkast"):
            pairs = [[held[task, name, fwd].mean() for name in (arm, f"{arm}, balanced")] for fwd in places]
            lines.append([f"{task}, {arm}", *(" / ".join(f"{mean:.{digits[task]}f}" for mean in two) for two in pairs)])
    return Sheet("", ["free / balanced", *map(str, places)], lines)


def rates() -> Sheet:
    """Bits per byte of Top-KAST less those of static sets, at every rate on its own."""
    held = {(row.arm, dict(row.where)["fwd"], row.lr): row for row in of_grids("rates") if row.task == "bytes"}
    each = sorted({lr for *_, lr in held})
    wanted = dict.fromkeys((fwd, arm) for arm, fwd, _ in held if arm != "static")
    lines = [
        [f"{fwd}, {arm}", *(less(held[arm, fwd, lr], held["static", fwd, lr]) for lr in each)]
        for fwd, arm in sorted(wanted)
    ]
    return Sheet("", ["sparsity, arm", *(f"{lr:g}" for lr in each)], lines)


def topology(folder: Path) -> Sheet:
    """How far the sets A of two seeds are apart, over the pairs that tools/study/mask_dynamics.py trained; the last
    column is what training adds to what a matching finds in any two sets, negative where the seeds agree.

    Raises:
        StudyError: a file is none of the tool's, or of a run with other arguments than the first.
    """
    try:
        held = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        given = [{k: v for k, v in one["arguments"].items() if k not in ("seed", "out")} for one in held]
        lines = []
        for when in ("start", "end"):
            ways = [[one["between seeds"][when][way]["forward"] for one in held] for way in WAYS]
            gaps = [one - other for one, other in zip(ways[1], ways[3], strict=True)]
            lines.append([when, *(str(estimate(values)) for values in [*ways, gaps])])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise StudyError(f"{folder}: a file that tools/study/mask_dynamics.py did not write: {error}") from error
    if any(one != given[0] for one in given):
        raise StudyError(f"{folder}: runs with different arguments, so they cannot be averaged")
    return Sheet("", ["sets", *WAYS, "matched less shuffled, matched"], lines)


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
        shares: Sequence[Sequence[float]] = [
            [moved[name] for moved in one] for name in ("new_a", "from_first_a", "ever_active")
        ]
        new, *others = [f"{sum(share) / len(share):.1%}" for share in shares]
        lines.append([str(one[0]["step"]), new, f"{min(layers):.1%} to {max(layers):.1%}", *others])
    given, machine = held["arguments"], held["machine"]
    note = (
        f"`python -m topkast.tools.study.mask_dynamics --lr {given['lr']}`, {len(seeds)} seeds: {given['model']} at "
        f"{given['fwd']}/{given['bwd']}, block {given['block']}, {given['steps']} steps, a refresh every "
        f"{given['refresh_every']} steps; {machine['date'][:10]}, {machine['cpu']}, torch {machine['torch']}."
    )
    return Sheet("", ["step", "new in A", "layers", "distance of A from the first A", "ever in A"], lines, note)


PAGE: dict[str, Callable[[], Sheet]] = {
    "study-claims": lambda: claims(of_grids("frontier")),
    "study-frontier": frontier,
    "study-recipe": recipe,
    "study-tuned": lambda: summary(of_grids("tuned", "tuned-digits")),
    "study-rivals": lambda: summary(of_grids("rivals")),
    "study-balanced": balanced,
    "study-rates": rates,
    "study-topology": lambda: topology(FOLDER / "topology"),
    "study-churn": lambda: churn(FOLDER / "dynamics" / "rate-1e-3.json"),
}


def markdown(name: str) -> str:
    """The table of that name in Markdown."""
    return PAGE[name]().markdown()
