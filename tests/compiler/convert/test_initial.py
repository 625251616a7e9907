"""The start that fresh weights have by default, and how they are told from trained ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topkast
from topkast.compiler.convert.initial import as_drawn

INITIALISERS = {
    "linear": lambda weight: nn.init.kaiming_uniform_(weight, a=5**0.5),
    "xavier": nn.init.xavier_normal_,
    "gpt": lambda weight: nn.init.normal_(weight, std=0.02),
    "cut": lambda weight: nn.init.trunc_normal_(weight, std=0.02),
    "orthogonal": nn.init.orthogonal_,
}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.sampled_from(list(INITIALISERS)), st.integers(1, 300), st.integers(14, 300), st.integers(0, 10**6))
def test_what_an_initialiser_leaves_is_known(name: str, rows: int, cols: int, seed: int) -> None:
    torch.manual_seed(seed)
    rows = max(rows, -(-4096 // cols))  # smaller ones are not asked
    weight = INITIALISERS[name](torch.empty(rows, cols))
    assert as_drawn(weight)
    assert as_drawn(weight.T), "in any strides"
    assert as_drawn(weight.bfloat16())


def trained() -> nn.Module:
    """A few steps on anything."""
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    x = torch.randn(256, 64)
    y = (x @ torch.randn(64, 10)).argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_what_was_trained_is_known() -> None:
    assert not as_drawn(trained()[0].weight.detach())


@pytest.mark.parametrize("what", ["direction", "row", "column", "mean", "signs", "nan", "inf"])
def test_what_no_initialiser_leaves(what: str) -> None:
    weight = torch.randn(120, 90)
    if what == "direction":
        weight += 0.3 * torch.randn(120, 1) * torch.randn(90)
    elif what in ("row", "column"):
        (weight if what == "row" else weight.T)[7] *= 3
    elif what == "mean":
        weight += 1
    elif what in ("nan", "inf"):
        weight[3, 4] = float(what)
    assert not as_drawn(weight.sign() if what == "signs" else weight)


def start(dense: nn.Module, **options: Any) -> tuple[nn.Module, dict[str, torch.Tensor], float]:
    """The converted model, all of its θ, and what the report says that its first weight was multiplied by."""
    model = topkast.sparsify(copy.deepcopy(dense), **options)
    return model, topkast.dense_state_dict(model, "all"), topkast.report(model).sites[0]["scaled"]


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{}, {"balanced": False}, {"block": (4, 2)}, {"reservoir": "disk"}, {"method": "static-magnitude"}, {"fwd": 0.75}],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_weights_start_with_the_norm_of_their_largest_tenth(options: dict[str, Any], dtype: torch.dtype) -> None:
    dense = nn.Linear(120, 100).to(dtype)
    state = torch.get_rng_state()
    model, theta, factor = start(dense, **{"fwd": 0.8, **options})
    assert torch.equal(torch.get_rng_state(), state), "the user's random numbers were used up"
    tenth = topkast.sparsify(copy.deepcopy(dense), **options | {"fwd": 0.9})
    of_tenth, norm = (float(topkast.dense_state_dict(m)["weight"].double().norm()) for m in (tenth, model))
    of_random = (1 - options.get("fwd", 0.8)) ** 0.5 * float(dense.weight.detach().double().norm())
    rel = 1e-5 if dtype == torch.float32 else 1e-2
    assert norm == pytest.approx(max(of_tenth, of_random), rel=rel) and 0.5 < factor < 0.98
    torch.testing.assert_close(theta["weight"].double(), factor * dense.weight.detach().double(), rtol=rel, atol=0)
    plain = topkast.sparsify(copy.deepcopy(dense), initial=None, **{"fwd": 0.8, **options})
    assert all(map(torch.equal, topkast.masks(model)["weight"], topkast.masks(plain)["weight"]))
    assert f"initial='auto': 1 weights that look as they were drawn were multiplied by {factor:.2f}" in str(
        topkast.report(model).details()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"fwd": 0.9},
        {"fwd": 0.95},
        {"fwd": 0.7},
        {"fwd": 0.8, "initial": None},
        {"fwd": 0.8, "method": "static"},
        {"fwd": 0.8, "method": "set"},
        {"fwd": 0.8, "method": "gmp", "stop_exploring_after": 5},
    ],
)
def test_other_starts_are_left_alone(options: dict[str, Any]) -> None:
    dense = nn.Linear(120, 100)
    model, theta, factor = start(dense, **options)
    assert factor == 1 and torch.equal(theta["weight"], dense.weight)
    assert "multiplied" not in str(topkast.report(model).details())


def test_a_trained_model_is_left_alone() -> None:
    """Its new head too; weights of zeros and those too small to tell say nothing."""
    trunk, head, zeros, few = trained()[0], nn.Linear(128, 100), nn.Linear(100, 100), nn.Linear(100, 30)
    nn.init.zeros_(zeros.weight)
    with torch.no_grad():
        few.weight[0] *= 5
    dense = nn.Sequential(trunk, head, zeros, few)
    _, theta, factor = start(dense, fwd=0.8, min_size=1)
    assert factor == 1 and all(torch.equal(theta[key], value) for key, value in dense.state_dict().items())
    fresh = nn.Sequential(nn.Linear(64, 128), head, zeros, few)
    model, theta, factor = start(fresh, fwd=0.8, min_size=1)
    scaled = [site["scaled"] for site in topkast.report(model).sites]
    assert scaled[0] < 1 and scaled[1] < 1 and scaled[2:] == [1, 1] and torch.equal(theta["3.weight"], few.weight)


def test_how_it_started_does_not_keep_a_checkpoint_from_loading(tmp_path: Any) -> None:
    dense = nn.Linear(120, 100)
    saved, given = (topkast.sparsify(copy.deepcopy(dense), fwd=0.8, initial=how) for how in (None, "auto"))
    topkast.save(saved, tmp_path / "model.safetensors")
    topkast.load(given, tmp_path / "model.safetensors")
    assert torch.equal(topkast.dense_state_dict(given, "all")["weight"], dense.weight)
