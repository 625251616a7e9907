"""Copies follow: averages that people keep by hand, in deep copies, are those of dense weights; snapshots stay."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.runtime.state.change import copies
from topkast.tests.support.interrupts import interrupt, moments
from topkast.tests.support.truth.budget import assert_budget
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, assert_sets, plain, sgd, sites_of

CASE = CASES["mlp"]
SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "backend": "eager"}
DECAY = 0.8


@torch.no_grad()
def entries(average: nn.Module, model: nn.Module, number: int) -> None:
    """As timm's ModelEmaV3."""
    for mine, other in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(other.to(mine.dtype), weight=1 - DECAY)
        else:
            mine.copy_(other)


@torch.no_grad()
def by_key(average: nn.Module, model: nn.Module, number: int) -> None:
    """As ultralytics' ModelEMA."""
    theirs = model.state_dict()
    for key, value in average.state_dict().items():
        if value.dtype.is_floating_point:
            value *= DECAY
            value += (1 - DECAY) * theirs[key].detach()


@torch.no_grad()
def parameters(average: nn.Module, model: nn.Module, number: int) -> None:
    """As Lightning's StochasticWeightAveraging."""
    for mine, other in zip(average.parameters(), model.parameters(), strict=True):
        new = other.detach().to(mine.dtype)
        mine.detach().copy_(new if number == 0 else mine + (new - mine) / (number + 1))


@torch.no_grad()
def data(average: nn.Module, model: nn.Module, number: int) -> None:
    """As BYOL's target network; it leaves no mark on a tensor."""
    for mine, other in zip(average.parameters(), model.parameters(), strict=True):
        mine.data = mine.data * DECAY + other.data * (1 - DECAY)


Update = Callable[[nn.Module, nn.Module, int], None]


def ema(number: int) -> float:
    return 1 - DECAY


def mean(number: int) -> float:
    return 1 / (number + 1)


def follow(
    update: Update,
    options: dict[str, Any],
    made: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    steps: int = 11,
    first: int = 0,
    share: Callable[[int], float] = ema,
    whole: bool = True,
) -> None:
    """Train, update the average after each step, and compare it with the one of dense θ.

    Args:
        update: (average, model, how many updates were made), after a step.
        made: makes the average of the model.
        first: the step from which on the average is updated.
        share: of the new value in an update.
        whole: whether all of θ is averaged; otherwise only weights in B, also in what the average is compared with.
    """
    trio = Trio(CASE, {**SPARSE, **options}, sgd)
    average = made(trio.ours.model)
    starts = [{k: v.clone() for k, v in s.state("all").items()} for s in trio.systems]
    mine, exact = ({k: v.clone() for k, v in starts[place].items()} for place in (1, 2))
    dtype = next(average.parameters()).dtype

    def average_of(held: dict[str, Tensor], system: Any, number: int) -> None:
        for key, value in system.state("all").items():
            name = trio.oracle.keys.get(key)
            new = held[key] + share(number) * (value - held[key]) if share(number) != 1 else value.clone()
            held[key] = torch.where(trio.oracle.sets[name][1], new, held[key]) if name and not whole else new

    def loop(system: Any, optimizer: Any, trio: Trio) -> Any:
        for number, loss in enumerate(plain(system, optimizer, trio, steps=steps)):
            count = number - first
            if count >= 0 and system is trio.ours:
                update(average, system.model, count)
            elif count >= 0:
                average_of(mine if system is trio.oracle else exact, system, count)
                if system is trio.truth:
                    compare(f"step {number + 1}")
            yield loss

    def compare(where: str) -> None:
        assert_sets(topkast.masks(average), trio.oracle.sets, where)
        found = topkast.dense_state_dict(average, values="all")
        for key in trio.oracle.keys:
            assert_budget(found[key].to(torch.float32), mine[key], exact[key], f"{where}: {key}")

    trio.run(loop)
    churn = [sum(shares) for site in sites_of(trio.ours.model).values() for _, *shares in site.churn]
    assert any(churn), "no set changed: nothing followed anything"
    assert dtype == next(average.parameters()).dtype


@pytest.mark.parametrize("update", [entries, by_key])
def test_an_average_of_state_dicts_is_the_dense_one(update: Update) -> None:
    follow(update, {})


@pytest.mark.parametrize(("update", "share"), [(parameters, mean), (data, ema)])
def test_an_average_of_parameters_is_each_weights_while_it_is_in_b(update: Update, share: Any) -> None:
    follow(update, {}, share=share, whole=False)


HELD: list[dict[str, Any]] = [
    {"reservoir": "host"},
    {"reservoir": "disk"},
    {"block": (4, 3)},
    {"bwd": 0.0, "exploration_decay": 0.0},
    {"stop_exploring_after": 5},
    {"refresh_in_background": True},
]


@pytest.mark.parametrize("options", HELD, ids=str)
def test_every_way_to_hold_the_weights(options: dict[str, Any]) -> None:
    follow(entries, options)


def test_copies_of_copies() -> None:
    held = []

    def made(model: nn.Module) -> nn.Module:
        held.append(copy.deepcopy(model))
        return copy.deepcopy(held[-1])

    follow(entries, {}, made)


def test_a_copy_that_begins_late() -> None:
    """Several refreshes lie between the copy and the first update."""
    follow(parameters, {}, steps=12, first=8, share=mean, whole=False)


def test_a_copy_of_another_type() -> None:
    follow(entries, {}, lambda model: copy.deepcopy(model).double())


def trained(steps: int = 4, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = topkast.compile(CASE.model(), min_size=1, **{**SPARSE, **options})
    optimizer = sgd(list(model.parameters()), lr=0.1)
    train(model, optimizer, steps)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for args, target in CASE.batches(steps):
        optimizer.zero_grad()
        CASE.loss(model(*args), target).backward()
        optimizer.step()


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


def theta(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in topkast.dense_state_dict(model, values="all").items()}


def alike(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(sites_of(one).values(), sites_of(other).values(), strict=True)
    return all(all(map(torch.equal, mine.index, theirs.index)) for mine, theirs in pairs)


USES: dict[str, Callable[[nn.Module], Any]] = {
    "with gradients": lambda model: model.train()(*CASE.batches(1)[0][0]),
    "without": lambda model: torch.no_grad()(model)(*CASE.batches(1)[0][0]),
    "a layer": lambda model: model[0].weight,
    "masks": topkast.masks,
    "dense": topkast.dense_state_dict,
    "densified": topkast.densify,
    "saved": lambda model: topkast.save(model, "snapshot.topkast"),
    "pickled": lambda model: pickle.dumps(model),
}


@pytest.mark.long
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_snapshot_is_what_it_was(use: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``best = copy.deepcopy(model)``: however often the model is refreshed, the best one computes the same."""
    monkeypatch.chdir(tmp_path)
    model, optimizer = trained(backend=backend)
    model(*CASE.batches(1)[0][0])  # due or not, it has its sets
    best = copy.deepcopy(model)
    before = bits(best)
    train(model, optimizer, 9)
    assert alike(best, model) and not same(bits(best), before), "it has followed"
    again = copy.deepcopy(best)
    for each in (best, again):
        USES[use](each)
        topkast.masks(each)
        assert same(bits(each), before)
    train(model, optimizer, 9)
    assert same(bits(best), before) and not alike(best, model)


@pytest.mark.parametrize("background", [False, True])
def test_a_run_that_is_forked(background: bool) -> None:
    """A copy that is trained after its source was goes the same way, as if the source had not been there."""
    model, optimizer = trained(refresh_in_background=background)
    twin, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 9)
    other = sgd(list(twin.parameters()), lr=0.1)
    other.load_state_dict(state)
    train(twin, other, 9)
    assert same(bits(twin), bits(model))


def test_a_snapshot_held_by_load_state_dict() -> None:
    model, optimizer = trained()
    best = copy.deepcopy(model)
    train(model, optimizer, 2)
    best.load_state_dict(model.state_dict())
    before = bits(best)
    train(model, optimizer, 9)
    topkast.masks(best)
    assert same(bits(best), before)


def stepped(model: nn.Module) -> None:
    train(model, sgd(list(model.parameters())), 1)


def loaded(model: nn.Module) -> None:
    model.load_state_dict(topkast.compile(CASE.model(5), min_size=1, **SPARSE).state_dict())


OWN: dict[str, Callable[[nn.Module], Any]] = {
    "stepped": stepped,
    "stepped by hand": lambda model: topkast.step(model, lr=0.0),
    "refreshed": topkast.refresh,
    "loaded": loaded,
    "loaded dense": lambda model: topkast.load_dense_state_dict(model, CASE.model(6).state_dict()),
}


@pytest.mark.parametrize("how", OWN)
def test_a_copy_with_its_own_way_is_left_alone(how: str) -> None:
    model, optimizer = trained(6)
    twin = copy.deepcopy(model)
    OWN[how](twin)
    before = bits(twin)
    train(model, optimizer, 9)
    assert same(bits(twin), before)


@pytest.mark.parametrize("order", ["model first", "copy first"])
def test_a_run_that_goes_on(order: str) -> None:
    """Model and average are loaded from a checkpoint: the average follows again."""
    model, optimizer = trained(1)
    average = copy.deepcopy(model)
    for number in range(6):
        train(model, optimizer, 1)
        entries(average, model, number)
    saved = copy.deepcopy((bits(model), bits(average)))
    fresh, _ = trained(0)
    ema = copy.deepcopy(fresh)
    pairs = list(zip((fresh, ema), saved, strict=True))
    for each, state in pairs if order == "model first" else reversed(pairs):
        each.load_state_dict(state)
    ours = sgd(list(fresh.parameters()), lr=0.1)
    ours.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(8):
        for one, its, mean in ((model, optimizer, average), (fresh, ours, ema)):
            train(one, its, 1)
            entries(mean, one, number)
    assert same(bits(ema), bits(average)) and alike(ema, fresh)


def test_a_copy_takes_what_its_source_loads() -> None:
    """θ of the copy stays: its next average is of the same weights."""
    model, _ = trained()
    average = copy.deepcopy(model)
    entries(average, model, 0)
    before = theta(average)
    loaded(model)
    assert alike(average, model) and same(theta(average), before)


def test_a_copy_that_cannot_follow_stops_the_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has changed by then, and nothing is broken."""
    model, optimizer = trained()
    average = copy.deepcopy(model)
    train(model, optimizer, 2)
    before = bits(model), bits(average)

    def full(*_: Any) -> Any:
        raise topkast.ReservoirError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(copies, "with_sets_of", full)
        with pytest.raises(topkast.ReservoirError):
            topkast.refresh(model)
    assert same(bits(model), before[0]) and same(bits(average), before[1])
    topkast.refresh(model)
    assert alike(model, average) and not same(bits(model), before[0])


def test_nobody_is_kept_alive() -> None:
    model, _ = trained()
    twin = copy.deepcopy(model)
    gone = [weakref.ref(site) for site in sites_of(twin).values()]
    kept = weakref.ref(model)
    del twin
    gc.collect()
    assert not any(one() for one in gone)
    twin = copy.deepcopy(model)
    del model, _
    gc.collect()
    assert kept() is None
    topkast.refresh(twin)


class EMAModel:
    """As diffusers' own: a list of tensors."""

    def __init__(self, parameters: Any) -> None:
        self.shadow_params = [p.clone().detach() for p in parameters]


def test_a_list_of_tensors_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.training_utils", SimpleNamespace(EMAModel=EMAModel))
    model, optimizer = trained(1)
    kept, twin = EMAModel(model.parameters()), copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"EMAModel keeps a list .* topkast\.averaged\(model, decay=0\.999\)") as seen:
        train(model, optimizer, 9)
    assert len(seen) == 1 and alike(model, twin)
    del kept
    model, optimizer = trained(1)
    other = EMAModel(nn.Linear(3, 4).parameters())
    train(model, optimizer, 9)  # a warning would be an error
    assert other.shadow_params


@pytest.mark.long
def test_an_interrupt_leaves_old_or_new() -> None:
    """Ctrl-C before a line of a refresh: model and copy have the same sets, old or new, and the copy its θ."""

    def ready() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        model = topkast.sparsify(nn.Sequential(nn.Linear(12, 20)), 0.7, 0.4, min_size=1)
        average = copy.deepcopy(model)
        with torch.no_grad():
            for each in model.parameters():
                each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(1)))
        entries(average, model, 0)
        return model, average

    model, average = ready()
    theta(average)  # as below: a geometry computes what it knows once
    lines = moments(lambda: topkast.refresh(model), ("runtime",))
    seen = set()
    for at in lines[::3]:
        model, average = ready()
        before, start = theta(average), bits(model)
        assert interrupt(lambda model=model: topkast.refresh(model), at, ("runtime",))
        assert alike(model, average) and same(theta(average), before)
        seen.add(same(bits(model), start))
        topkast.refresh(model)
        assert alike(model, average) and same(theta(average), before)
    assert seen == {False, True}
