"""The report's numbers, counted here a second time from the dense masks."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.compiler.report.cost import count_places
from topkast.passes.aten import JOINT
from topkast.runtime.state.model import sites
from topkast.tests.support.standin import DEVICE, Device, move
from topkast.tests.support.truth.builders import CASES


def _trained(name: str, steps: int = 3, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    case = CASES[name]
    model = topkast.sparsify(case.model(), **{"min_size": 500, "refresh_every": 2, **options})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for inputs, target in case.batches(steps):
        case.loss(model(*inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("options", [{}, {"block": (2, 4), "fwd": 0.5}, {"balanced": True}, {"reservoir": "host"}])
def test_counts_are_those_of_the_masks(options: dict[str, Any]) -> None:
    model, _ = _trained("tied", **options)
    facts = topkast.report(model)
    masks = topkast.masks(model)
    theta = topkast.dense_state_dict(model, "all")
    assert [row["name"] for row in facts.sites] == list(masks)
    for row in facts.sites:
        fwd, bwd = masks[row["name"]]
        assert row["density_a"] == pytest.approx(fwd.float().mean().item(), abs=1e-6)
        assert row["density_b"] == pytest.approx(bwd.float().mean().item(), abs=1e-6)
        assert row["shape"] == list(theta[row["name"]].shape)
        assert row["ever_active"] >= row["density_a"]
        assert [entry["step"] for entry in row["churn"]] == [2]
        assert row["ops"]
    numel = sum(fwd.numel() for fwd, _ in masks.values())
    values = sum(int(bwd.sum()) for _, bwd in masks.values())
    used = facts.totals["bytes"]["sites"]
    assert facts.totals["parameters"]["in_sites"] == numel
    assert used["values"] == used["gradient"] == 4 * values
    assert used["optimizer"] == 8 * values + 4 * len(masks)  # two moments, and AdamW's step
    assert used["dense"] == 16 * numel + 4 * len(masks)
    assert used["reservoir"] == 4 * (numel - values)
    assert used["sparse"] == sum(used[key] for key in ("values", "gradient", "optimizer", "index", "reservoir"))


def test_churn_is_the_share_of_each_set_that_is_new() -> None:
    model, _ = _trained("tied", steps=2)
    before = topkast.masks(model)
    case = CASES["tied"]
    (inputs, target), *_ = case.batches(1)
    case.loss(model(*inputs), target).backward()  # the forward refreshes
    after, shares = topkast.masks(model), []
    for row in topkast.report(model).sites:
        pairs = zip(before[row["name"]], after[row["name"]], strict=True)
        expected = [int((new & ~old).sum()) / int(new.sum()) for old, new in pairs]
        shares += expected
        (entry,) = row["churn"]
        assert [entry["new_a"], entry["new_b"]] == expected
    assert any(0 < share < 0.5 for share in shares), "the share that stayed must be another number"


def test_flops_follow_the_paper() -> None:
    model, _ = _trained("gpt2", balanced=False)  # exactly the densities asked for
    flops = topkast.report(model).totals["flops"]
    assert flops["sparse_forward"] / flops["dense_forward"] == pytest.approx(0.1, abs=1e-3)
    assert flops["sparse_training"] / flops["dense_training"] == pytest.approx((2 * 0.1 + 0.2) / 3, abs=1e-3)


def test_every_parameter_is_named_once_and_it_is_plain_data() -> None:
    model, _ = _trained("encoder")
    original = CASES["encoder"].model()
    facts = topkast.report(model)
    assert {row["name"] for row in facts.sites} | set(facts.dense) == {n for n, _ in original.named_parameters()}
    assert all(facts.dense.values())
    assert facts.totals["parameters"]["all"] == sum(p.numel() for p in original.parameters())
    assert json.loads(json.dumps(facts.to_dict(), allow_nan=False)) == facts.to_dict()


def test_the_details_print_everything() -> None:
    model, _ = _trained("encoder")
    text = str(topkast.report(model).details())
    assert "block.linear1.weight" in text and "fewer than min_size" in text and "not fused (eager)" in text
    assert max(map(len, text.splitlines())) <= 160
    fresh = str(topkast.report(topkast.sparsify(CASES["encoder"].model(), min_size=500)).details())
    assert "not run yet" in fresh and "no optimizer step seen yet" in fresh


def test_what_ran_fused_is_told() -> None:
    case = CASES["mlp"]
    model = topkast.compile(case.model(), backend="aot_eager", min_size=500)
    ((inputs, target),) = case.batches(1)
    case.loss(model(*inputs), target).backward()
    for row in topkast.report(model).sites:
        assert {"forward", "weight gradient"} <= set(row["fused"])
        assert not row["unfused"]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_passes_are_those_over_the_graphs_of_the_model(backend: str) -> None:
    """Other models of the process, and copies, have their own."""
    case = CASES["mlp"]
    ((inputs, _),) = case.batches(1)
    ran, other = (topkast.compile(case.model(), backend=backend, min_size=500) for _ in range(2))
    with torch._inductor.config.patch(fx_graph_cache=False):
        ran(*inputs).sum().backward()
    passes = topkast.report(ran).passes
    assert list(passes) == [rule.__name__ for rule in JOINT]
    assert all(entry["runs"] == 1 for entry in passes.values())
    assert passes["FuseMatmul"]["matches"] == {"spmm": 2, "spmm_t": 1, "sddmm": 2}
    assert topkast.report(other).passes == topkast.report(copy.deepcopy(ran)).passes == {}
    assert "graph passes over what was compiled of this model" in str(topkast.report(ran).details())


def test_it_warns_of_what_died() -> None:
    model = topkast.sparsify(CASES["mlp"].model(), 0.5, min_size=500, balanced=False)
    theta = topkast.dense_state_dict(model, "all")
    theta["0.weight"] = theta["0.weight"].clone()
    theta["0.weight"][:30] = 0
    theta["2.weight"] = torch.zeros_like(theta["2.weight"])
    topkast.load_dense_state_dict(model, theta)
    warnings = topkast.report(model).warnings
    text = "\n".join(warnings)
    assert warnings[0].startswith("2.weight: every weight of A is zero")  # the most important first
    assert "2.weight: every weight of A is zero" in text
    assert "0.weight" in text and "output rows" in text and "collapsed" in text
    with torch.no_grad():
        model[0].sparse_state.weight.original[0] = torch.nan
    assert topkast.report(model).warnings[0] == "0.weight: holds NaN or infinite values"


def test_a_plain_model_is_refused() -> None:
    with pytest.raises(topkast.ModelError, match="not converted"):
        topkast.report(nn.Linear(2, 2))


@pytest.mark.parametrize("reservoir", ["device", "disk"])
def test_where_the_bytes_lie(reservoir: str) -> None:
    """Every byte of sparse training has a place."""
    model = topkast.sparsify(nn.Linear(64, 96), 0.9, 0.8, min_size=20, reservoir=reservoir)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    totals = topkast.report(model).totals["bytes"]
    now = totals["places"]["now"]
    assert sum(now.values()) == totals["sites"]["sparse"] and totals["places"]["peak"] == {}
    assert now.get("disk", 0) == (totals["sites"]["reservoir"] if reservoir == "disk" else 0)
    assert "where the sparse weights' bytes lie" in str(topkast.report(model).details())
    with Device():
        move(model)
        places = set(count_places(sites(model))["now"]) - {"cpu"}  # the optimizer still has the old values' state
    assert places == ({str(DEVICE)} if reservoir == "device" else {str(DEVICE), "disk"})
