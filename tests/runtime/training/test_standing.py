"""A loop that moves weights and counts no step is told so, once; no other loop is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import topkast
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import sgd, sites_of

CASE = CASES["mlp"]
SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "min_size": 1, "backend": "eager"}
Loop = Callable[[nn.Module], None]


def small(**options: Any) -> nn.Module:
    return topkast.compile(CASE.model(), **{**SPARSE, **options})


def backward(model: nn.Module, number: int = 0) -> None:
    (args, target) = CASE.batches(number + 1)[number]
    CASE.loss(model(*args), target).backward()


@torch.no_grad()
def move(model: nn.Module, lr: float = 0.05) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.data.add_(p.grad, alpha=-lr)


def said(loop: Loop, model: nn.Module) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loop(model)
    return [str(warning.message) for warning in seen if "no step is counted" in str(warning.message)]


def by_hand(model: nn.Module) -> None:
    """As pytorch/examples trains its language model."""
    for number in range(8):
        model.zero_grad()
        backward(model, number)
        move(model)


def replaced(model: nn.Module) -> None:
    for _ in range(8):
        model.zero_grad()
        backward(model)
        for p in model.parameters():
            p.data = p.data - 0.05 * p.grad


def accumulated_by_hand(model: nn.Module) -> None:
    for number in range(24):
        backward(model)
        if number % 3 == 2:
            move(model)
            model.zero_grad()


def after_an_optimizer(model: nn.Module) -> None:
    stepped(model)
    for _ in range(40):
        model.zero_grad()
        backward(model)
        move(model, 1e-3)


@pytest.mark.long
@pytest.mark.parametrize("loop", [by_hand, replaced, accumulated_by_hand, after_an_optimizer])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_is_told_once(loop: Loop, backend: str) -> None:
    model = small(backend=backend)
    (text,) = said(loop, model)
    assert "topkast.step(model, lr=lr)" in text
    assert [w for w in topkast.report(model).warnings if "no step is counted" in w] == [text.removeprefix("topkast: ")]
    assert said(by_hand, model) == []


def stepped(model: nn.Module) -> None:
    optimizer = sgd(list(model.parameters()))
    for number in range(6):
        optimizer.zero_grad()
        backward(model, number)
        optimizer.step()


def counted(model: nn.Module) -> None:
    for number in range(8):
        model.zero_grad()
        backward(model, number)
        move(model)
        topkast.step(model, lr=0.05)


def accumulated(model: nn.Module) -> None:
    optimizer = sgd(list(model.parameters()))
    for number in range(40):
        backward(model)
        if number % 20 == 19:
            optimizer.step()
            optimizer.zero_grad()


def skipped(model: nn.Module) -> None:
    optimizer, scaler = sgd(list(model.parameters())), torch.amp.GradScaler("cpu", growth_interval=1000)
    for _ in range(8):
        optimizer.zero_grad()
        (args, target), *_ = CASE.batches(1)
        (scaler.scale(CASE.loss(model(*args), target)) * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()


def ours(change: Callable[[nn.Module, int], Any]) -> Loop:
    def loop(model: nn.Module) -> None:
        for number in range(12):
            backward(model)
            change(model, number)

    return loop


def loads(model: nn.Module, number: int) -> None:
    model.load_state_dict(topkast.compile(CASE.model(number), **SPARSE).state_dict())


def loads_dense(model: nn.Module, number: int) -> None:
    state = topkast.dense_state_dict(model, values="all")
    topkast.load_dense_state_dict(model, {key: value * 1.1 for key, value in state.items()})


def casts(model: nn.Module, number: int) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def edits(model: nn.Module) -> None:
    for _ in range(12):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)
        model(*CASE.batches(1)[0][0])


def frozen(model: nn.Module) -> None:
    for site in sites_of(model).values():
        site.original.requires_grad_(False)
    by_hand(model)


def averaged(model: nn.Module) -> None:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    teacher = copy.deepcopy(model)
    optimizer = sgd(list(model.parameters()))
    for number in range(12):
        optimizer.zero_grad()
        backward(model, number)
        optimizer.step()
        average.update_parameters(model)
        with torch.no_grad():
            for mine, other in zip(teacher.parameters(), model.parameters(), strict=True):
                mine.data.lerp_(other.data, 0.1)
        for each in (average, teacher):
            each(*CASE.batches(1)[0][0])


def perturbed(model: nn.Module) -> None:
    """Adversarial weights: three moves within a step that are taken back."""
    optimizer = sgd(list(model.parameters()))
    for number in range(6):
        held = [p.detach().clone() for p in model.parameters()]
        for _ in range(3):
            backward(model, number)
            if number:
                move(model, -0.01)
        with torch.no_grad():
            for p, before in zip(model.parameters(), held, strict=True):
                p.copy_(before)
        optimizer.step()
        optimizer.zero_grad()


def closures(model: nn.Module) -> None:
    optimizer = sgd(list(model.parameters()))
    for _ in range(3):
        optimizer.step(lambda: [(backward(model), move(model, 1e-3)) for _ in range(9)])  # type: ignore[return-value]


QUIET: dict[str, Loop] = {
    "an optimizer": stepped,
    "topkast.step": counted,
    "gradient accumulation": accumulated,
    "skipped steps": skipped,
    "load_state_dict": ours(loads),
    "load_dense_state_dict": ours(loads_dense),
    "refresh": ours(lambda model, _: topkast.refresh(model)),
    "casts": ours(casts),
    "edits without gradients": edits,
    "frozen": frozen,
    "averages": averaged,
    "adversarial weights": perturbed,
    "closures": closures,
}


@pytest.mark.parametrize("name", QUIET)
def test_no_other_loop_is_told(name: str) -> None:
    model = small()
    assert said(QUIET[name], model) == []
    assert not any("no step is counted" in text for text in topkast.report(model).warnings)


def test_a_checkpoint_is_no_move(tmp_path: Any) -> None:
    model = small()

    def loop(model: nn.Module) -> None:
        for number in range(6):
            backward(model)
            other = small()
            edits(other)
            topkast.save(other, tmp_path / f"{number}")
            topkast.load(model, tmp_path / f"{number}")

    assert said(loop, model) == []
