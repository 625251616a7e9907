"""The study's measured times: what is measured, the file, and what a run takes by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import topkast
from topkast.tools.study import __main__ as study
from topkast.tools.study.clock import _move, course, exported
from topkast.tools.study.models import ByteModel
from topkast.tools.study.run_fields import Run, StudyError, canonical
from topkast.tools.study.tasks import TASKS
from topkast.tools.study.times import Times, add_time, key_of, read_times, times_of
from topkast.tools.study.train import prepare

COMMON: dict[str, Any] = {"task": "digits", "steps": 100, "batch": 8, "lr": 0.1, "fwd": 0.9}
MACHINE = {"cpu": "a", "torch": "2", "backend": "inductor", "threads": 1}
ENTRY = {"ratio": {"low": 0.4, "median": 0.5, "high": 0.6}, "seconds": {"dense": 0.2, "sparse": 0.1}, "refresh": 0.4}


def run(method: str, **given: Any) -> Run:
    return canonical(Run(method=method, **COMMON | given))


@pytest.mark.long
def test_the_tool_measures_each_kind_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    grid, times = tmp_path / "own.toml", tmp_path / "times.json"
    grid.write_text(
        '[base]\ntask = "digits"\nsteps = 9\nbatch = 8\nlr = [0.1, 0.2]\nfwd = 0.8\n[axes]\nseed = [0, 1]\n'
        '[arms.topkast]\nmethod = "topkast"\nstop_exploring_after = 0.5\n[arms.dense]\nmethod = "dense"\n'
        '[arms.small]\nmethod = "small-dense"\n'
    )
    for _ in range(2):
        assert study.main(["time", str(grid), "--times", str(times), "--quick", "--repeats", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("digits, topkast 0.8/0.6, 1x1: ") == shown.count("digits, small-dense 0.8, 1x1: ") == 1
    found = read_times(times)
    assert len(found.entries) == 2 and found.machine["backend"] == "aot_eager"
    for entry in found.entries.values():
        assert 0 < entry["ratio"]["low"] <= entry["ratio"]["median"] <= entry["ratio"]["high"]
        assert entry["seconds"]["dense"] > 0 and entry["seconds"]["sparse"] > 0
    refreshing, plain = (found.entries[key]["refresh"] for key in sorted(found.entries, key=lambda key: "small" in key))
    assert refreshing > 0 == plain  # a refresh of these sets is well above what steps differ by


@pytest.mark.long
def test_a_text_models_file_is_measured() -> None:
    torch.manual_seed(0)
    base, wide = (ByteModel(width, layers=1).eval() for width in (64, 128))
    x = torch.randint(256, (1, 64))
    base.compile(backend="eager")
    found = exported(base, wide, "dense", x, 3)
    assert 2 < found["file"] < 4 and found["latency"] > 1
    sparse = topkast.compile(ByteModel(64, layers=1), fwd=0.9, backend="eager")
    assert exported(base, sparse, "topkast", x, 3)["file"] < 0.9


def test_a_grid_may_have_times_of_its_own(tmp_path: Path) -> None:
    add_time(tmp_path / "times.json", run("topkast"), ENTRY, MACHINE)
    add_time(tmp_path / "small-times.json", run("set"), ENTRY, MACHINE | {"cpu": "b"})
    assert times_of("small", tmp_path / "times.json").machine["cpu"] == "b"
    assert times_of("other", tmp_path / "times.json").machine["cpu"] == "a"


def test_seconds_are_steps_x_ratio_x_a_dense_step() -> None:
    times = Times(MACHINE, {key_of(run("topkast")): ENTRY, key_of(run("static")): ENTRY | {"refresh": 0.0}})

    def seconds(one: Run) -> float | None:
        return times.costs(one).get("time")

    assert seconds(run("dense")) == pytest.approx(100 * 0.2)
    assert seconds(run("static-magnitude")) == pytest.approx(100 * 0.5 * 0.2)  # other sets, the same work
    assert seconds(run("topkast", refresh_every=10)) == pytest.approx(100 * 0.1 + 10 * 0.4)
    assert seconds(run("topkast", bwd=0.5)) is seconds(run("swat")) is seconds(run("dense", task="bytes")) is None
    assert seconds(run("topkast", power=2.0)) is None  # the loop does more than the measured step
    wide, other = run("dense", width=64), {"file": 0.5, "latency": 0.4}
    assert times.costs(wide) == {} and times.costs(run("topkast")).keys() == {"time"}
    times.entries[key_of(wide)] = ENTRY | other
    assert times.costs(wide) == other | {"time": pytest.approx(100 * 0.5 * 0.2)}
    assert times.costs(run("dense")) == {"file": 1.0, "latency": 1.0, "time": pytest.approx(20)}


def test_gradual_pruning_is_measured_along_its_course() -> None:
    gradual = run("gmp", stop_exploring_after=0.5)
    places, shares = zip(*course(gradual), strict=True)
    assert sum(shares) == pytest.approx(1) and places[-1] == 1.0 and all(place < 0.5 for place in places[:-1])
    model = prepare(replace(gradual, steps=1000), TASKS["digits"])
    held = []
    for place in places:
        _move(model, round(place * 1000))
        held.append(sum(int(fwd.sum()) for fwd, _ in topkast.masks(model).values()))
    assert held == sorted(held, reverse=True) and held[-1] < 0.2 * held[0]
    assert course(run("topkast", stop_exploring_after=0.25)) == [(0.0, 0.25), (1.0, 0.75)]
    assert course(run("rigl", stop_exploring_after=0.25)) == [(0.0, 1.0)]  # B = A all along


def test_the_file_holds_what_was_measured_on_one_machine(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    for method in ("topkast", "static"):
        add_time(path, run(method), ENTRY, MACHINE)
    assert read_times(path) == Times(MACHINE, {key_of(run(method)): ENTRY for method in ("topkast", "static")})
    with pytest.raises(StudyError, match="its times are of cpu 'a', these of 'b': use another file"):
        add_time(path, run("set"), ENTRY, MACHINE | {"cpu": "b"})
    path.write_text(json.dumps({"times": 3}))
    with pytest.raises(StudyError, match="no file of measured times"):
        read_times(path)
