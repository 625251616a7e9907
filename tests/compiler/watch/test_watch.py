"""Figures for loggers, and hooks after a refresh."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.runtime.errors import ModelError
from topkast.runtime.state.model import sites
from topkast.tests.support.models.watched import lightning_run, made, train, transformers_trainer


def test_figures_are_counted_from_the_masks() -> None:
    model = made(balanced=False)
    assert "sparse/churn_a" not in topkast.watch.metrics(model)
    ever = {name: fwd for name, (fwd, _) in topkast.masks(model).items()}
    for _ in range(3):
        train(model, 2)
        topkast.refresh(model)
        ever = {name: ever[name] | fwd for name, (fwd, _) in topkast.masks(model).items()}
    found, masks = topkast.watch.metrics(model), topkast.masks(model)
    numel = sum(fwd.numel() for fwd, _ in masks.values())
    in_a, in_b = (sum(int(pair[i].sum()) for pair in masks.values()) for i in (0, 1))
    assert found["sparse/density_a"] == in_a / numel and found["sparse/density_b"] == in_b / numel
    assert found["sparse/flops_ratio"] == pytest.approx((2 * in_a + in_b) / numel / 3)
    assert found["sparse/ever_in_a"] == sum(int(mask.sum()) for mask in ever.values()) / numel
    report = topkast.report(model).totals
    assert found["sparse/churn_a"] == pytest.approx(report["churn"]["new_a"])
    assert found["sparse/bytes"] == report["bytes"]["sites"]["sparse"]
    assert all(type(value) is float for value in found.values())


def test_dead_rows() -> None:
    model = made(balanced=False, fwd=0.9, bwd=0.9)
    theta = topkast.dense_state_dict(model, values="all")
    theta["0.weight"][3:7] = 0
    topkast.load_dense_state_dict(model, theta)
    expected = sum(int((~fwd.any(1)).sum()) for fwd, _ in topkast.masks(model).values())
    assert topkast.watch.metrics(model)["sparse/dead_rows"] == expected >= 4


def test_the_step_ratio_comes_from_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest kernel of each product against the dense one; measurements without a dense kernel do not count."""
    entries = [
        {"product": "spmm", "seconds": {"native": 1.0, "dense": 4.0}},
        {"product": "sddmm", "seconds": {"native": 7.0, "dense": 6.0, "transient": 5.0}},
        {"product": "spmm on tiles", "seconds": {"rows": 9.0, "tiles": 1.0}},
    ]
    model = made()
    monkeypatch.setattr("topkast.compiler.watch.sparse_figures.measured", lambda geometry, n_fwd, n_bwd: [])
    assert "sparse/step_ratio" not in topkast.watch.metrics(model)
    monkeypatch.setattr("topkast.compiler.watch.sparse_figures.measured", lambda geometry, n_fwd, n_bwd: entries)
    assert topkast.watch.metrics(model)["sparse/step_ratio"] == (1 + 5) / (4 + 5)


@pytest.mark.parametrize("options", [{}, {"method": "rigl", "bwd": None}, {"refresh_in_background": True}], ids=str)
def test_hooks_follow_each_refresh(options: dict[str, Any]) -> None:
    model = made(**options)
    seen: list[tuple[int, list[str], float]] = []

    def look(root: nn.Module, names: list[str]) -> None:
        assert root is model
        seen.append((sites(model)[names[0]].step, names, topkast.watch.metrics(model)["sparse/density_a"]))

    handle = topkast.on_refresh(model, look)
    train(model, 5)
    every = ["0.weight", "2.weight"]
    assert [(step, names) for step, names, _ in seen] == [(step, every) for step in (2, 4)]
    assert {density for _, _, density in seen} == {topkast.watch.metrics(model)["sparse/density_a"]}
    handle.remove()
    before = len(seen)
    topkast.refresh(model)
    assert len(seen) == before


def test_copies_and_pickles_have_no_hooks(tmp_path: Path) -> None:
    model, seen = made(), list[int]()
    topkast.on_refresh(model, lambda root, names: seen.append(1))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        topkast.refresh(twin)
    assert seen == []
    topkast.refresh(model)
    assert seen == [1]


def test_an_error_in_a_hook_reaches_the_loop_and_leaves_the_model_whole() -> None:
    model, expected = made(), made()

    def fail(root: nn.Module, names: list[str]) -> None:
        raise ZeroDivisionError

    handle = topkast.on_refresh(model, fail)
    with pytest.raises(ZeroDivisionError):
        topkast.refresh(model)
    handle.remove()
    topkast.refresh(expected)
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in expected.state_dict().items())
    train(model, 3)


def test_a_plain_logger(capsys: pytest.CaptureFixture[str]) -> None:
    model, seen = made(), list[tuple[int, dict[str, float]]]()
    topkast.watch.every_refresh(model, lambda step, figures: seen.append((step, figures)))
    handle = topkast.watch.every_refresh(model)
    train(model, 5)
    handle.remove()
    assert [step for step, _ in seen] == [2, 4]
    assert "topkast, step 2: density_a 0.1" in capsys.readouterr().out
    assert seen[-1][1] == topkast.watch.metrics(model)


def test_a_model_that_was_not_converted() -> None:
    for call in (topkast.watch.metrics, topkast.watch.every_refresh, lambda model: topkast.on_refresh(model, print)):
        with pytest.raises(ModelError, match="has not converted"):
            call(nn.Linear(2, 2))


def test_trainer(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    written: list[dict[str, float]] = []

    class Board(transformers.TrainerCallback):
        """In the place of TensorBoard's callback, which comes before the user's own too."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            written.append(dict(logs))

    run = topkast.watch.trainer(transformers_trainer(transformers, tmp_path, callbacks=[Board()]))
    run.train()
    assert [logs["sparse/density_a"] for logs in written[:2]] == [pytest.approx(0.2, rel=0.1)] * 2
    assert "sparse/churn_b" in run.state.log_history[1] and "loss" in run.state.log_history[1]
    with pytest.raises(ModelError, match="has not converted"):
        topkast.watch.trainer(transformers.Trainer(nn.Linear(2, 2), run.args))


def test_lightning(tmp_path: Path) -> None:
    lightning: Any = pytest.importorskip("lightning.pytorch")

    class Log(lightning.loggers.logger.Logger):
        name, version = "log", 0

        def __init__(self) -> None:
            super().__init__()
            self.written: list[tuple[int, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if any(name.startswith("sparse/") for name in metrics):
                self.written.append((step, metrics))

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    log = Log()
    lightning_run(lightning, made(), log)
    assert [step for step, _ in log.written] == [2, 4]
    assert log.written[0][1]["sparse/density_a"] == pytest.approx(0.2, rel=0.1)
    with pytest.raises(ModelError, match="was converted"):
        lightning_run(lightning, nn.Linear(16, 16), Log())
