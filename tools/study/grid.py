"""A declared grid as a list of points: the arm, its place on the axes, and the run.

A grid is a TOML file: ``[base]`` holds values for every run, ``[axes]`` lists of values of which each combination is
run, ``[arms.NAME]`` what is compared, ``[tasks.NAME]`` values for one task. Later ones win: base, task, axes, arm.
``like = "NAME"`` takes what is not said here from the grid of that name beside this one.

Values are the fields of :class:`_study_run.Run`, where besides
    lr        may be a list: every rate is run, and an arm is shown at its best one; as an axis, at each; a rate may be
              [matrices, the rest],
    tune      is true where the rate is chosen by one tuning run each, so that only the chosen one is run for the
              seeds and no rate has seen what is reported,
    bwd       may be "fwd": B = A,
    initial   may be "none": θ as it was drawn,
    any       may be "default": what topkast.compile has, where the base says otherwise,
    times     is a factor on the steps,
    equal     is "steps", or "time": as many steps as fit into the measured time of the dense model's steps,
    at        (of an arm) names points: ``at.fwd = [0.95]`` leaves the arm out elsewhere.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .run_fields import Run, StudyError, canonical
from .store import Results
from .times import Times

TABLES = ("base", "axes", "arms", "tasks")
OF_GRID = ("times", "equal", "tune")  # what is no field of a run
TUNING_SEED = 100  # no grid reports it


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Args:
        arm: whose it is.
        where: (axis, value) of the grid's axes but the seed.
        run: what is trained.
        unit: steps of the dense model that a cost is given in shares of.
        tuned: its rate is one of those that :meth:`trial` chooses from.
    """

    arm: str
    where: tuple[tuple[str, Any], ...]
    run: Run
    unit: int
    tuned: bool = False

    def trial(self) -> Run:
        """The tuning run of this arm at this rate."""
        return replace(self.run, seed=TUNING_SEED, tuning=True)


def arms(points: Sequence[Point]) -> list[list[Point]]:
    """The points of each arm at each place, of all seeds and rates, in the order of the grid."""
    found: dict[Any, list[Point]] = defaultdict(list)
    for point in points:
        found[point.arm, repr(point.where)].append(point)
    return list(found.values())


def chosen(group: Sequence[Point], held: Results) -> Sequence[Point]:
    """The points of an arm at the rate whose tuning run ended best; none while one of these runs is missing."""
    if not group[0].tuned:
        return group
    ends = {point.trial().key: point.trial() for point in group}
    if not ends.keys() <= held.keys():
        return []
    best = min(ends, key=lambda key: math.inf if held[key]["quality"] is None else held[key]["quality"])
    return [point for point in group if point.trial().key == best]


def read_grid(path: Path, times: Times | None = None) -> list[Point]:
    """Every combination, in the order of the file.

    Args:
        path: the TOML file.
        times: what ``equal = "time"`` asks; None leaves all steps as they are declared.

    Raises:
        StudyError: no such file, not TOML, or a field or value that is not there; a time that was not measured.
    """
    declared = _declared(path)
    axes, found = declared["axes"], []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        task: Any = point.get("task", declared["base"].get("task"))
        of_task = declared["tasks"].get(task, {})
        where = tuple((name, value) for name, value in point.items() if name != "seed")
        for arm, own in declared["arms"].items():
            given = {**declared["base"], **of_task, **point, **own}
            only = given.pop("at", {})
            if unknown := only.keys() - axes.keys():
                raise StudyError(f"{path}: {arm}: at.{min(unknown)}: must be an axis, one of {', '.join(axes)}")
            if any(point[axis] not in allowed for axis, allowed in only.items()):
                continue
            rates, tuned = given.get("lr"), bool(given.pop("tune", False))
            for rate in rates if isinstance(rates, list) else [rates]:
                try:
                    found.append(Point(arm, where, *_run(given | _rates(rate), times), tuned))
                except (TypeError, StudyError) as error:
                    raise StudyError(f"{path}: {arm}: {error}") from error
    return found


def _rates(rate: Any) -> dict[str, float]:
    """The fields that a rate, a pair of rates or None stands for."""
    if isinstance(rate, list):
        if len(rate) != 2:
            raise StudyError(f"lr={rate}: must be a rate or [matrices, the rest]")
        return dict(zip(("lr", "lr_rest"), rate, strict=True))
    return {} if rate is None else {"lr": rate}


def _declared(path: Path) -> dict[str, dict[str, Any]]:
    """The four tables, with what the file takes from another."""
    try:
        declared = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"{path}: {error}") from error
    if unknown := declared.keys() - {*TABLES, "like"}:
        raise StudyError(f"{path}: unknown tables {', '.join(sorted(unknown))}; allowed: {', '.join(TABLES)}")
    tables = {name: declared.get(name, {}) for name in TABLES}
    if "like" in declared:
        other = _declared(path.parent / f"{declared['like']}.toml")
        tables["arms"] = tables["arms"] or other["arms"]
        tables["base"] = other["base"] | tables["base"]
        tables["axes"] = other["axes"] | tables["axes"]
        tasks = other["tasks"].keys() | tables["tasks"].keys()
        tables["tasks"] = {name: other["tasks"].get(name, {}) | tables["tasks"].get(name, {}) for name in tasks}
    if not tables["arms"]:
        raise StudyError(f"{path}: no [arms.NAME], so there is nothing to compare")
    return tables


def _run(given: dict[str, Any], times: Times | None) -> tuple[Run, int]:
    """The run of these values, and the steps that its costs are shares of."""
    given = {name: value for name, value in given.items() if value != "default"}
    allowed = [*(field.name for field in fields(Run)), *OF_GRID]
    if unknown := given.keys() - set(allowed):
        raise StudyError(f"unknown {', '.join(sorted(unknown))}; a run has {', '.join(allowed)}")
    factor, equal = given.pop("times", 1), given.pop("equal", "steps")
    if equal not in ("steps", "time"):
        raise StudyError(f"equal={equal!r}: must be 'steps' or 'time'")
    if given.get("bwd") == "fwd":
        given["bwd"] = given.get("fwd", Run.fwd)
    if given.get("initial") == "none":
        given["initial"] = None
    run = canonical(Run(**given))
    unit, wanted = run.steps, round(run.steps * factor)
    if equal == "time" and times is not None:
        wanted = times.steps_in(run, wanted)
    return canonical(Run(**{**given, "steps": wanted})), unit
