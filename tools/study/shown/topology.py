"""Question 7, is it the same topology over seeds: a table from what tools/study/mask_dynamics.py found of pairs of
models.
"""

from __future__ import annotations

import json
from pathlib import Path

from topkast.tools.study.run_fields import StudyError
from topkast.tools.study.shown.estimates import estimate
from topkast.tools.study.shown.grid_tables import Sheet

HEAD = """## topology

Question 7: do two seeds end with the same topology? Each model is one of a pair of seeds, each pair is a file of
`topology/`, made by `python -m topkast.tools.study.mask_dynamics --seed N`. The distance of A is the share not in
common: 0 the same sets, 1 nothing in common. Matching permutes interchangeable neurons for the largest overlap, and
finds some in shuffled sets too; the last column is what training adds to that, pair by pair, negative where the seeds
agree.
"""
WAYS = ("as they are", "matched", "shuffled", "shuffled, matched")


def topology(folder: Path) -> str:
    """The section of TABLES.md, empty where ``folder`` holds nothing.

    Raises:
        StudyError: a file is none of the tool's, or of a run with other arguments than the first.
    """
    if not (paths := sorted(folder.glob("*.json"))):
        return ""
    try:
        read = [json.loads(path.read_text()) for path in paths]
        given = [{k: v for k, v in one["arguments"].items() if k not in ("seed", "out")} for one in read]
        apart = [one["between seeds"] for one in read]
        lines = [_line(when, [ways[when] for ways in apart]) for when in ("start", "end")]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise StudyError(f"{folder}: a file that tools/study/mask_dynamics.py did not write: {error}") from error
    for path, one in zip(paths, given, strict=True):
        if one != given[0]:
            raise StudyError(f"{path}: other arguments than {paths[0].name}'s, so they cannot be averaged")
    names = ("model", "steps", "fwd", "bwd", "block", "refresh_every")
    title = f"{len(paths)} pairs of seeds, " + ", ".join(f"{name} {given[0][name]}" for name in names)
    return f"\n{HEAD}\n{Sheet(title, ['sets', *WAYS, 'matched less shuffled, matched'], lines).markdown()}"


def _line(when: str, pairs: list[dict[str, dict[str, float]]]) -> list[str]:
    """Mean, deviation and interval over the pairs, of each way and of the difference of the matched ones."""
    ways = [[pair[way]["forward"] for pair in pairs] for way in WAYS]
    gaps = [one - other for one, other in zip(ways[1], ways[3], strict=True)]
    return [when, *(str(estimate(values)) for values in [*ways, gaps])]
