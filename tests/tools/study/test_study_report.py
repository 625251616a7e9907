"""The study's figures: estimates, rows at their best rate, tables, and the report that is kept in the repository."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from topkast.tools.study import __main__ as study
from topkast.tools.study.grid import Point, read_grid
from topkast.tools.study.run_fields import Run, StudyError, canonical
from topkast.tools.study.shown import page_tables
from topkast.tools.study.shown.estimates import Row, compared, estimate, rows
from topkast.tools.study.shown.frontier_claims import claims
from topkast.tools.study.shown.grid_tables import sheets, summary
from topkast.tools.study.shown.page_tables import WAYS, topology
from topkast.tools.study.shown.whole_report import about, found_of, tables
from topkast.tools.study.store import read
from topkast.tools.study.times import Times, key_of, read_times

COMMON: dict[str, Any] = {"task": "digits", "steps": 1, "batch": 1, "lr": 0.1}


def test_estimate() -> None:
    """Against the textbook: n = 4, t = 3.182."""
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert (found.mean, found.count) == (2.5, 4)
    assert found.deviation == pytest.approx(math.sqrt(5 / 3))
    assert found.half == pytest.approx(3.182446 * found.deviation / 2, rel=1e-6)
    assert math.isnan(estimate([1.0]).half) and str(estimate([1.0])) == "1.000"


def test_differences_are_paired_by_seed() -> None:
    """An arm that is better by 1 on every seed is so without doubt, however far the seeds lie apart."""
    grid, held = [], {}
    for seed in range(3):
        for arm, method, shift in (("a", "dense", 0.0), ("b", "static", -1.0)):
            run = canonical(Run(method=method, seed=seed, **COMMON))
            grid.append(Point(arm, (), run, 1))
            held[run.key] = result(10.0 * seed + shift)
    first, second = rows(grid, held, Times())
    gap = second.against(first)
    assert gap is not None and (gap.mean, gap.deviation, gap.half) == (-1.0, 0.0, 0.0)


def result(quality: float | None) -> dict[str, Any]:
    return {"quality": quality, "flops": 0.5, "bytes": 2e6}


def two_rates(qualities: dict[float, list[float | None]], times: Times) -> Row:
    """The row of one arm whose runs end so at each rate."""
    grid, held = [], {}
    for lr, ends in qualities.items():
        for seed, end in enumerate(ends):
            run = canonical(Run(method="topkast", seed=seed, **COMMON | {"lr": lr, "steps": 10}))
            grid.append(Point("topkast", (), run, 5))
            held[run.key] = result(end)
    (row,) = rows(grid, held, times)
    return row


def test_an_arm_is_shown_at_its_best_rate() -> None:
    row = two_rates({0.1: [3.0, 4.0], 0.2: [2.0, 3.0], 0.4: [1.0, None]}, Times())
    assert (row.lr, row.rates, row.qualities, row.diverged) == (0.2, 3, {0: 2.0, 1: 3.0}, 0)
    assert row.costs == {"density": pytest.approx(0.1), "flops": 1.0, "bytes": 2e6}  # 10 steps, in dense runs of 5
    (sheet,) = sheets([row], "topkast")
    assert "at the rate with its best mean" in sheet.title and sheet.lines[0][1] == "0.2 of 3"
    assert (
        sheet.markdown().splitlines()[4].startswith("| topkast | 0.2 of 3 | 10 | 2 | 2.500 ± 0.707 [-3.853, 8.853] |")
    )


def test_a_rate_is_not_best_for_one_lucky_seed() -> None:
    grid, held = [], {}
    for lr, ends in ((0.1, (3.0, 4.0)), (0.2, (1.0,))):
        for seed in range(2):
            run = canonical(Run(method="topkast", seed=seed, **COMMON | {"lr": lr}))
            grid.append(Point("topkast", (), run, 1))
            if seed < len(ends):
                held[run.key] = result(ends[seed])
    (row,) = rows(grid, held, Times())
    assert (row.lr, row.missing) == (0.1, 0)


def test_differences_say_over_how_many_seeds_and_means_how_many_diverged() -> None:
    grid, held = [], {}
    for arm, method, ends in (("topkast", "topkast", (1.0, None)), ("dense", "dense", (2.0, 3.0))):
        for seed, end in enumerate(ends):
            run = canonical(Run(method=method, seed=seed, **COMMON))
            grid.append(Point(arm, (), run, 1))
            held[run.key] = result(end)
    found = rows(grid, held, Times())
    assert sheets(found, "topkast")[0].lines[1][5] == "+1.000, n = 1"
    assert summary(found).lines[0][:2] == ["topkast", "1.00, n = 1 (1 diverged)"]


def test_measured_time_is_a_cost_where_it_is_known() -> None:
    run = canonical(Run(method="topkast", **COMMON))
    entry = {"ratio": {"median": 0.5}, "seconds": {"dense": 2.0}, "refresh": 0.0}
    row = two_rates({0.1: [1.0]}, Times({}, {key_of(run): entry}))
    assert row.costs["time"] == 10 * 0.5 * 2.0
    assert sheets([row], "topkast")[0].lines[0][-1] == "10.00"


def test_only_what_can_be_compared_is_reported() -> None:
    runs = {arm: canonical(Run(method=arm, **COMMON)) for arm in ("dense", "topkast", "static")}
    grid = [Point(arm, (), run, 1) for arm, run in runs.items()]
    held = {runs["dense"].key: result(1.0)}
    assert compared(rows(grid, held, Times())) == []
    held[runs["static"].key] = result(None)
    found = compared(rows(grid, held, Times()))
    assert [row.arm for row in found] == ["dense", "topkast", "static"]
    lines = summary(found).lines
    assert lines == [
        ["dense", "1.00, n = 1", "0.50", "2.00"],
        ["topkast", "not run", "-", "-"],
        ["static", "diverged", "0.50", "2.00"],
    ]


def tuned(ends: dict[float, float], known: dict[float, float]) -> Row:
    """The row of an arm with two pairs of rates, whose runs end so, and so in the tuning runs that are known."""
    grid, held = [], {}
    for lr, end in ends.items():
        for seed in range(2):
            point = Point(
                "dense", (), canonical(Run(method="dense", seed=seed, lr_rest=1.0, **COMMON | {"lr": lr})), 1, True
            )
            grid.append(point)
            held[point.run.key] = result(end + seed)
            if lr in known:
                held[point.trial().key] = result(known[lr])
    (row,) = rows(grid, held, Times())
    return row


def test_a_tuned_arm_is_shown_at_what_its_tuning_runs_chose() -> None:
    row = tuned({0.1: 3.0, 0.2: 2.0}, {0.1: 1.0, 0.2: 5.0})
    assert (row.lr, row.lr_rest, row.rates, row.tuned, row.qualities) == (0.1, 1.0, 2, 1.0, {0: 3.0, 1: 4.0})
    (sheet,) = sheets([row], "topkast")
    assert sheet.lines[0][1] == "0.1 / 1 of 2" and "that its tuning runs chose" in sheet.title
    row = tuned({0.1: 3.0, 0.2: 2.0}, {0.1: 1.0})  # a tuning run is missing
    assert not row.qualities and not row.costs and "not run" in sheets([row], "topkast")[0].lines[0]


def test_claims_are_answered_with_their_interval() -> None:
    def row(arm: str, shift: float, tuned: float, **costs: float) -> Row:
        ends = {seed: 2.0 + seed / 10 + shift for seed in range(3)}
        return Row(arm, (("task", "bytes"),), 0.1, 1, 1, ends, 0, 0, costs, 1, tuned=tuned)

    dense = row("dense 128", 0.0, 1.0, time=10.0, bytes=10.0, file=1.0)
    good = row("topkast wide", -0.1, 1.0, time=9.0, bytes=4.0, file=0.5)
    small = row("topkast small", 0.3, 2.0, time=2.0, bytes=1.0, file=0.1)
    a, b, c, d = ([cell for cell in line[1:]] for line in claims([dense, good, small]).lines)
    assert a == ["yes", "topkast wide", "0.90", "-0.100 ± 0.000"]
    assert b[:2] == ["no", "topkast small"] and d[0] == "no" and c[:2] == ["yes", "topkast wide"]
    lucky = replace(
        small, qualities={seed: 0.0 for seed in range(3)}
    )  # a better end does not make it the one that speaks
    assert claims([dense, good, lucky]).lines[0][2] == "topkast wide"
    absent = replace(small, qualities={}, costs={})
    answers = [line[1] for line in claims([dense, good, absent]).lines]
    assert answers == ["yes", "not run yet", "yes", "not run yet"]
    worse = replace(good, qualities={seed: 3.0 + seed / 10 for seed in range(3)})
    assert claims([dense, worse, absent]).lines[0][1] == "no, of the 1 of 2 such arms run so far"
    slow = replace(absent, measured={"time": 11.0, "file": 0.36})  # known to cost too much before it is run
    answers = [line[1] for line in claims([dense, worse, slow]).lines]
    none = "no: none costs so little"
    assert answers == ["no", none, "no, of the 1 of 2 such arms run so far", none]
    assert {line[1] for line in claims([absent, good]).lines} == {"not run yet"}
    single = replace(dense, qualities={0: 2.0})  # one seed has no interval
    assert {line[1] for line in claims([single, good, small]).lines} == {"not run yet"}
    half_run = replace(dense, missing=1)
    assert {line[1] for line in claims([half_run, good, small]).lines} == {"not run yet"}


def test_what_is_in_the_repository_is_what_the_results_give() -> None:
    """`python -m topkast.tools.study report` mends it."""
    held = read(study.FOLDER / "runs.jsonl.gz")
    grids = study.HERE / "grids"
    made = tables(grids, *found_of(grids, held, study.FOLDER / "times.json"))
    assert (study.FOLDER / "TABLES.md").read_text(encoding="utf-8") == made


def test_a_report_takes_old_pictures_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grids").mkdir()
    grids = study.HERE / "grids"
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    (tmp_path / "grids" / "rivals.toml").write_text((grids / "rivals.toml").read_text())
    (tmp_path / "gone.svg").touch()
    assert study.main(["report", "--results", str(tmp_path / "no.jsonl.gz"), "--times", str(tmp_path / "no.json")]) == 0
    assert "`rivals`" in (tmp_path / "TABLES.md").read_text() and not list(tmp_path.glob("*.svg"))


def test_the_tables_of_the_page_are_those_of_the_grids() -> None:
    """Balanced sets beside free ones, and each rate beside static sets."""
    times = read_times(study.FOLDER / "times.json")
    held = rows(read_grid(study.grid_path("rates"), times), read(study.FOLDER / "runs.jsonl.gz"), times)
    place = (("task", "bytes"), ("fwd", 0.9), ("lr", 0.016))
    ours, static = (next(row for row in held if row.arm == arm and row.where == place) for arm in ("topkast", "static"))
    gap = ours.against(static)
    assert gap is not None
    (line,) = [line for line in page_tables.rates().lines if line[0] == "0.9, topkast"]
    assert line[page_tables.rates().headings.index("0.016")] == f"{gap.mean:+.3f} ± {gap.half:.3f}"
    made = {name: table() for name, table in page_tables.PAGE.items()}
    assert [line[0] for line in made["study-balanced"].lines] == [
        "bytes, static", "bytes, topkast", "digits, static", "digits, topkast",
    ]  # fmt: skip
    assert made["study-rivals"].lines[0][0] == "topkast"
    assert [line[0] for line in made["study-claims"].lines] == [line[0] for line in claims([]).lines]
    frontier = {line[0]: line for line in made["study-frontier"].lines}
    assert frontier["dense 128"][2:] == ["", "3", "1.00", "1.00", "1.00", "1.00"]
    assert {"dense", "topkast"} <= {line[0] for line in made["study-tuned"].lines}
    assert "topkast" in {line[0] for line in made["study-recipe"].lines}


def test_topology_over_pairs_of_seeds(tmp_path: Path) -> None:
    arguments = dict.fromkeys(("model", "steps", "fwd", "bwd", "block", "refresh_every"), "1")
    for seed, matched in ((0, 0.5), (2, 0.7)):
        ways = {way: {"forward": 0.9} for way in WAYS} | {"matched": {"forward": matched}}
        found = {"arguments": arguments | {"seed": str(seed)}, "between seeds": {"start": ways, "end": ways}}
        (tmp_path / f"{seed}.json").write_text(json.dumps(found))
    _, end = topology(tmp_path).lines
    assert end[:2] == ["end", "0.900 ± 0.000 [0.900, 0.900]"] and end[2].startswith("0.600 ± 0.141 [")
    assert end[-1].startswith("-0.300 ± 0.141 [")
    (tmp_path / "4.json").write_text(json.dumps(found | {"arguments": arguments | {"model": "2"}}))
    with pytest.raises(StudyError, match="runs with different arguments"):
        topology(tmp_path)
    (tmp_path / "4.json").write_text("{}")
    with pytest.raises(StudyError, match=r"a file that tools/study/mask_dynamics.py did not write"):
        topology(tmp_path)


def test_a_grid_says_what_it_is_about() -> None:
    for path in (study.HERE / "grids").glob("*.toml"):
        assert about(path).strip().endswith((".", "?")), path
