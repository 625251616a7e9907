"""Calls that are timed for an estimate: no more often than their times need."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from topkast.runtime.planner import interleave


def calls(monkeypatch: pytest.MonkeyPatch, **times: list[float]) -> tuple[dict[str, Callable[[], float]], list[str]]:
    """Calls that take the given times in turn, and the order in which they were made."""
    made: list[str] = []
    monkeypatch.setattr(interleave, "_seconds", lambda run, device: run())

    def call(name: str, left: list[float]) -> Callable[[], float]:
        def run() -> float:
            made.append(name)
            return left.pop(0)

        return run

    return {name: call(name, list(left)) for name, left in times.items()}, made


def test_a_cold_first_call_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = calls(monkeypatch, only=[9.0, 5.0, 4.9])
    assert interleave.race(given, math.inf) == {"only": 4.9} and len(made) == 3


def test_slow_calls_and_steady_calls_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = calls(monkeypatch, fast=[1.0, 1.5, 1.05], slow=[2.5], near=[1.4, 1.35], before=[8.0, 8.1])
    assert interleave.race(given, math.inf, always="before") == {"fast": 1.0, "slow": 2.5, "near": 1.35, "before": 8.0}
    assert made == ["fast", "slow", "near", "before", "fast", "near", "before", "fast"]


def test_two_rounds_at_least_and_none_after_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = calls(monkeypatch, only=[9.0, 5.0, 1.0])
    assert interleave.race(given, 0.0) == {"only": 5.0} and len(made) == 2


def test_what_must_be_slower_than_a_beaten_call_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    given, _ = calls(monkeypatch, before=[4.0, 4.1], sparse=[2.0, 2.1], dense=[])
    assert interleave.race(given, math.inf, always="before", above=["dense"]) == {"before": 4.0, "sparse": 2.0}
    given, _ = calls(monkeypatch, before=[4.0, 4.1], sparse=[3.9, 3.9], dense=[5.0, 5.0])
    assert interleave.race(given, math.inf, always="before", above=["dense"])["dense"] == 5.0
