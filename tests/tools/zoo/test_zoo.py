"""A sample of the model zoo, which together touch every pass; and the zoo's own bookkeeping.

The whole sweep is run by hand: topkast.tools.zoo.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from topkast.tools.common.places import RESULTS
from topkast.tools.zoo import dense_stages as _zoo_dense
from topkast.tools.zoo import records_table as _zoo_table
from topkast.tools.zoo import runner as _zoo_run
from topkast.tools.zoo.lockstep_steps import shares
from topkast.tools.zoo.model_entry import Entry, floats, loss_of, without_dropout
from topkast.tools.zoo.stages import check
from topkast.tools.zoo.suites import torch_nn as _zoo_nn
from topkast.tools.zoo.suites import transformers_models as _zoo_transformers

TRANSFORMERS = ("albert", "gpt2", "t5", "vit", "convnext", "wavlm", "mamba", "clip", "llama")
MODULES = (
    "Linear 1",
    "Conv1d 0",
    "Conv2d 1",
    "Conv3d 1",
    "ConvTranspose2d 0",
    "LSTM 8",
    "GRU 0",
    "GRUCell 0",
    "Bilinear 0",
    "TransformerEncoderLayer 0",
)
STAGES = ("compile", "oracle", "copies")


def asked(entry: Entry, stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
    record: dict[str, Any] = {}
    check(entry, record.update, stages)
    return record


def sound(record: dict[str, Any]) -> None:
    assert {stage: record.get(stage) for stage in STAGES} == dict.fromkeys(STAGES, "ok")
    assert record["sites"] > 0


@pytest.mark.long
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    (entry,) = [entry for entry in _zoo_transformers.entries() if entry.name == name]
    record = asked(entry)
    sound(record)
    assert record["share"] == {"forward": 1.0, "backward": 1.0}


@pytest.mark.long
@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    (entry,) = [entry for entry in _zoo_nn.entries() if entry.name == name]
    record = asked(entry)
    sound(record)
    assert record["share"] == {"forward": 1.0, "backward": 1.0}


def test_what_is_not_sparse_is_refused_and_what_fails_is_said() -> None:
    norm = Entry("here", "norm", "norm", lambda: nn.LayerNorm(4), lambda g: ((torch.randn(2, 4, generator=g),), {}))
    assert asked(norm)["compile"].startswith("refused: model: no weight can be sparse")
    broken = Entry("here", "broken", "linear", lambda: nn.Linear(4, 2), lambda g: ((torch.randn(2, 3),), {}))
    assert asked(broken, ("model", "compile"))["model"].startswith("RuntimeError: mat1 and mat2")


def test_loss_and_dropout() -> None:
    x = torch.randn(3, requires_grad=True)
    output = {"a": (x * 2, torch.ones(2, dtype=torch.int64)), "b": [x * 3, None]}
    assert len(list(floats(output))) == 2
    loss_of(output).backward()
    assert x.grad is not None and bool((x.grad != 0).all())
    model = without_dropout(nn.Sequential(nn.Dropout(0.5), nn.LSTM(2, 2, num_layers=2, dropout=0.3)))
    assert model[0].p == 0 and model[1].dropout == 0


GOOD = {
    "suite": "s", "name": "a", "family": "f", "model": "ok", "compile": "ok", "oracle": "ok", "copies": "ok",
    "export": "ok", "share": {"forward": 1.0, "backward": 0.5}, "plain": {"breaks": 1, "compile": 2.0},
    "topkast": {"breaks": 1, "compile": 3.0}, "unfused": {"used by split": 2},
    "versions": {"code": "aa", "torch": "2", "date": "2026-01-02"},
    "seconds with Inductor": {"plain": 9.0, "topkast": 8.5},
}  # fmt: skip


def test_records_and_table(tmp_path: Path) -> None:
    path = tmp_path / "zoo.json"
    bad = {**GOOD, "name": "b", "oracle": "AssertionError: no", "topkast": {"breaks": 2, "compile": 5.0}}
    theirs = {**GOOD, "name": "d", "export": "ExportError: no", "not ours": {"export": "ValueError: nor this"}}
    none = {"suite": "s", "name": "c", "family": "f", "model": "ok", "compile": "refused: nothing"}
    _zoo_run.write(path, {(row["suite"], row["name"]): row for row in (GOOD, bad, theirs, none)})
    assert json.loads(path.read_text()) == [GOOD, bad, none, theirs]
    rows = list(_zoo_run.read(path).values())
    last = _zoo_table.table(rows).splitlines()[-1]
    assert last == "| s | 3 (1 left out) | 3 of 3 | 2 of 3 | 100.0%, 50.0% | 2 of 3 | 3 of 3 | 2 of 2 (1 not ours) |"
    assert "a 8.5 s (9.0 s)" in _zoo_table.times(rows)
    assert _zoo_table.origin([GOOD]) == "1 records of 2026-01-02, torch 2, code aa."
    assert "several states of the code: 3 of aa, 1 of not recorded." in _zoo_table.origin(rows)
    said = _zoo_table.failures(rows)
    assert "- 1: oracle: AssertionError: no (s/b)" in said and "- 3: not fused: used by split (s/a, s/b, s/d)" in said
    assert "- 1: not ours, the dense model fails in the same stage: export: ValueError: nor this (s/d)" in said


def test_the_stored_records_make_a_table() -> None:
    records = list(_zoo_run.read(RESULTS / "zoo.json").values())
    assert len(records) > 200
    suites = {record["suite"] for record in records if "kernel" not in record}
    rows = re.findall(r"^\| ([\w. ]+) \|", _zoo_table.table([r for r in records if "kernel" not in r]), re.M)
    assert set(rows) == suites | {"suite", "all"}


def test_the_state_of_the_code_changes_with_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "a.py").write_text("1")
    monkeypatch.setattr(_zoo_run, "ROOT", tmp_path)
    before = _zoo_run.state_of_the_code()
    assert before == _zoo_run.state_of_the_code()
    (tmp_path / "passes" / "a.py").write_text("2")
    assert before != _zoo_run.state_of_the_code()


class Noisy(nn.Module):
    """What it computes depends on how often it was called, which is no part of its state."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    @torch.compiler.disable
    def count(self) -> int:
        Noisy.calls += 1
        return Noisy.calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.count()


class Single(nn.Linear):
    """Takes float32 only."""

    def __init__(self) -> None:
        super().__init__(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("no float64")
        return super().forward(x)


class Own(nn.Linear):
    """Its state dict reads its weight, as that of torch_geometric's linear layer does."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight.detach()


def test_the_oracle_has_a_weight_between_its_steps() -> None:
    made = Entry(
        "here", "own", "linear", lambda: Own(4, 3, bias=False), lambda g: ((torch.randn(2, 4, generator=g),), {})
    )
    sound(asked(made))


def test_what_a_model_is_excused_from_is_told_of() -> None:
    assert _zoo_table.settled([GOOD]) == ""
    wider = {**GOOD, _zoo_table.WIDER: "AssertionError: 1.2 of its budget", _zoo_table.TIES: 1}
    assert _zoo_table.settled([GOOD, wider]).startswith("2 models equal the oracle. 1 of them do so within")
    never = {key: value for key, value in GOOD.items() if key != "topkast"}
    assert "| 1 of 1 (1 not known) |" in _zoo_table.table([GOOD, never])


@pytest.mark.long
def test_what_the_dense_model_fails_in_too_is_not_ours() -> None:
    noisy = Entry("here", "noisy", "linear", Noisy, lambda g: ((torch.randn(2, 4, generator=g),), {}))
    record = asked(noisy, ("compile", "copies"))
    assert record["copies"].startswith("AssertionError") and "something else" in record["not ours"]["copies"]
    assert "in each run" in str(_zoo_dense.fails("oracle", noisy, AssertionError("here: weight differs in 2 of 12")))
    # Whatever the dense model computes: no weight outside B moves, and what only float64 lacks does not excuse ours.
    assert _zoo_dense.fails("oracle", noisy, AssertionError("0.weight moved outside B")) is None
    single = Entry("here", "single", "linear", Single, noisy.batch)
    error = RuntimeError("ours")
    assert _zoo_dense.fails("oracle", single, error) is None
    error.add_note(_zoo_dense.BESIDE)
    assert "no float64" in str(_zoo_dense.fails("oracle", single, error))
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    full.add_note(_zoo_dense.BESIDE)
    assert _zoo_dense.fails("oracle", single, full) is None
    # A linear layer fails in none of it, whatever is said of ours.
    steady = Entry("here", "steady", "linear", lambda: nn.Linear(4, 3), noisy.batch)
    for stage in ("compile", "oracle", "copies", "export"):
        assert _zoo_dense.fails(stage, steady, RuntimeError("ours")) is None


def test_a_run_is_resumed_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "zoo.json", tmp_path / "calls"

    def pretend(entry: Entry, tell: Any, stages: tuple[str, ...]) -> None:
        with calls.open("a") as file:
            file.write(entry.name)
        tell({"model": "ok", "seconds": {"model": 0.0}})
        if entry.name == "b":
            while True:  # what the limit of time is for
                pass

    monkeypatch.setattr("topkast.tools.zoo.stages.check", pretend)
    entries = [Entry("s", name, "f", nn.Identity, lambda g: ((), {})) for name in "ab"]
    for _ in range(2):
        found = _zoo_run.run(entries, path, stages=(), jobs=1, seconds=1.0, gigabytes=8)
    assert calls.read_text() == "ab"
    assert found["s", "a"]["model"] == "ok" and "died" not in found["s", "a"]
    assert found["s", "b"]["died"] == "stopped after 1 s"


def test_shares_are_weighted_by_work() -> None:
    import topkast

    model = topkast.sparsify(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), min_size=1)
    fused, read = {("forward", "dense", ""): 1}, {("read", "reference", "used by add"): 1}
    found = shares(model, {"0.weight": _counter(fused), "1.weight": _counter(read)},
                   {"0.weight": _counter(fused), "1.weight": _counter(read)})  # fmt: skip
    assert found["share"] == {"forward": 0.5} and found["unfused"] == {"used by add": 1}


def _counter(counts: dict[tuple[str, str, str], int]) -> Any:
    from collections import Counter

    return Counter(counts)
