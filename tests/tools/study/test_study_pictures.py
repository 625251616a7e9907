"""The study's pictures: what they show of a few rows, and those that are kept in the repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from topkast.tools.common.figures import matplotlib_of
from topkast.tools.study import __main__ as study
from topkast.tools.study.grid import read_grid
from topkast.tools.study.shown.estimates import Row, compared, rows
from topkast.tools.study.shown.plot import plot
from topkast.tools.study.store import read
from topkast.tools.study.times import read_times


def row(arm: str, qualities: Sequence[float], size: float = 2e6, **where: Any) -> Row:
    place = tuple({"task": "bytes", **where}.items())
    costs = {"density": 0.1, "flops": 0.13, "bytes": size}
    return Row(arm, place, where.get("lr", 0.01), 1, 300, dict(enumerate(qualities)), 0, 0, costs, 300)


def test_arms_are_lines(tmp_path: Path) -> None:
    found = [row("dense", [3.2, 3.1]), row("topkast", [2.9, 3.0]), row("diverged", [])]
    path = plot(found, "a grid", tmp_path / "folder" / "grid.svg")
    assert path is not None
    drawn = path.read_text()
    for text in ("a grid", "topkast", "dense", "bits per byte"):
        assert f">{text}<" in drawn, text
    assert drawn.index(">topkast<") < drawn.index(">dense<")  # the best one first
    assert "diverged" not in drawn
    assert plot(found[2:], "a grid", tmp_path / "none.svg") is None and not (tmp_path / "none.svg").exists()


def test_each_place_has_a_panel(tmp_path: Path) -> None:
    found = [row(arm, [3.0 + place / 10], fwd=place) for place in range(4) for arm in ("static", "topkast")]
    plot(found[:-1], "places", tmp_path / "places.svg")  # an arm is missing at the last place
    drawn = (tmp_path / "places.svg").read_text()
    assert all(f">fwd {place}<" in drawn for place in range(4)) and drawn.count(">static<") == 1


def test_a_grid_of_rates_has_lines_over_them(tmp_path: Path) -> None:
    found = [
        row(arm, [3.0 + lr, 3.1], fwd=fwd, lr=lr)
        for fwd in (0.8, 0.9) for lr in (0.02, 0.01) for arm in ("static", "topkast")
    ]  # fmt: skip
    plot(found, "rates", tmp_path / "rates.svg")
    drawn = (tmp_path / "rates.svg").read_text()
    for text in ("fwd 0.8", "fwd 0.9", "0.01", "0.02", "static", "topkast", "rates"):
        assert f">{text}<" in drawn, text


def test_the_frontier_is_quality_against_each_cost(tmp_path: Path) -> None:
    found = [row("dense 128", [3.2, 3.1], size=8e6), row("topkast 0.9, 256", [2.9, 3.0])]
    found[1].costs["time"] = 3.0  # the dense arm's is not known, so it has no panel
    plot(found, "frontier", tmp_path / "frontier.svg")
    drawn = (tmp_path / "frontier.svg").read_text()
    for text in ("dense 128", "0.9, 256", "training state, of dense 128", "bits per byte"):
        assert f">{text}<" in drawn, text
    assert "training time" not in drawn


@pytest.mark.parametrize("name", ["rivals", "rates", "tuned"])
def test_a_picture_in_the_repository_is_what_the_results_give(name: str, tmp_path: Path) -> None:
    """`python -m topkast.tools.study report` mends it."""
    kept = study.FOLDER / f"{name}.svg"
    times = read_times(study.FOLDER / "times.json")
    found = rows(read_grid(study.grid_path(name), times), read(study.FOLDER / "runs.jsonl.gz"), times)
    drawn = plot(compared(found), name, tmp_path / "drawn.svg")
    assert drawn is not None
    if matplotlib_of(kept) != matplotlib.__version__:
        pytest.skip(f"drawn by matplotlib {matplotlib_of(kept)}; {matplotlib.__version__} may place letters otherwise")
    assert drawn.read_bytes() == kept.read_bytes()
