"""The figures reach TensorBoard's own files, through its writer, transformers' Trainer and Lightning.

TensorBoard is no part of the environment of the tests: ``make tensorboard`` installs it in a folder of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import topkast
from topkast.tests.support.models.watched import lightning_run, made, train, transformers_trainer

board: Any = pytest.importorskip("torch.utils.tensorboard", reason="TensorBoard is not here", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in its protobuf


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of each entry, as TensorBoard reads its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((one.step, one.value) for one in events.Scalars(name))
    return found


def test_the_writer(tmp_path: Path) -> None:
    model = made()
    with board.SummaryWriter(str(tmp_path)) as writer:
        topkast.watch.every_refresh(
            model, lambda step, figures: [writer.add_scalar(name, value, step) for name, value in figures.items()]
        )
        train(model, 5)
    found, figures = read(tmp_path), topkast.watch.metrics(model)
    assert set(found) == set(figures) and len(figures) >= 8
    for name, value in figures.items():
        assert [step for step, _ in found[name]] == [2, 4]
        assert found[name][-1][1] == pytest.approx(value, rel=1e-6)


def test_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run = transformers_trainer(transformers, tmp_path, report_to=["tensorboard"])
    topkast.watch.trainer(run).train()
    found = read(tmp_path / "board")
    ours = {name: entries for name, entries in found.items() if name.endswith("sparse/density_a")}
    assert len(ours) == 1 and any(name.endswith("/loss") for name in found)
    (entries,) = ours.values()
    assert dict(entries).keys() >= {2, 4} and entries[0][1] == pytest.approx(0.2, rel=0.1)


def test_lightning(tmp_path: Path) -> None:
    lightning: Any = pytest.importorskip("lightning.pytorch")
    lightning_run(lightning, made(), lightning.loggers.TensorBoardLogger(tmp_path))
    entries = read(tmp_path)["sparse/density_a"]
    assert [step for step, _ in entries] == [2, 4] and entries[0][1] == pytest.approx(0.2, rel=0.1)
