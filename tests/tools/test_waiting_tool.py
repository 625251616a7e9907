"""topkast.tools.bench waiting: nothing is compiled that plain torch.compile does not compile."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from topkast.tools.bench.waiting.child import run
from topkast.tools.bench.waiting.waiting_table import child, import_seconds, waiting_table


def graphs(script: str, side: str) -> int:
    torch._dynamo.reset()
    found = run(script, side, "inductor" if script == "lstm" else "aot_eager")["steps"]
    assert all(after["cpu seconds"] >= before["cpu seconds"] > 0 for before, after in itertools.pairwise(found))
    return found[-1]["graphs"]


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("conv", "bert", "generate")]


@pytest.mark.parametrize("script", ["epoch", *LONG])
def test_compiles_no_more_graphs_than_plain_torch(script: str) -> None:
    assert graphs(script, "sparse") <= graphs(script, "dense")


def test_an_lstm_is_compiled_once_for_all_lengths_and_batches() -> None:
    """Plain ``torch.compile`` leaves recurrent layers to Python: no graph, and no other graph for another shape."""
    assert graphs("lstm", "sparse") == 1


def test_an_eager_model_compiles_nothing() -> None:
    assert graphs("epoch", "eager") == 0


def test_an_import_is_timed_in_a_new_process() -> None:
    found = import_seconds("json")
    assert found["seconds"] > 0 and 0 < found["cpu seconds"] < 10


@pytest.mark.long
def test_runs_in_processes_of_its_own(tmp_path: Any) -> None:
    found = child("epoch", "sparse", "aot_eager", str(tmp_path))
    assert found["steps"][-1]["graphs"] == 2


def test_the_table_has_both_sides() -> None:
    step = {"step": "first", "seconds": 3.0, "cpu seconds": 2.0, "graphs": 1}
    last = {"step": "last", "seconds": 5.0, "cpu seconds": 4.0, "graphs": 2}
    rows = [
        {"script": "epoch", "side": side, "caches": "cold", "steps": [step, last], "measured": 7}
        for side in ("dense", "sparse")
    ]
    (first, whole, compiled) = (list(waiting_table(rows).columns[at].cells) for at in (2, 3, 4))
    assert (first, whole, compiled) == (["3.0 (2.0) / 3.0 (2.0)"], ["5.0 (4.0) / 5.0 (4.0)"], ["2 / 2"])
