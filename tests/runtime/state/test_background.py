"""Sets chosen by a thread while training goes on: those of the step that asked, in force one interval later."""

from __future__ import annotations

import copy
import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import topkast
from topkast.compiler.checkpoint.tensor_file import SUMS
from topkast.runtime.methods import Method, SetState
from topkast.runtime.state import refresh as refreshing
from topkast.tests.compiler.checkpoint.test_checkpoint import same, state_of
from topkast.tests.support.truth.builders import CASES, WAYS_OF
from topkast.tests.support.truth.lockstep import Trio, adamw, plain, sgd, sites_of

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "refresh_in_background": True}
RULES: dict[str, dict[str, Any]] = {
    "topk": {},
    "blocks, balanced": {"balanced": True, "block": (2, 3)},
    "random": {"explore": "random", "seed": 3},
    "every step": {"refresh_every": 1},
    "stop at 3": {"stop_exploring_after": 3},
    "stop at 4, random": {"stop_exploring_after": 4, "explore": "random", "seed": 3},
    "stop in a long interval": {"stop_exploring_after": 2, "refresh_every": 5, "block": (3, 5)},
    "host": {"reservoir": "host"},
    "disk": {"reservoir": "disk"},
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    trio = Trio(CASES["mlp"], {**SPARSE, "backend": "eager", **RULES[rule]}, sgd)
    trio.run(partial(plain, steps=8), bitwise=True)
    assert any(site.churn for site in sites_of(trio.ours.model).values()), "no sets came into force"


@pytest.mark.long
@pytest.mark.parametrize("name", ["mlp", "cnn", "experts", "hf_conv1d", "tied"])
def test_compiled(name: str) -> None:
    trio = Trio(CASES[name], {**SPARSE, "backend": "aot_eager"}, adamw, ways=WAYS_OF.get(name, {}))
    trio.run(partial(plain, steps=7))


def test_ties_go_to_the_lower_index() -> None:
    def constant() -> nn.Module:
        model = CASES["mlp"].model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        return model

    trio = Trio(CASES["mlp"], {**SPARSE, "backend": "eager"}, sgd, build=constant)
    trio.run(partial(plain, steps=6), bitwise=True)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_refresh_means_now(step: int) -> None:
    """What a thread has chosen is dropped; the next end of an interval asks again."""

    def loop(system: Any, optimizer: Any, trio: Trio) -> Iterator[Any]:
        for number, loss in enumerate(plain(system, optimizer, trio, steps=8)):
            yield loss
            if number == step:
                topkast.refresh(system.model) if system is trio.ours else system.refresh()

    Trio(CASES["mlp"], {**SPARSE, "backend": "eager"}, adamw).run(loop)


def steps(model: nn.Module, count: int, lr: float = 0.05, first: int = 0) -> torch.optim.Optimizer:
    """Steps of AdamW on batches of their own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    for args, target in CASES["mlp"].batches(first + count)[first:]:
        CASES["mlp"].loss(model(*args), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def sparse(**options: Any) -> nn.Module:
    return topkast.sparsify(CASES["mlp"].model(), min_size=1, **{**SPARSE, **options})


def test_draws_are_those_of_the_step_that_asked() -> None:
    """With weights that stand still, the sets are those of the other way, one interval later."""
    found: dict[bool, list[Any]] = {False: [], True: []}
    for background, seen in found.items():
        model = sparse(explore="random", seed=5, refresh_in_background=background)
        for number in range(9):
            steps(model, 1, 0.0)
            if number % 2 == 0:
                seen.append([mask.clone() for pair in topkast.masks(model).values() for mask in pair])
    assert same(found[True][2:], found[False][1:-1])
    assert not same(found[False][1], found[False][2])


def test_a_new_weight_drops_what_was_asked_for_the_old_one() -> None:
    model, other = sparse(), sparse()
    steps(model, 4)
    state = {key: value.flip(0).clone() for key, value in topkast.dense_state_dict(model, "all").items()}
    topkast.load_dense_state_dict(model, state)
    topkast.load_dense_state_dict(other, state)
    for each, first in ((model, 4), (other, 0)):
        assert all(site.pending is None for site in sites_of(each).values())
        churn = [list(site.churn) for site in sites_of(each).values()]
        steps(each, 2, 0.0, first)
        assert churn == [list(site.churn) for site in sites_of(each).values()]
    assert all(torch.equal(a, b) for a, b in zip(
        topkast.dense_state_dict(model).values(), topkast.dense_state_dict(other).values(), strict=True
    ))  # fmt: skip


class Gate:
    """Lets a thread choose no set before it is opened; the main thread goes through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, choose, main = threading.Event(), refreshing.renewed_sets, threading.get_ident()

        def wait(method: Method, state: SetState, theta: Tensor) -> Any:
            if threading.get_ident() != main:
                assert self.open.wait(60)
            return choose(method, state, theta)

        monkeypatch.setattr(refreshing, "renewed_sets", wait)


def test_training_goes_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole interval passes before the thread has looked at anything, and it still sees what was there before."""
    gate, model, twin = Gate(monkeypatch), sparse(), sparse()
    steps(model, 4)
    steps(twin, 4)
    asked = {name: site.pending for name, site in sites_of(model).items()}
    assert all(pending is not None and pending.step == 2 and not pending.future.done() for pending in asked.values())
    gate.open.set()
    for site in sites_of(twin).values():
        site.pending.wait()
    for each in (model, twin):
        steps(each, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


def test_a_thread_draws_for_the_step_that_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the thread begins: one draws at once, the other when the model has made further steps."""
    twin = sparse(explore="random", seed=5)
    steps(twin, 3)
    for site in sites_of(twin).values():
        site.pending.wait()
    steps(twin, 1, first=3)
    gate, model = Gate(monkeypatch), sparse(explore="random", seed=5)
    steps(model, 3)
    steps(model, 1, first=3)
    assert not any(site.pending.future.done() for site in sites_of(model).values())
    gate.open.set()
    for each in (model, twin):
        steps(each, 1, first=4)
    assert same(model.state_dict(), twin.state_dict())


def test_a_copy_made_meanwhile_has_the_same_sets_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, model = Gate(monkeypatch), sparse()
    steps(model, 3)
    twin = copy.deepcopy(model)
    gate.open.set()
    for each in (model, twin):
        steps(each, 6, first=3)
    assert same(model.state_dict(), twin.state_dict())


def test_a_cast_made_meanwhile_keeps_the_sets_to_come() -> None:
    model = sparse()
    steps(model, 4, 0.0)
    twin = copy.deepcopy(model).double()
    x = torch.randn(9, 20)
    model(x), twin(x.double())
    for name, pair in topkast.masks(model).items():
        assert same(list(pair), list(topkast.masks(twin)[name]))
    assert all(len(site.churn) == 1 for site in sites_of(twin).values())


def test_an_error_is_raised_at_the_next_refresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, choose = sparse(), refreshing.renewed_sets

    def fail(method: Method, state: SetState, theta: Tensor) -> Any:
        if state.step == 2 and state.name == "2.weight":
            raise MemoryError("no room")
        return choose(method, state, theta)

    monkeypatch.setattr(refreshing, "renewed_sets", fail)
    steps(model, 4)
    message = r"2\.weight: its sets of step 2, chosen in the background, failed with MemoryError: no room"
    with pytest.raises(topkast.RefreshError, match=message):
        topkast.save(model, tmp_path / "c")
    with pytest.raises(topkast.RefreshError, match=message):
        steps(model, 1, first=4)
    steps(model, 3, first=4)  # it was said; what is asked for now is another choice
    assert sites_of(model)["2.weight"].pending.step == 6


def checkpointed(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = topkast.sparsify(CASES["mlp"].model(), min_size=1, **{**SPARSE, "refresh_every": 3, **options})
    return model, adamw(list(model.parameters()))


def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for args, target in CASES["mlp"].batches(stop)[start:]:
        CASES["mlp"].loss(model(*args), target).backward()
        optimizer.step()
        optimizer.zero_grad()


RESUMED = [{}, {"explore": "random", "stop_exploring_after": 9}, {"reservoir": "host"}]


@pytest.mark.long
@pytest.mark.parametrize("options", RESUMED, ids=str)
@pytest.mark.parametrize("half", [2, 3, 4, 7])
def test_resumes_bit_for_bit(half: int, options: dict[str, Any], tmp_path: Path) -> None:
    """Before anything was asked, when a refresh is due, while a thread is at work, and later: its choice is saved."""
    model, optimizer = checkpointed(**options)
    go_on(model, optimizer, 0, half)
    topkast.save(model, tmp_path / "c", optimizer)
    other, fresh = checkpointed(**options)
    go_on(other, fresh, 0, 5)  # it has sets of its own to come, which must go
    topkast.load(other, tmp_path / "c", fresh)
    asked = half > 3  # the forward of step 4 is the first that finds a refresh due
    assert all((site.pending is not None) == asked for site in sites_of(other).values())
    for each, opt in ((model, optimizer), (other, fresh)):
        go_on(each, opt, half, 11)
    assert same(state_of(model, optimizer), state_of(other, fresh))
    assert sites_of(other)["2.weight"].churn == sites_of(model)["2.weight"].churn != []


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, Tensor]], None]) -> None:
    with safe_open(path, "pt") as file:
        header = {key: value for key, value in file.metadata().items() if key != SUMS}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, metadata=header)


def test_a_broken_preparation_is_refused(tmp_path: Path) -> None:
    model, _ = checkpointed()
    steps(model, 4)
    topkast.save(model, tmp_path / "c")
    before = copy.deepcopy(model.state_dict())
    name = "0.sparse_state.weight.prepared_"

    def fewer(header: dict[str, str], tensors: dict[str, Tensor]) -> None:
        tensors[name + "row_ptr"][-1] -= 1

    def outside(header: dict[str, str], tensors: dict[str, Tensor]) -> None:
        tensors[name + "cols"][3] = 999

    for change, message in ((fewer, "it holds 192 units in A and 383 in B"), (outside, "a column is outside")):
        topkast.save(model, tmp_path / "c")
        rewrite(tmp_path / "c", change)
        with pytest.raises(topkast.CheckpointError, match=rf"0\.weight: {message}"):
            topkast.load(model, tmp_path / "c")
        assert same(model.state_dict(), before)
    broken = {key: value.clone() for key, value in before.items()}
    broken[name + "cols"][3] = 999
    with pytest.raises(RuntimeError, match="the prepared_index is broken: a column is outside"):
        model.load_state_dict(broken)


def test_a_file_from_before_there_was_a_choice(tmp_path: Path) -> None:
    """It was written by the only way there was."""
    model, _ = checkpointed(refresh_in_background=False)
    steps(model, 4)
    topkast.save(model, tmp_path / "c")

    def older(header: dict[str, str], tensors: dict[str, Tensor]) -> None:
        config = json.loads(header["config"])
        del config["refresh_in_background"]
        header["config"] = json.dumps(config)

    rewrite(tmp_path / "c", older)
    other, _ = checkpointed(refresh_in_background=False)
    topkast.load(other, tmp_path / "c")
    assert same(other.state_dict(), model.state_dict())
    with pytest.raises(topkast.CheckpointError, match="refresh_in_background: file False, model True"):
        topkast.load(checkpointed()[0], tmp_path / "c")


def test_a_backend_that_is_not_ours_asks_too() -> None:
    model = torch.compile(sparse(), backend="aot_eager")
    steps(model, 6)
    assert all(len(site.churn) >= 1 for site in sites_of(model).values())


def test_a_forked_process_has_a_thread_of_its_own() -> None:
    steps(sparse(), 3)  # this process has one
    child = multiprocessing.get_context("fork").Process(target=lambda: steps(sparse(), 5))
    child.start()
    child.join(600)  # only a hang takes so long: 60 were not enough at a load of 17 on two cores
    assert child.exitcode == 0


def test_is_a_yes_or_no() -> None:
    with pytest.raises(topkast.ConfigError, match="refresh_in_background=1: must be one of True, False"):
        topkast.compile(CASES["mlp"].model(), refresh_in_background=1)
