"""The study's grids: what a declared one becomes, and what a wrong one is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from topkast.compiler.config import Config
from topkast.compiler.options import options
from topkast.runtime.methods import METHODS
from topkast.tools.study import __main__ as study
from topkast.tools.study.grid import TUNING_SEED, Point, arms, chosen, read_grid
from topkast.tools.study.run_fields import Run, StudyError, canonical
from topkast.tools.study.store import read
from topkast.tools.study.tasks import TASKS
from topkast.tools.study.times import Times, key_of

ASKED = {one.name for one in options(Config)} - {"method"}
COMMON: dict[str, Any] = {"task": "digits", "steps": 10, "batch": 4, "lr": 0.1}
BASE = """
[base]
task = "digits"
steps = 30
batch = 16
lr = 5e-3

[axes]
seed = [0, 1]

[arms.topkast]
method = "topkast"
"""


def points(tmp_path: Path, text: str, times: Times | None = None) -> list[Point]:
    (tmp_path / "own.toml").write_text(text)
    return read_grid(tmp_path / "own.toml", times)


def test_the_grids_that_are_here_are_sound() -> None:
    for path in (Path(study.HERE) / "grids").glob("*.toml"):
        found = read_grid(path)
        places = {(point.where, point.run.key) for point in found}
        assert len(places) == len(found), path  # no arm is another one under a second name
        assert {point.run.task for point in found} <= TASKS.keys()
        assert {"topkast", "dense 128"} & {point.arm for point in found}, path  # what the tables compare with
        if {"dense", "small-dense", "gmp"} & {point.run.method for point in found}:  # no baseline that was not tuned
            tries = [len({point.trial().key for point in group if point.tuned}) for group in arms(found)]
            assert min(tries) > 1 and len(set(tries)) == 1, path


def test_no_grid_asks_for_what_topkast_refuses() -> None:
    for path in (Path(study.HERE) / "grids").glob("*.toml"):
        for run in {point.run for point in read_grid(path) if point.run.method in METHODS}:
            Config(method=run.method, **{name: value for name, value in run.options().items() if name in ASKED})


def test_runs_of_values_that_are_gone_stay_readable() -> None:
    found = [json.loads(key) for key in read(study.FOLDER / "runs.jsonl.gz")]
    assert {"global", "uniform", "erk"} == {run["distribution"] for run in found}
    assert "dense" in {run["initial"] for run in found}


def test_what_a_method_does_not_use_makes_no_other_run() -> None:
    runs = [canonical(Run(method="static", refresh_every=every, **COMMON)) for every in (10, 20)]
    assert runs[0].key == runs[1].key
    assert "refresh_every" not in runs[0].options()
    runs = [canonical(Run(method="set", refresh_every=every, **COMMON)) for every in (10, 20)]
    assert runs[0].key != runs[1].key
    gradual = canonical(Run(method="gmp", stop_exploring_after=0.75, **COMMON))
    assert gradual.options()["stop_exploring_after"] == 8  # a share of the steps
    runs = [canonical(Run(method="topkast", bwd=bwd, **COMMON)) for bwd in (None, 0.8)]
    assert runs[0].key == runs[1].key  # the default, said or not


def test_one_grid_takes_from_another(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text(BASE + "\n[tasks.digits]\nbatch = 8\nlr = 1e-3\n")
    found = points(tmp_path, 'like = "first"\n[base]\nsteps = 40\n[axes]\nfwd = [0.5, 0.9]\n[tasks.digits]\nlr = 2e-3')
    assert [point.run.fwd for point in found] == [0.5, 0.9, 0.5, 0.9]
    assert {(p.arm, p.run.steps, p.run.batch, p.run.lr) for p in found} == {("topkast", 40, 8, 2e-3)}
    found = points(tmp_path, 'like = "first"\n[arms.dense]\nmethod = "dense"')
    assert [point.arm for point in found] == ["dense", "dense"]


def test_rates_b_as_a_and_arms_at_some_points_only(tmp_path: Path) -> None:
    text = BASE.replace("seed = [0, 1]", "fwd = [0.8, 0.9]").replace("lr = 5e-3", "lr = [0.1, 0.2]")
    found = points(tmp_path, text + '\n[arms.other]\nmethod = "topkast"\nbwd = "fwd"\nat.fwd = [0.9]\nlr = 0.3\n')
    got = [(p.arm, p.run.fwd, p.run.bwd, p.run.lr) for p in found]
    assert got == [
        ("topkast", 0.8, 0.6, 0.1), ("topkast", 0.8, 0.6, 0.2), ("topkast", 0.9, 0.8, 0.1), ("topkast", 0.9, 0.8, 0.2),
        ("other", 0.9, 0.9, 0.3),
    ]  # fmt: skip
    assert {p.where for p in found} == {(("fwd", 0.8),), (("fwd", 0.9),)}
    found = points(tmp_path, BASE.replace("seed = [0, 1]", "seed = [0, 1]\nlr = [0.1, 0.2]"))
    assert [(p.where, p.run.lr) for p in found] == [((("lr", lr),), lr) for _ in range(2) for lr in (0.1, 0.2)]


def test_equal_time_gives_as_many_steps_as_fit(tmp_path: Path) -> None:
    text = BASE.replace("seed = [0, 1]", 'times = [1, 2]\nequal = ["steps", "time"]').replace("30", "200")
    text += '\n[arms.dense]\nmethod = "dense"\n'
    run = canonical(Run(method="topkast", **COMMON | {"batch": 16}))
    # A step takes 0.4 of a dense one, and every hundredth 5 more.
    entry = {"ratio": {"median": 0.4}, "seconds": {"dense": 0.1}, "refresh": 0.5}
    times = Times({}, {key_of(run): entry})
    steps = {
        arm: [(p.run.steps, p.unit) for p in points(tmp_path, text, times) if p.arm == arm]
        for arm in ("topkast", "dense")
    }
    assert steps["topkast"] == [(200, 200), (440, 200), (400, 200), (890, 200)]  # 200 / 0.45, 400 / 0.45
    assert steps["dense"] == [(200, 200), (200, 200), (400, 200), (400, 200)]
    with pytest.raises(
        StudyError, match=r"topkast: equal='time': no measured time of digits, topkast, 1x1: `study.py time"
    ):
        points(tmp_path, text, Times())
    swat = text.replace('"topkast"', '"swat"')
    with pytest.raises(StudyError, match="no measured time of digits, swat, 1x1: runs dense, so it has none"):
        points(tmp_path, swat, times)
    assert len(points(tmp_path, swat)) == 8  # what `time` reads


def test_two_rates_are_chosen_by_tuning_runs_alone(tmp_path: Path) -> None:
    text = BASE.replace("lr = 5e-3", "tune = true\nlr = [[0.1, 0.2], [0.3, 0.3]]")
    (group,) = arms(points(tmp_path, text))
    assert [(p.run.lr, p.run.lr_rest, p.run.seed) for p in group] == [
        (0.1, 0.2, 0), (0.3, None, 0), (0.1, 0.2, 1), (0.3, None, 1),  # one rate is one rate, however it is said
    ]  # fmt: skip
    trials = {point.trial().key: point.trial() for point in group}
    assert len(trials) == 2 and {(run.seed, run.tuning) for run in trials.values()} == {(TUNING_SEED, True)}
    first, second = trials
    # What the seeds came to counts for nothing, and a choice waits for every tuning run.
    held: dict[str, Any] = {point.run.key: {"quality": point.run.lr} for point in group} | {first: {"quality": 9.0}}
    assert chosen(group, held) == []
    assert {point.run.lr for point in chosen(group, held | {second: {"quality": 1.0}})} == {0.3}
    assert {point.run.lr for point in chosen(group, held | {second: {"quality": None}})} == {0.1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("[base", "own.toml"),
        ("[base]\nsteps = 1", r"no \[arms.NAME\]"),
        ("[extra]\n[arms.a]", "unknown tables extra"),
        ('like = "nothing"', "nothing.toml.*No such file"),
        (BASE + "lrate = 3", "unknown lrate; a run has task, method"),
        (BASE + 'equal = "money"', "equal='money': must be 'steps' or 'time'"),
        (BASE + "at.fwd = [0.9]", "topkast: at.fwd: must be an axis, one of seed"),
        (BASE + "bwd = 0.95", "topkast: bwd=0.95: must be at most fwd=0.9"),
        (BASE.replace('"topkast"', '"wiggle"'), "method='wiggle': must be one of topkast, static"),
        (BASE.replace("batch = 16", 'optimizer = "lbfgs"\nbatch = 16'), "optimizer='lbfgs': must be one of adamw, sgd"),
        (
            BASE.replace("batch = 16", 'optimizer = "muon"\nbatch = 16'),
            "optimizer='muon': must be 'adamw' or 'sgd' with",
        ),
        (BASE.replace("lr = 5e-3", "lr = [[1.0, 2.0, 3.0]]"), r"topkast: lr=\[1.0, 2.0, 3.0\]: must be a rate or"),
        (BASE.replace("steps = 30", ""), "steps"),
        (BASE.replace('"digits"', '"chess"'), "task='chess': must be one of bytes"),
        (BASE.replace('"digits"', '"cifar10"'), "task cifar10: needs --data PATH, the folder of CIFAR-10"),
    ],
)
def test_bad_grids_say_what_is_allowed(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "own.toml").write_text(text)
    assert study.main(["run", str(tmp_path / "own.toml"), "--results", str(tmp_path / "r.jsonl.gz")]) == 2
    assert re.search(message, capsys.readouterr().out)
