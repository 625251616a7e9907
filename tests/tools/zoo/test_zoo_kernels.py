"""The zoo with the kernels that users run: its sample, its blocks, its records and its table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.tools.zoo import __main__ as zoo
from topkast.tools.zoo import kernel_sample as _zoo_kernels
from topkast.tools.zoo import kernel_table as _zoo_kernel_table
from topkast.tools.zoo import records_table as _zoo_table
from topkast.tools.zoo import runner as _zoo_run
from topkast.tools.zoo.model_entry import Entry
from topkast.tools.zoo.stages import check

from .test_zoo import GOOD


def linear(name: str, size: int = 40) -> Entry:
    return Entry(
        "s", name, "linear", lambda: nn.Linear(size, size), lambda g: ((torch.randn(3, size, generator=g),), {})
    )


def test_the_sample_has_every_nth_model_and_the_blocks_in_turn() -> None:
    entries = [linear(str(number)) for number in range(20)]
    found = _zoo_kernels.sample(entries, "native", 3, 1, True)
    assert [entry.name for entry in found] == ["1", "4", "7", "10", "13", "16", "19"]
    assert [entry.options["block"] for entry in found] == [*_zoo_kernels.BLOCKS, *_zoo_kernels.BLOCKS[:3]]
    assert {entry.kernel for entry in found} == {"native"}
    assert _zoo_kernels.sample(entries, "dense", 1, 0, False) == entries


@pytest.mark.parametrize("size, block", [(40, "16x16"), (12, "4x1"), (3, "1x1")])
def test_a_block_that_no_weight_has_room_for_becomes_the_next_smaller(
    size: int, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", "native")
    entry = dataclasses.replace(linear("a", size), kernel="native", options={"block": (16, 16)})
    record: dict[str, Any] = {}
    check(entry, record.update, ("compile", "oracle"))
    assert (record["compile"], record["oracle"], record["block"]) == ("ok", "ok", block)
    assert record["kernels"] == {"native": 1.0}


def test_another_error_of_the_configuration_stands() -> None:
    def start(state: dict[str, Any]) -> None:
        raise topkast.ConfigError("fwd=2")

    with pytest.raises(topkast.ConfigError, match="fwd=2"):
        _zoo_kernels.fitting({"entry": linear("a")}, start)


def test_records_of_kernels_stand_beside_those_of_dense_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(entry: Entry, tell: Any, stages: tuple[str, ...]) -> None:
        import os

        tell({"model": "ok", "compile": os.environ["TOPKAST_KERNEL"]})

    monkeypatch.setattr("topkast.tools.zoo.stages.check", pretend)
    path = tmp_path / "zoo.json"
    for kernel in ("dense", "native", "native"):
        entries = _zoo_kernels.sample([linear("a")], kernel, 1, 0, kernel != "dense")
        _zoo_run.run(entries, path, stages=(), jobs=1, seconds=10.0, gigabytes=8)
    found = _zoo_run.read(path)
    assert {key: record["compile"] for key, record in found.items()} == {
        ("s", "a"): "dense", ("s", "a", "native"): "native"
    }  # fmt: skip
    assert "kernel" not in found["s", "a"] and found["s", "a", "native"]["kernel"] == "native"


def test_the_table_by_kernel() -> None:
    native = {**GOOD, "kernel": "native", "block": "4x1", "kernels": {"native": 0.75, "dense": 0.25}}
    wider = {**native, "name": "b", "block": "1x1", _zoo_table.WIDER: "AssertionError: 1.1 of its budget"}
    bad = {**native, "name": "c", "kernel": "first", "oracle": "AssertionError: no"}
    theirs = {**bad, "name": "d", "not ours": {"oracle": "ValueError: nor this"}}
    refused = {**native, "name": "e", "compile": "refused: nothing"}
    rows = [GOOD, native, wider, bad, theirs, refused]
    lines = _zoo_table.section(rows).splitlines()
    first = lines.index(f"| {' | '.join(_zoo_kernel_table.HEADINGS)} |") + 2
    assert lines[first : first + 5] == [
        "| native | 1x1 | 1 | 1 of 1 | 1 | 75.0% |",
        "| native | 4x1 | 1 | 1 of 1 | 0 | 75.0% |",
        "| native | all | 2 | 2 of 2 | 1 | 75.0% |",
        "| first | 4x1 | 2 | 0 of 1 (1 not ours) | 0 | - |",
        "| first | all | 2 | 0 of 1 (1 not ours) | 0 | - |",
    ]
    assert _zoo_table.table([GOOD]) in _zoo_table.section(rows), "the table of dense kernels counts no others"
    assert "- 1: oracle: AssertionError: no (s/c first 4x1)" in _zoo_table.failures(rows)
    assert _zoo_kernel_table.table([], _zoo_table.WIDER) == ""


def test_arguments() -> None:
    args = zoo.arguments(["run", "nn", "--kernel", "first", "--blocks", "--every", "5", "--start", "2"])
    assert (args.kernel, args.blocks, args.every, args.start) == ("first", True, 5, 2)
