"""Doubtful and old times are measured again; a checkpoint's times repeat a run."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import topkast
from topkast.passes.aten.joint_pass import JointPass
from topkast.passes.aten.log import PassLog
from topkast.runtime import native
from topkast.runtime.planner import cache
from topkast.runtime.planner import plan as planner
from topkast.runtime.planner.interleave import BURSTS, interleave

from .test_planner import PROBLEM, another_process

SLOW, FAST = {"native": 35.9e-3, "dense": 30e-3}, {"native": 0.17e-3, "dense": 0.3e-3}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    monkeypatch.setattr(cache, "PAUSE", 0.0)
    another_process()
    yield tmp_path
    another_process()


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def in_turn(*results: dict[str, float]) -> tuple[Callable[[], dict[str, float]], list[int]]:
    """A measurement that gives these results one after another, the last one for ever; and how often it was called."""
    calls: list[int] = []

    def measure() -> dict[str, float]:
        calls.append(len(calls))
        return results[min(calls[-1], len(results) - 1)]

    return measure, calls


def test_a_time_above_the_bound_is_measured_again_and_the_minimum_counts() -> None:
    measure, calls = in_turn(SLOW, {"native": 0.2e-3, "dense": 0.3e-3}, FAST)
    assert cache.remembered("key", measure, 1e-3) == {"native": 0.2e-3, "dense": 0.3e-3}
    assert len(calls) == 2


def test_a_doubtful_time_is_measured_again_by_later_processes_but_not_for_ever() -> None:
    measure, calls = in_turn(SLOW)
    assert cache.remembered("key", measure, 1e-3) == SLOW == cache.remembered("key", measure, 1e-3)
    assert len(calls) == cache.AT_ONCE, "once a process"
    for _ in range(3):
        another_process()
        cache.remembered("key", measure, 1e-3)
    assert len(calls) == cache.TRIES
    another_process()
    cache.remembered("other", in_turn(SLOW)[0], 1e-3)
    another_process()
    measure, calls = in_turn(FAST)
    assert cache.remembered("other", measure, 1e-3) == FAST and len(calls) == 1, "the machine is free now"
    another_process()
    assert cache.remembered("other", measure, 1e-3) == FAST and len(calls) == 1


def test_an_old_time_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = in_turn(FAST, {"native": 1e-3, "dense": 2e-3})
    cache.remembered("key", measure)
    later = cache.time.time() + (cache.DAYS + 1) * 24 * 3600
    monkeypatch.setattr(cache.time, "time", lambda: later)
    assert cache.remembered("key", measure) == {"native": 1e-3, "dense": 2e-3} and len(calls) == 2, (
        "no minimum with old"
    )


def test_clear_forgets_and_lets_graphs_be_compiled_again(folder: Path) -> None:
    assert cache.clear() == 0
    measure, calls = in_turn(FAST)
    cache.remembered("key", measure)
    before = JointPass(PassLog()).uuid()
    assert cache.clear() == 1 and not (folder / "times.json").exists()
    assert JointPass(PassLog()).uuid() != before
    cache.remembered("key", measure)
    assert len(calls) == 2


def test_the_bound_follows_the_flops_and_is_far_above_a_quiet_machine() -> None:
    larger = dataclasses.replace(PROBLEM, operands=(((16 * 1024, 64), (64, 1)),))
    assert planner.bound(PROBLEM) < planner.bound(larger) < 1
    assert planner.bound(dataclasses.replace(PROBLEM, device=torch.device("cuda"))) == math.inf


def test_rounds_are_spread_and_the_minimum_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topkast.runtime.planner.interleave._seconds", lambda run, device: run())
    results = iter([9.0, 5.0, 4.0, 6.0])  # the first is the warm-up
    assert interleave({"only": lambda: next(results)}, 0.0) == {"only": 4.0} and BURSTS == 3


@pytest.mark.skipif(native.library() is None, reason="the native kernels are not built")
def test_a_checkpoint_repeats_the_picks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: None) -> None:
    def trained(times: dict[str, float], path: Path | None = None) -> nn.Module:
        monkeypatch.setattr(planner, "measure", lambda problem, names: {name: times[name] for name in names})
        torch._dynamo.reset()  # another process would compile again
        model = topkast.compile(nn.Linear(64, 96), 0.9, 0.8, backend="aot_eager", min_size=20)
        if path is not None:
            topkast.load(model, path)
        model(torch.randn(16, 64)).sum().backward()
        return model

    def picks(model: nn.Module) -> set[str]:
        (row,) = topkast.report(model).sites
        return {kernel for product in row["fused"].values() for kernel in product}

    first = trained(FAST)
    assert picks(first) == {"native"}
    topkast.save(first, tmp_path / "run.safetensors")
    cache.clear()
    other = {"native": 2e-4, "dense": 1e-4}
    assert picks(trained(other)) == {"dense"}
    before = JointPass(PassLog()).uuid()
    assert picks(trained(other, tmp_path / "run.safetensors")) == {"native"}
    assert JointPass(PassLog()).uuid() != before, "no graph of Inductor's cache has other picks"
    torch.use_deterministic_algorithms(False)
    assert picks(trained(other, tmp_path / "run.safetensors")) == {"dense"}
    monkeypatch.setattr(cache, "machine", lambda: "another machine")
    torch.use_deterministic_algorithms(True)
    cache._loaded.clear()
    assert picks(trained(other, tmp_path / "run.safetensors")) == {"dense"}


def test_known_times_are_not_measured_again_if_a_run_must_repeat(deterministic: None) -> None:
    measure, calls = in_turn(SLOW)
    cache.remembered("key", measure, 1e-3)
    another_process()
    cache.remembered("key", measure, 1e-3)
    assert len(calls) == cache.AT_ONCE


@pytest.mark.parametrize(
    "content",
    [
        "[" * 5000,
        "3",
        '{"%s": 3}',
        '{"%s": {"key": 3, "[1]": {"seconds": {"native": 1.0}}}}',
        '{"%s": {"[1]": {"seconds": {"native": "x"}, "when": 1, "tries": 1, "doubtful": false}}}',
        '{"%s": {"no json": {"seconds": {"native": 1.0}, "when": 1, "tries": 1, "doubtful": false}}}',
        '{"%s": {"3": {"seconds": {"native": 1.0}, "when": 1, "tries": 1, "doubtful": false}}}',
        '{"%s": {"[1]": {"seconds": [1.0], "when": "x", "tries": [], "doubtful": 3}}}',
    ],
)
def test_odd_content_is_no_time(content: str, folder: Path) -> None:
    (folder / "times.json").write_text(content.replace("%s", cache.machine()))
    measure, calls = in_turn(FAST)
    assert cache.remembered("[1]", measure) == FAST and len(calls) == 1
    assert cache.of_model(lambda key: key == [1])["seconds"] == {"[1]": FAST}


def test_a_pipe_in_the_place_of_the_file_is_left_alone(folder: Path) -> None:
    os.mkfifo(folder / "times.json")
    measure, _ = in_turn(FAST)
    assert cache.remembered("[]", measure) == FAST
    assert (folder / "times.json").is_fifo() and len(list(folder.iterdir())) == 1


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TOPKAST_CACHE")
    monkeypatch.setattr(Path, "expanduser", no_home)
    measure, _ = in_turn(FAST)
    assert cache.remembered("[]", measure) == FAST
