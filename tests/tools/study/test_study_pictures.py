"""The study's pictures: what they show of a few rows, and those that are kept in the repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from topkast.compiler.topology.dynamics import Moved
from topkast.tools.common.figures import matplotlib_of
from topkast.tools.study import __main__ as study
from topkast.tools.study.grid import read_grid
from topkast.tools.study.shown.estimates import Row, compared, rows
from topkast.tools.study.shown.plot import lines_of, plot
from topkast.tools.study.shown.plot_dynamics import plot_bars, plot_layers
from topkast.tools.study.store import read
from topkast.tools.study.times import read_times


def row(arm: str, qualities: Sequence[float], size: float = 2e6, **where: Any) -> Row:
    place = tuple({"task": "bytes", **where}.items())
    costs = {"density": 0.1, "flops": 0.13, "bytes": size}
    return Row(arm, place, where.get("lr", 0.01), 1, 300, dict(enumerate(qualities)), 0, 0, costs, 300)


def test_arms_are_lines_with_their_costs(tmp_path: Path) -> None:
    found = [row("dense", [3.2, 3.1], size=8e6), row("topkast", [2.9, 3.0]), row("diverged", [])]
    (line,) = lines_of(found[:2])
    assert line.arms == ["topkast", "dense"] and line.costs == ["bytes"]  # the FLOPs are the same for both
    path = plot(found, "a grid", tmp_path / "folder" / "grid.svg")
    assert path is not None
    drawn = path.read_text()
    for text in ("a grid", "topkast", "dense", "bits per byte", "state, MB", "2", "8"):
        assert f">{text}<" in drawn, text
    assert "diverged" not in drawn
    assert plot(found[2:], "a grid", tmp_path / "none.svg") is None and not (tmp_path / "none.svg").exists()


def test_many_places_take_several_lines(tmp_path: Path) -> None:
    found = [row(arm, [3.0 + place / 10], fwd=place) for place in range(6) for arm in ("static", "topkast")]
    lines = lines_of(found[:-1])  # an arm is missing at the last place
    assert [list(line.places) for line in lines] == [["fwd 0", "fwd 1", "fwd 2"], ["fwd 3", "fwd 4", "fwd 5"]]
    assert all(line.costs == [] for line in lines) and list(lines[1].places["fwd 5"]) == ["static"]
    plot(found[:-1], "places", tmp_path / "places.svg")
    assert ">fwd 5<" in (tmp_path / "places.svg").read_text()


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
    for text in ("dense 128", "topkast 0.9, 256", "training state, of dense 128", "bits per byte"):
        assert f">{text}<" in drawn, text
    assert "training time" not in drawn


def test_layers_and_distances_are_drawn(tmp_path: Path) -> None:
    seen = [Moved(step, 0.1, 0.2, 0.3, 0.4, 0.5) for step in (1, 2)]
    plot_layers(tmp_path / "churn.svg", "churn", {"one.weight": seen, "two.weight": seen}, seen, "new")
    plot_layers(tmp_path / "none.svg", "ever", {"one.weight": []}, [], "ever_active")
    plot_bars(tmp_path / "bars.svg", "apart", {"start": {"as they are": 0.9, "matched": 0.7}})
    for name, texts in {
        "churn": ("A, the forward set", "B, the backward set", "one.weight", "two.weight", "all layers"),
        "none": ("no refresh in this run",),
        "bars": ("start", "as they are", "0.700"),
    }.items():
        drawn = (tmp_path / f"{name}.svg").read_text()
        for text in texts:
            assert f">{text}<" in drawn, text


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
