"""A model that saves no time is told so, once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import topkast
from topkast.compiler.capture import no_gain
from topkast.runtime.planner import plan as planner


def train(fastest: str, monkeypatch: pytest.MonkeyPatch, gradients: bool = True) -> list[str]:
    """The warnings of a first step, if that kernel is the fastest."""
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    monkeypatch.setattr(planner, "_times", lambda problem, names: {name: float(name != fastest) for name in names})
    torch._dynamo.reset()
    model = topkast.compile(nn.Linear(64, 96), min_size=20, backend="aot_eager")
    with warnings.catch_warnings(record=True) as found, torch.set_grad_enabled(gradients):
        warnings.simplefilter("always")
        model(torch.randn(16, 64))
    return [str(one.message) for one in found]


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_gain, "_given", set())


def test_warns_once_if_dense_products_are_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    if no_gain.native_library.library() is None:
        pytest.skip("the native kernels are not built")
    assert train("native", monkeypatch) == []
    assert train("dense", monkeypatch, gradients=False) == [], "evaluation says nothing about training"
    assert train("dense", monkeypatch) == [f"topkast: {no_gain.NOTHING_FASTER}"]
    assert train("dense", monkeypatch) == []


def test_names_the_kernels_if_they_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_gain.native_library, "library", lambda: None)
    assert train("dense", monkeypatch) == [f"topkast: {no_gain.NOT_BUILT}"]


def test_says_nothing_if_the_kernel_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", "dense")
    model = topkast.compile(nn.Linear(64, 96), min_size=20, backend="aot_eager")
    model(torch.randn(16, 64))  # a warning would be an error here
