"""topkast.tools.study run: the small grid of the whole, twice; the pool, the file of results, and what a run counts."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.tools.study import __main__ as study
from topkast.tools.study.grid import Point
from topkast.tools.study.models import width_for
from topkast.tools.study.references import layers_of
from topkast.tools.study.run_fields import Run, StudyError, canonical
from topkast.tools.study.shown.estimates import rows
from topkast.tools.study.store import add, read
from topkast.tools.study.tasks import TASKS
from topkast.tools.study.times import Times
from topkast.tools.study.train import flops_share, powers_of, prepare, schedule, train

TINY = (study.HERE / "grids" / "tiny.toml").read_text()
AGAIN = TINY + '\n[arms."topkast again"]\nmethod = "topkast"\n'


def grid(tmp_path: Path, text: str = AGAIN) -> str:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.long
def test_a_small_grid(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Two methods, two seeds: it learns, a pool of processes gives the same figures, and nothing is trained twice."""
    first, second = tmp_path / "first.jsonl.gz", tmp_path / "second.jsonl.gz"
    assert study.main(["run", "tiny", "--results", str(first)]) == 0
    one_seed = grid(tmp_path, TINY.replace("[0, 1]", "[0]"))
    assert study.main(["run", one_seed, "--results", str(second), "--workers", "2"]) == 0
    one, other = read(first), read(second)
    assert len(one) == 4 and len(other) == 2 and other.keys() < one.keys()
    for key, result in other.items():
        for name in ("quality", "nats", "training loss", "flops", "bytes", "parameters"):
            assert result[name] == one[key][name], name
    for result in one.values():
        assert result["training loss"] < 0.7 * math.log(10)
        assert 0 < result["flops"] < 1 and result["seconds"] > 0 and result["cpu_seconds"] > 0
    assert len({result["nats"] for result in one.values()}) == 4
    before = first.read_bytes()  # the third arm is the first
    assert study.main(["run", grid(tmp_path), "--results", str(first)]) == 0
    assert first.read_bytes() == before

    capsys.readouterr()
    known = ["--results", str(first), "--times", str(tmp_path / "none.json")]
    assert study.main(["table", grid(tmp_path), *known]) == 0
    shown = capsys.readouterr().out
    assert "test error, %" in shown and "less topkast" in shown and "+0.000 ± 0.000" in shown


def test_tuning_runs_come_first_and_decide(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A model learns nothing at one of the two rates, so only the other is run for the seeds; no other arm is run."""
    rates = "tune = true\nlr = [[1e-9, 1e-9], [5e-3, 1e-2]]"
    text = TINY.replace("lr = 5e-3", rates).replace("steps = 100", "steps = 20")
    path, results = grid(tmp_path, text + '\n[arms.dense]\nmethod = "dense"\n'), tmp_path / "r.jsonl.gz"
    assert study.main(["run", path, "--arms", "dense", "--results", str(results)]) == 0
    runs = [json.loads(key) for key in read(results)]
    assert [(run["tuning"], run["lr"], run["seed"]) for run in runs] == [
        (True, 1e-9, 100), (True, 5e-3, 100), (False, 5e-3, 0), (False, 5e-3, 1),
    ]  # fmt: skip
    assert {run["method"] for run in runs} == {"dense"} and {run["lr_rest"] for run in runs[2:]} == {1e-2}
    assert study.main(["run", path, "--arms", "other", "--results", str(results)]) == 2
    assert "--arms 'other': must be of topkast, rigl, dense" in capsys.readouterr().out


def test_a_run_that_fails_is_named_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = AGAIN.replace("[0, 1]", "[0]").replace("steps = 100", "steps = 2") + "block = '999x999'\n"
    results = tmp_path / "r.jsonl.gz"
    assert study.main(["run", grid(tmp_path, text), "--results", str(results)]) == 1
    assert "digits, topkast, seed 0: ConfigError" in capsys.readouterr().out
    assert len(read(results)) == 2


def test_a_broken_file_of_results_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"run": {}}\n{}\n'))
    with pytest.raises(StudyError, match="line 1 is not a run of this study"):
        read(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StudyError, match=r"r\.jsonl\.gz: no whole gzip file of results"):
        read(path)


def test_a_process_that_is_stopped_leaves_the_results_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "r.jsonl.gz"
    first, second = (
        canonical(Run(task="digits", method="dense", steps=1, batch=1, lr=0.1, seed=seed)) for seed in (0, 1)
    )
    add(path, first, {"quality": 1.0})

    def stopped(*paths: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", stopped)
        add(path, second, {"quality": 2.0})
    assert read(path) == {first.key: {"quality": 1.0}}
    add(path, second, {"quality": 2.0})
    assert read(path) == {first.key: {"quality": 1.0}, second.key: {"quality": 2.0}}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_diverged_run_is_counted(tmp_path: Path) -> None:
    run = canonical(Run(task="digits", method="dense", steps=20, batch=16, lr=1e18, optimizer="sgd"))
    result = train(run)
    assert result["quality"] is None and result["nats"] is None
    (row,) = rows([Point("dense", (), run, 20)], {run.key: json.loads(json.dumps(result))}, Times())
    assert row.diverged == 1 and not row.qualities


def test_the_optimizer_moves_what_a_weight_is_the_power_of() -> None:
    weight = nn.Parameter(torch.tensor([0.25, -4.0, 0.0]))
    phi = torch.tensor([0.5, -2.0, 0.0], requires_grad=True)
    loss = torch.tensor([1.0, 2.0, 3.0])
    optimizer = torch.optim.SGD([weight], lr=0.1)
    (loss * weight).sum().backward()
    with powers_of([weight], 2.0):
        optimizer.step()
    (loss * phi * phi.abs()).sum().backward()
    moved = phi - 0.1 * phi.grad
    assert torch.allclose(weight, moved * moved.abs())


def test_parts_of_a_recipe_run() -> None:
    """The last half of the steps is dense; a density that falls costs more than the last one; no time is claimed."""
    common: dict[str, Any] = {"task": "digits", "steps": 4, "batch": 4, "lr": 1e-3, "method": "topkast"}
    plain = train(canonical(Run(**common)))["flops"]
    falling = canonical(Run(**common, fwd_start=0.5, fwd_reached_after=0.5, refresh_every=1, refresh_growth=2.0))
    assert falling.bwd == 0 and falling.options()["fwd_reached_after"] == 2 and not falling.timed
    assert train(falling)["flops"] > plain
    finished = train(canonical(Run(**common, finish=0.5, power=1.5, inputs=3.2)))
    assert finished["flops"] == pytest.approx((plain + 1) / 2) and math.isfinite(finished["quality"])


def test_schedule() -> None:
    factors = [schedule(step, 100) for step in range(100)]
    assert factors[0] == 0.1 and max(factors) == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True) and 0.05 < factors[-1] < 0.06


def test_same_size_dense() -> None:
    task = TASKS["bytes"]
    run = canonical(Run(task="bytes", method="small-dense", steps=1, batch=1, lr=0.1))
    sparse = topkast.sparsify(task.build(task.width), fwd=0.9)
    used = sum(int(fwd.sum()) for fwd, _ in topkast.masks(sparse).values())
    rest = sum(p.numel() for p in sparse.parameters()) - sum(int(b.sum()) for _, b in topkast.masks(sparse).values())
    small = prepare(run, task)
    have = sum(p.numel() for p in small.parameters())
    step = sum(p.numel() for p in task.build(52).parameters()) - sum(p.numel() for p in task.build(48).parameters())
    assert abs(have - (used + rest)) <= step  # as near as a width gets
    assert width_for(lambda width: nn.Linear(width, 10, bias=False), 71, 1, 50) == 7


def test_flops() -> None:
    task = TASKS["digits"]
    dense = sum(layer.weight.numel() for layer in layers_of(task.build(task.width)))
    common: dict[str, Any] = {"task": "digits", "steps": 10, "batch": 4, "lr": 0.1, "balanced": False}
    for method, wanted in (
        ("topkast", 0.4 / 3),
        ("static", 0.1),
        ("magnitude-ste", 0.4),
        ("dense", 1),
        ("swat", 0.4 / 3),
    ):
        run = canonical(Run(method=method, **common))
        assert flops_share(run, prepare(run, task), dense) == pytest.approx(wanted, abs=2e-4), method
