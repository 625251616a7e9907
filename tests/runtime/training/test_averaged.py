"""``AveragedModel`` over a sparse model is the average of the oracle's dense weights, across refreshes."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)

import topkast
from topkast.runtime.state.when import due
from topkast.tests.support.truth.budget import assert_budget
from topkast.tests.support.truth.builders import CASES, Case
from topkast.tests.support.truth.lockstep import Trio, adamw, assert_sets, plain, sgd, sites_of

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "backend": "eager"}


def ema(decay: float, number: int) -> float:
    return 1 - decay


def mean(number: int) -> float:
    return 1 / (number + 1)


# The arguments of AveragedModel, and the share of the new value in the average when `number` values are in it.
KINDS: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "ema": ({"multi_avg_fn": get_ema_multi_avg_fn(0.8)}, partial(ema, 0.8)),
    "ema one by one": ({"avg_fn": get_ema_avg_fn(0.7)}, partial(ema, 0.7)),
    "buffers too": ({"multi_avg_fn": get_ema_multi_avg_fn(0.8), "use_buffers": True}, partial(ema, 0.8)),
    "mean": ({}, mean),
    "mean of all": ({"multi_avg_fn": get_swa_multi_avg_fn()}, mean),
}


def follow(trio: Trio, kind: str, every: int = 1, steps: int = 11) -> AveragedModel:
    """Train, average every so many steps, and compare the average with that of dense θ after each."""
    arguments, share = KINDS[kind]
    average = AveragedModel(trio.ours.model, **arguments)
    dense: list[dict[str, Tensor]] = [{}, {}]
    done = averaged = 0

    def loop(system: Any, optimizer: Any, trio: Trio) -> Any:
        nonlocal done, averaged
        for number, loss in enumerate(plain(system, optimizer, trio, steps=steps)):
            if number % every == every - 1 and system is trio.ours:
                average.update_parameters(system.model)
            elif number % every == every - 1:
                mine = dense[system is trio.truth]
                for key, value in system.state("all").items():
                    new = share(averaged) if mine.get(key) is not None else 1
                    mine[key] = value.clone() if new == 1 else mine[key] + new * (value - mine[key])
                if system is trio.truth:  # the last of the three
                    averaged += 1
                    compare(f"{kind} step {number + 1}")
            yield loss
        done += 1

    def compare(where: str) -> None:
        assert_sets(topkast.masks(average), trio.oracle.sets, where)
        for values in ("all", "forward"):
            found = topkast.dense_state_dict(average, values=values)
            for key, name in trio.oracle.keys.items():
                kept = trio.oracle.sets[name][0] if values == "forward" else torch.ones_like(trio.oracle.sets[name][0])
                plain, true = (torch.where(kept, d[key], 0) for d in dense)
                assert_budget(found[key], plain, true, f"{where}: {key} ({values})")

    trio.run(loop)
    assert done == 3
    assert averaged == steps // every == int(average.n_averaged)
    assert trio.oracle.refreshed_at >= 6
    return average


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_dense_average(kind: str) -> None:
    trio = Trio(CASES["mlp"], SPARSE, sgd)
    follow(trio, kind)
    churn = [share for site in sites_of(trio.ours.model).values() for *_, share in site.churn]
    assert any(churn), "B never changed: nothing was out of B and came back"


@pytest.mark.long
@pytest.mark.parametrize("options", [{"reservoir": "host"}, {"reservoir": "disk"}, {"block": (4, 3)}, {"bwd": 0.0},
                                     {"stop_exploring_after": 5}, {"explore": "random"}], ids=str)  # fmt: skip
def test_every_way_to_hold_the_weights(options: dict[str, Any]) -> None:
    follow(Trio(CASES["mlp"], {**SPARSE, **options}, sgd), "ema")


@pytest.mark.long
@pytest.mark.parametrize("name", ["cnn", "tied", "gru", "experts"])
def test_models(name: str) -> None:
    follow(Trio(CASES[name], SPARSE, adamw), "ema")


@pytest.mark.parametrize("every", [2, 5])
def test_several_refreshes_between_two_updates(every: int) -> None:
    """The first update too: the copy is older than the sets."""
    follow(Trio(CASES["mlp"], {**SPARSE, "refresh_every": 1}, sgd), "ema", every)


def trained(seed: int = 0) -> tuple[Case, nn.Module, torch.optim.Optimizer, AveragedModel]:
    case = CASES["mlp"]
    model = topkast.compile(case.model(seed), min_size=1, **SPARSE)
    return case, model, sgd(list(model.parameters())), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))


def advance(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel, steps: int) -> None:
    for args, target in case.batches(12)[:steps]:
        optimizer.zero_grad()
        case.loss(model(*args), target).backward()
        optimizer.step()
        average.update_parameters(model)


def test_an_average_never_refreshes_on_its_own() -> None:
    """A forward with gradients leaves it alone, also when the model's refresh is due."""
    case, model, optimizer, average = trained()
    advance(case, model, optimizer, average, 6)
    assert all(due(site) for site in sites_of(model).values())
    before = {key: value.clone() for key, value in topkast.dense_state_dict(average).items()}
    average.train()(*case.batches(1)[0][0])
    after = topkast.dense_state_dict(average)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_goes_on_from_its_state_dict() -> None:
    case, model, optimizer, average = trained()
    advance(case, model, optimizer, average, 5)
    saved = copy.deepcopy([thing.state_dict() for thing in (model, optimizer, average)])
    advance(case, model, optimizer, average, 12)
    fresh = trained(seed=5)
    stateful: tuple[Any, ...] = fresh[1:]
    for thing, state in zip(stateful, saved, strict=True):
        thing.load_state_dict(state)
    advance(*fresh, 12)
    for one, other in ((model, fresh[1]), (average, fresh[3])):
        ends = [topkast.dense_state_dict(m, values="all") for m in (one, other)]
        assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_a_copy_of_an_average_is_one() -> None:
    case, model, optimizer, average = trained()
    advance(case, model, optimizer, average, 4)
    twin = copy.deepcopy(average)
    held = {key: value.clone() for key, value in twin.state_dict().items()}
    advance(case, model, optimizer, average, 4)
    topkast.masks(twin)  # nothing was averaged into it: when it is used, it is what it was
    assert all(torch.equal(value, held[key]) for key, value in twin.state_dict().items())
    advance(case, model, optimizer, twin, 4)
    assert_sets(topkast.masks(twin), topkast.masks(model), "the copy")


def test_what_else_is_done_with_an_average() -> None:
    case, model, optimizer, average = trained()
    advance(case, model, optimizer, average, 7)
    args, _ = case.batches(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(topkast.densify(average)(*args), average(*args))
    update_bn([args[0]], average)
    assert "0.weight" in str(topkast.report(average).details())


@pytest.mark.parametrize("decay", [0.8, None])
def test_averaged_is_torchs_with_an_update(decay: float | None) -> None:
    case, model, optimizer, _ = trained()
    kind: dict[str, Any] = {"multi_avg_fn": get_ema_multi_avg_fn(0.8)} if decay else {}
    other, ours = AveragedModel(model, **kind), topkast.averaged(model, decay)
    for _ in range(9):
        advance(case, model, optimizer, other, 1)
        ours.update()
    assert_sets(topkast.masks(ours), topkast.masks(model), "ours")
    found = [topkast.dense_state_dict(average, values="all") for average in (ours, other)]
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=0, atol=0 if decay else 1e-7)
    args, _ = case.batches(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(topkast.densify(ours.module)(*args), ours(*args))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2, float("nan"), "0.9", True])
def test_what_is_no_decay(decay: Any) -> None:
    with pytest.raises(topkast.ConfigError, match=r"decay=.*0 <= decay < 1, or None"):
        topkast.averaged(trained()[1], decay)


def test_averaged_needs_a_converted_model_that_is_there() -> None:
    with pytest.raises(topkast.ModelError, match="has not converted"):
        topkast.averaged(nn.Linear(4, 4))
    average = topkast.averaged(trained()[1])
    gc.collect()
    with pytest.raises(topkast.ModelError, match="there no more"):
        average.update()


def test_another_model_is_refused() -> None:
    *_, average = trained()
    other = topkast.sparsify(CASES["cnn"].model(), min_size=1)
    with pytest.raises(topkast.ModelError, match=r"make the AveragedModel after topkast\.compile"):
        average.update_parameters(other)
    with pytest.raises(topkast.ModelError, match="the model 0"):
        average.update_parameters(CASES["mlp"].model())


def test_dense_models_are_averaged_by_torch() -> None:
    trained()  # the hook is there
    assert "update_parameters" not in AveragedModel(CASES["mlp"].model()).__dict__
