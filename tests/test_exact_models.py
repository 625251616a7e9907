"""Promise 1 and 2 for every way a weight can be used: any model, any backend, equals the oracle step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from topkast.tests.support.truth.builders import CASES, WAYS_OF
from topkast.tests.support.truth.exact import Wide
from topkast.tests.support.truth.lockstep import Trio, adamw, compiled, plain, sgd, without_onednn

SPARSE = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2}


def steps_apart(model: nn.Module) -> None:
    forward = model.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with without_onednn():
            return forward(*args, **kwargs)

    model.forward = run


@pytest.mark.parametrize("name", CASES)
def test_eager_is_bitwise(name: str) -> None:
    """Without compiled code a step is the same arithmetic in the same order: not even a rounding is allowed."""
    trio = Trio(CASES[name], {**SPARSE, "backend": "eager"}, sgd)
    assert trio.run(plain, bitwise=True) == 5
    assert trio.oracle.refreshed_at == 4


SLOW = ("gpt2", "bilstm", "lstm", "gru")  # three to six seconds each, compiled


@pytest.mark.parametrize(
    "backend, name",
    [
        pytest.param(backend, name, marks=pytest.mark.long if backend == "aot_eager" and name in SLOW else ())
        for backend in ("eager", "aot_eager")
        for name in CASES
    ],
)
def test_adamw(name: str, backend: str) -> None:
    # In eager mode oneDNN runs a recurrence as one operator; compiled code, and PyTorch without it, step by step.
    ways = {"without oneDNN": steps_apart} if name == "bilstm" else WAYS_OF.get(name, {})
    trio = Trio(CASES[name], {**SPARSE, "backend": backend}, adamw, ways=ways)
    assert trio.run(plain) == 5
    assert trio.oracle.refreshed_at == 4


@pytest.mark.long
# Inductor itself imports what torch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_inductor(name: str) -> None:
    ways = {"compiled": partial(compiled, backend="inductor"), "without oneDNN": steps_apart}
    trio = Trio(CASES[name], {**SPARSE, "backend": "inductor"}, adamw, ways=ways)
    trio.run(plain)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "tied", "experts", "hf_conv1d"])
def test_dense_is_the_original(name: str, backend: str) -> None:
    """fwd = bwd = 0: bit-equal to the original model in eager mode, within budget in compiled code."""
    case = CASES[name]
    trio = Trio(case, {"fwd": 0.0, "bwd": 0.0, "refresh_every": 2, "backend": backend}, sgd)
    original = case.model()
    optimizer = sgd(list(original.parameters()))
    trio.run(plain, bitwise=backend == "eager")
    for args, target in case.batches(5):
        optimizer.zero_grad()
        case.loss(original(*args), target).backward()
        optimizer.step()
    oracle = trio.oracle.state("all")
    for key, value in original.state_dict().items():
        assert oracle[key].equal(value), f"the oracle itself is not the original model: {key}"


def test_float64() -> None:
    """A model in float64 loses nothing on the way: budget of one rounding in float64."""
    for backend in ("eager", "aot_eager"):
        options = {**SPARSE, "exploration_l2": 0.03, "backend": backend}
        Trio(CASES["mlp"], options, partial(sgd, lr=0.05), dtype=torch.float64).run(plain, bitwise=backend == "eager")


def test_the_truth_takes_no_smaller_dtype() -> None:
    x = torch.randn(3, dtype=torch.float64)
    with Wide():
        smaller = x.float(), x.to(torch.bfloat16), x.type(torch.float32), torch.softmax(x, 0, dtype=torch.float32)
    assert {tensor.dtype for tensor in smaller} == {torch.float64} and x.float().dtype == torch.float32
