"""An index in a state dict: stored, moved and compared as any tensor; averaged or scaled by nobody."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.runtime.state.model import sites
from topkast.runtime.state.persist.saved_index import SavedIndex
from topkast.tests.compiler.convert.test_names import equal, small, theta, train

State = dict[str, Tensor]
AVERAGES: dict[str, Callable[[State, State], Any]] = {
    "operators": lambda a, b: {key: (a[key] + b[key]) / 2 for key in a},
    "scaled": lambda a, b: {key: 0.5 * a[key] + 0.5 * b[key] for key in a},
    "in place": lambda a, b: [a[key].mul_(0.9).add_(b[key], alpha=0.1) for key in a],
    "of copies": lambda a, b: [a[key].clone().detach().lerp_(b[key], 0.5) for key in a],
    "stacked": lambda a, b: {key: torch.stack([a[key], b[key]]).mean(0) for key in a},
    "foreach": lambda a, b: torch._foreach_lerp([*a.values()], [*b.values()], 0.5),
    "whole numbers": lambda a, b: {key: (a[key] + b[key]) // 2 for key in a if not a[key].is_floating_point()},
    "deep copy": lambda a, b: [value.mul_(0.5) for value in copy.deepcopy(a).values()],
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_of_state_dicts_says_what_can_be_averaged(average: str, wide: bool) -> None:
    """Columns of 16 and of 32 bits are stored as bytes. Arithmetic would run and give columns of other weights."""
    model = nn.Linear(70_000, 2) if wide else small()
    if wide:
        topkast.sparsify(model, fwd=0.9999, bwd=0.9998, min_size=1)
    before, (a, b) = theta(model), (model.state_dict(), model.state_dict())
    a, b = ({key: value for key, value in of.items() if "weight.cols" in key} for of in (a, b))
    assert a
    assert {value.dtype for value in a.values()} == {torch.uint8}
    with pytest.raises(topkast.CheckpointError, match=r"cannot be averaged .* topkast\.dense_state_dict\(model\)"):
        AVERAGES[average](a, b)
    assert equal(theta(model), before)


@pytest.mark.parametrize("cast", [torch.float32, torch.bfloat16, torch.float64])
def test_fractions_are_no_index(cast: torch.dtype) -> None:
    """As averages over ``value.float()`` and casts of whole state dicts give them; no sparse weight changes."""
    model = small()
    train(model)
    before = theta(model)
    state = {key: value.to(cast) for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="its numbers are fractions, as an average or a cast"):
        model.load_state_dict(state)
    after = theta(model)
    assert all(torch.equal(after[name], before[name]) for name in sites(model))


@pytest.mark.parametrize("way", ["torch", "weights_only", "copy", "assign", "clone"])
def test_what_is_stored_and_loaded_is_plain(way: str) -> None:
    model, twin = small(), small()
    train(model)
    state: Any = model.state_dict()
    assert any(type(value) is SavedIndex for value in state.values())
    if way in ("torch", "weights_only"):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=way == "weights_only")
        assert not any(isinstance(value, SavedIndex) for value in state.values())
    elif way == "copy":
        state = copy.deepcopy(state)
    elif way == "clone":
        state = {key: value.clone() for key, value in state.items()}
    twin.load_state_dict(state, assign=way == "assign")
    assert equal(theta(twin), theta(model))
    for site in sites(twin).values():
        assert {type(tensor) for tensor in site.index} == {Tensor}
    train(twin)


def test_the_buffers_themselves_are_handed_out_if_asked_for() -> None:
    model = small()
    state = model.state_dict(keep_vars=True)
    for name, site in sites(model).items():
        path, attribute = name.rsplit(".", 1)
        assert state[f"{path}.sparse_state.{attribute}.cols"] is site.cols


@pytest.mark.parametrize("read", ["state dict", "weights"])
def test_a_deep_copy_of_many_copies_each(read: str) -> None:
    """A tensor that is made for one copy and ends with it leaves no trace: its number is given to the next."""
    model = topkast.sparsify(nn.Sequential(*(nn.Linear(8, 8) for _ in range(20))), fwd=0.5, bwd=0.25, min_size=1)
    with torch.no_grad():
        given = model.state_dict() if read == "state dict" else {str(i): layer.weight for i, layer in enumerate(model)}
    twin = copy.deepcopy({**given, "again": given})
    for key, value in given.items():
        assert torch.equal(twin[key], value) and twin["again"][key] is twin[key]


def test_a_pickle_holds_the_index_of_state_that_no_optimizer_has_read() -> None:
    """After a refresh without an optimizer: pickle can write columns of 16 bits, and cannot read them."""
    model = topkast.sparsify(nn.Linear(300, 4), fwd=0.9, bwd=0.8, min_size=1)
    topkast.refresh(model)
    (site,) = sites(model).values()
    assert site.unread_state_index is not None and site.cols.dtype == torch.uint16
    (twin,) = sites(pickle.loads(pickle.dumps(model))).values()
    assert twin.unread_state_index is not None
    for mine, theirs in zip(site.unread_state_index, twin.unread_state_index, strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
