"""timm's rules find sparse values where a dense model's weights are: groups, unit-wise clipping, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.tests.compiler.checkpoint.test_checkpoint import same, state_of
from topkast.tests.support.truth.budget import assert_budget
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, adamw, dense_slots, sgd, sites_of

pytest.importorskip("timm")
import timm
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.utils import CheckpointSaver, ModelEmaV3, adaptive_clip_grad, dispatch_clip_grad

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "min_size": 1}
LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {"balanced": True},
    "free": {"balanced": False},  # values are [blocks, values of a block]
    "blocks": {"balanced": True, "block": (2, 2)},
}


def network(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=10)


Groups = list[tuple[dict[str, Any], list[str]]]


def named(model: nn.Module, groups: list[dict[str, Any]]) -> Groups:
    """Each group's settings and the names of its parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ({k: v for k, v in g.items() if k not in ("params", "param_names")}, [names[id(p)] for p in g["params"]])
        for g in groups
    ]


RULES: dict[str, Callable[[nn.Module], list[dict[str, Any]]]] = {
    "weight decay": lambda m: param_groups_weight_decay(m, 0.1, no_weight_decay_list=["*.qkv.weight", "pos_embed"]),
    "layer decay": lambda m: param_groups_layer_decay(m, 0.1, layer_decay=0.7),
    "frozen below": lambda m: param_groups_layer_decay(m, 0.1, layer_decay=0.5, no_opt_scale=0.1),
    "factory": lambda m: create_optimizer_v2(m, "adamw", lr=0.1, weight_decay=0.1).param_groups,
    "factory, layers": lambda m: create_optimizer_v2(m, "sgd", lr=0.1, weight_decay=0.1, layer_decay=0.7).param_groups,
    "factory, lookahead": lambda m: create_optimizer_v2(m, "lookahead_adam", lr=0.1, weight_decay=0.1).param_groups,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", ["test_vit", "test_resnet", "test_convnext"])
def test_groups_are_those_of_the_dense_model(model: str, layout: str) -> None:
    for rule in RULES.values():
        sparse = topkast.sparsify(network(model), **SPARSE, **LAYOUTS[layout])
        found, expected = (named(m, rule(m)) for m in (sparse, network(model)))
        assert found == expected
        decayed = {name for settings, names in found if settings["weight_decay"] for name in names}
        kept = {name for name, p in sparse.named_parameters() if p.requires_grad}
        assert len(decayed & sites_of(sparse).keys()) > 0.5 * len(kept & sites_of(sparse).keys())


def test_decays_as_the_oracle() -> None:
    """The oracle's groups are by its full-sized weights."""

    def loop(system: Any, optimizer: Any, trio: Trio) -> Any:
        if system is trio.ours:
            optimizer = create_optimizer_v2(system.model, "adamw", lr=1e-2, weight_decay=0.3, eps=1e-4)
        else:
            parameters = system.parameters()
            groups = [
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.3},
            ]
            optimizer = torch.optim.AdamW(groups, lr=1e-2, eps=1e-4)
        system.watch(optimizer)
        for batch in trio.case.batches(7):
            optimizer.zero_grad()
            loss = trio.loss(system, batch)
            loss.backward()
            optimizer.step()
            yield loss.detach()

    assert Trio(CASES["mlp"], {**SPARSE, "backend": "eager"}, None).run(loop) == 7


def units(site: Any, dense: Tensor) -> Tensor:
    """A dense weight as a matrix whose rows are what is clipped as one: the weights of one row of the values.

    Balanced sets: a row of the weight, an output neuron or channel, as in the dense model. Blocks: the rows of a block
    row together; the last is filled up with zeros. Sets chosen freely have a row of values for each block, so AGC
    clips each block by itself; here each weight.
    """
    if site.groups == 1:
        return dense.reshape(-1, site.geometry.unit)
    matrix = dense.flatten(1)
    rows = site.geometry.block[0]
    padded = nn.functional.pad(matrix, (0, 0, 0, -len(matrix) % rows))
    return padded.reshape(site.original.shape[0], -1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["mlp", "cnn"])
def test_clips_unit_by_unit(case: str, layout: str) -> None:
    """As AGC clips the dense gradient at B by θ at B; θ outside B, which does not move, does not count."""
    model = topkast.sparsify(CASES[case].model(), **SPARSE, **LAYOUTS[layout])
    (x,), target = CASES[case].batches(1)[0]
    CASES[case].loss(model(x), target).backward()
    before = {name: site.original.grad.clone() for name, site in sites_of(model).items()}
    adaptive_clip_grad(model.parameters(), 0.005)
    rows = set()
    for name, site in sites_of(model).items():
        bwd = site.sets()[1]
        rows.add((site.original.shape[0] == site.n_bwd, site.original.shape[0] == len(bwd)))
        ends = []
        for dtype in (torch.float32, torch.float64):
            dense = nn.Parameter(units(site, torch.where(bwd, site.theta(), 0)).to(dtype))
            dense.grad = units(site, dense_slots(site, before[name], bwd)).to(dtype)
            adaptive_clip_grad([dense], 0.005)
            ends.append(dense.grad.flatten()[: bwd.numel()].view_as(bwd))
        assert_budget(dense_slots(site, site.original.grad, bwd), ends[0], ends[1], name)
        assert not torch.equal(site.original.grad, before[name]), "nothing was clipped"
    assert rows == {{"rows": (False, True), "free": (True, False), "blocks": (False, False)}[layout]}


def test_trains_clipped_as_the_oracle() -> None:
    """``train.py --clip-mode agc``: the oracle's θ and gradient are shown to timm as they are at B."""

    @torch.no_grad()
    def clip(system: Any) -> None:
        for name, theta in system.theta.items():
            bwd = system.sets[name][1]
            shown = nn.Parameter(torch.where(bwd, theta, 0))
            shown.grad = torch.where(bwd, theta.grad, 0)
            dispatch_clip_grad([shown], 0.02, mode="agc")
            theta.grad.copy_(shown.grad)
        dispatch_clip_grad(list(system.dense.values()), 0.02, mode="agc")

    def loop(system: Any, optimizer: Any, trio: Trio) -> Any:
        for batch in trio.case.batches(7):
            optimizer.zero_grad()
            loss = trio.loss(system, batch)
            loss.backward()
            if system is trio.ours:
                dispatch_clip_grad(system.parameters(), 0.02, mode="agc")
            else:
                clip(system)
            optimizer.step()
            yield loss.detach()

    options = {**SPARSE, "backend": "eager", "balanced": True}
    assert Trio(CASES["mlp"], options, sgd).run(loop) == 7


def train(model: nn.Module, optimizer: torch.optim.Optimizer, average: Any, start: int, stop: int) -> None:
    for (x,), target in CASES["mlp"].batches(14)[start:stop]:
        CASES["mlp"].loss(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)


def made(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = topkast.sparsify(CASES["mlp"].model(seed), **SPARSE)
    return model, adamw(list(model.parameters())), ModelEmaV3(model, decay=0.8)


def test_a_saved_checkpoint_resumes(tmp_path: Path) -> None:
    """Saved between two refreshes by CheckpointSaver, with the average; resumed by resume_checkpoint."""
    model, optimizer, average = made(0)
    train(model, optimizer, average, 0, 7)
    saver = CheckpointSaver(model, optimizer, model_ema=average, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(6, metric=1.0)
    halfway = {key: value.clone() for key, value in average.module.state_dict().items()}
    train(model, optimizer, average, 7, 14)

    again, other, averaged = made(1)
    best = str(tmp_path / "model_best.pth.tar")
    assert resume_checkpoint(again, best, other, log_info=False) == 7
    load_checkpoint(averaged.module, best)
    assert same(dict(averaged.module.state_dict()), halfway)
    train(again, other, averaged, 7, 14)
    assert same(state_of(again, other), state_of(model, optimizer))
    assert same(state_of(averaged.module, other)[0], state_of(average.module, optimizer)[0])
    assert {site.step for site in sites_of(again).values()} == {14}
    assert [at for site in sites_of(again).values() for at, *_ in site.churn][-2:] == [9, 12]

    load_checkpoint(again, best, use_ema=False)
    assert {site.step for site in sites_of(again).values()} == {7}


def test_a_checkpoint_of_the_other_kind_says_what_to_call(tmp_path: Path) -> None:
    model, dense = made(0)[0], CASES["mlp"].model()
    torch.save({"state_dict": dense.state_dict()}, tmp_path / "dense.pth.tar")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "sparse.pth.tar")
    with pytest.raises(topkast.CheckpointError, match="load_dense_state_dict"):
        load_checkpoint(model, str(tmp_path / "dense.pth.tar"))
    with pytest.raises(RuntimeError, match=r"topkast\.sparsify.*topkast\.dense_state_dict"):
        load_checkpoint(dense, str(tmp_path / "sparse.pth.tar"))
