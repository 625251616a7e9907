"""Advice from short runs: what it leaves alone, what repeats, what it decides and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.compiler.advise.search import _difference

X = torch.randn(512, 24, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.randn(24, 6, generator=torch.Generator().manual_seed(1))).argmax(1)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 6))


def step_fn(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    rows = torch.randint(512, (32,), generator=torch.Generator().manual_seed(step))
    loss = nn.functional.cross_entropy(net(X[rows]), Y[rows])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


SMALL: dict[str, Any] = {
    "block": ((1, 1), (4, 4)),
    "bwd": (0.8, 0.9),
    "refresh_every": (2, 5),
    "steps": 10,
    "repeats": 2,
    "min_size": 200,
    "backend": "eager",
}


@pytest.mark.long
def test_the_model_and_the_random_numbers_stay_as_they_were() -> None:
    net = model()
    before, state, versions = (
        copy.deepcopy(net.state_dict()),
        torch.get_rng_state(),
        [p._version for p in net.parameters()],
    )
    topkast.advise(net, step_fn, **SMALL)
    assert torch.equal(state, torch.get_rng_state()) and versions == [p._version for p in net.parameters()]
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and net.training
    assert net._compiled_call_impl is None and "_topkast" not in net.__dict__


@pytest.mark.long
def test_losses_repeat_under_a_seed_and_are_those_of_the_loop() -> None:
    one, two = (topkast.advise(model(), step_fn, **SMALL) for _ in range(2))
    assert [t.losses for t in one.trials[:2]] == [t.losses for t in two.trials[:2]]
    assert one.dense_losses == two.dense_losses
    first = one.trials[0]
    twin = topkast.sparsify(model(), 0.9, first.bwd, block=first.block, refresh_every=first.refresh_every, min_size=200)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-3)
    torch.manual_seed(1)  # the second repeat
    losses = [step_fn(twin, optimizer, step).item() for step in range(10, 20)]
    assert first.losses[1] == pytest.approx(sum(losses[-3:]) / 3, abs=0, rel=1e-15)


@pytest.mark.long
def test_what_it_recommends_is_what_compile_takes() -> None:
    found = topkast.advise(model(), step_fn, **SMALL)
    assert set(found.kwargs) == {"fwd", "bwd", "block", "refresh_every", "min_size"}
    topkast.compile(model(), **found.kwargs)
    assert len(found.trials) == 4 and len(found.why) == 3
    assert all(t.seconds and t.bytes and t.ratio and t.against_dense for t in found.trials)
    text = str(found)
    assert "recommended: topkast.compile(model, fwd=0.9" in text and "not shown: where a run" in text


def test_compiled_steps_are_what_is_timed() -> None:
    one = {"block": ((1, 1),), "bwd": (0.8,), "refresh_every": (2,), "steps": 4, "backend": "aot_eager"}
    found = topkast.advise(model(), step_fn, **{**SMALL, **one})
    (trial,) = found.trials
    low, middle, high = trial.ratio or (0.0, 0.0, 0.0)
    assert 0 < low <= middle <= high and trial.seconds > trial.refresh_seconds / 2 > 0
    assert trial.bytes < found.dense_bytes
    assert found.why[1].startswith("bwd=0.8: not chosen, there was nothing to compare")


def test_many_copies_are_no_recompilations_of_one_another() -> None:
    from topkast.compiler.advise.trial import Runner

    runner = Runner(model(), step_fn, torch.optim.SGD, 4, 0, "aot_eager", {"min_size": 200})
    with torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True):
        for rows in (1, 2, 3):
            runner.time({"fwd": 0.9, "bwd": 0.8, "block": (rows, 1), "refresh_every": 2})


class _Rigged:
    """Losses and times by setting, in place of runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, losses: dict[Any, float], seconds: dict[Any, float]) -> None:
        from topkast.compiler.advise.trial import Runner, Timed

        def loss(runner: Runner, repeat: int, setting: dict[str, Any] | None) -> float:
            value = 1.0 if setting is None else losses[setting["block"]]
            return value + repeat + (0.001 * (-1) ** repeat if setting and setting["block"] == (4, 4) else 0)

        def timed(runner: Runner, setting: dict[str, Any]) -> Timed:
            return Timed(seconds[setting["block"]], 1.0, (1.0, 1.0, 1.0), 0.0, 1, 2)

        monkeypatch.setattr(Runner, "loss", loss)
        monkeypatch.setattr(Runner, "time", timed)


@pytest.mark.parametrize(
    ("losses", "seconds", "expected", "word"),
    [
        ((2.0, 2.0005), (1.0, 0.5), (4, 4), "is faster"),
        ((2.0, 2.0005), (0.5, 1.0), (1, 1), "the fastest of those"),
        ((2.0, 2.5), (1.0, 0.5), (1, 1), "clearly worse: (4, 4)"),
        ((float("inf"), 2.0), (0.5, 1.0), (4, 4), "clearly worse: (1, 1)"),
        ((float("inf"), float("inf")), (1.0, 0.5), (1, 1), "diverged"),
    ],
)
def test_the_fastest_of_those_that_do_not_differ(
    monkeypatch: pytest.MonkeyPatch, losses: Any, seconds: Any, expected: tuple[int, int], word: str
) -> None:
    blocks = ((1, 1), (4, 4))
    _Rigged(monkeypatch, dict(zip(blocks, losses, strict=True)), dict(zip(blocks, seconds, strict=True)))
    found = topkast.advise(model(), step_fn, **{**SMALL, "repeats": 3, "bwd": (0.8,), "refresh_every": (2,)})
    assert found.kwargs["block"] == expected and word in found.why[0]


def test_the_interval_is_students() -> None:
    mean, half = _difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
    assert mean == pytest.approx(7 / 3) and half == pytest.approx(4.302652729749464 * 1.5275252316519468 / 3**0.5)
    assert _difference([1.0], [0.0]) is None and _difference([1.0, float("inf")], [0.0, 0.0]) is None


def test_a_budget_that_ends_says_what_was_not_tried() -> None:
    found = topkast.advise(model(), step_fn, budget=1e-9, **SMALL)
    assert [len(t.losses) for t in found.trials] == [1] and len(found.dense_losses) == 1
    assert found.kwargs["block"] == (1, 1) and "nothing to compare" in found.why[0]
    assert any("for want of time, block 4x4" in limit for limit in found.limits)
    assert "-" in str(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refresh_every": (2, 6)}, r"refresh_every=\[6\]: more than half of steps=10"),
        ({"repeats": 1}, "repeats=1: must be a whole number, at least 2"),
        ({"budget": 0}, "budget=0"),
        ({"block": ()}, "block: must name at least one"),
        ({"block": ((0, 1),)}, r"block=\(0, 1\)"),
        ({"bwd": (0.95,)}, "bwd=0.95: must be at most fwd=0.9"),
        ({"backend": "nvfuser"}, "backend='nvfuser'"),
        ({"sparsity": 0.5}, "unknown arguments sparsity"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(topkast.ConfigError, match=message):
        topkast.advise(model(), step_fn, **{**SMALL, **changes})


def test_a_step_that_trains_the_wrong_model_or_none_is_told() -> None:
    net = model()
    own = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(topkast.ConfigError, match="changed the model itself"):
        topkast.advise(net, lambda _, __, step: step_fn(net, own, step), **SMALL)
    with pytest.raises(topkast.ConfigError, match="changed no parameter"):
        topkast.advise(model(), lambda *_: 1.0, **SMALL)
    with pytest.raises(topkast.ConfigError, match="returned a NoneType"):
        topkast.advise(model(), lambda *_: None, **SMALL)
    with pytest.raises(topkast.ModelError, match="already converted"):
        topkast.advise(topkast.sparsify(model(), min_size=200), step_fn, **SMALL)
