"""What the error budget lets pass, and what it must not: real errors, however many ways plain PyTorch rounds in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.tools.zoo import lockstep_steps as _zoo_oracle
from topkast.tools.zoo.lockstep_steps import WAYS, complete_gradients, without_gradient

from . import budget
from .budget import assert_budget
from .builders import CASES, WAYS_OF
from .choice import Rules
from .lockstep import Trio, adamw, plain, plans_of, sites_of
from .oracle import Oracle
from .ways import ORDERS, ROUNDED

EVERY = {**WAYS, **ORDERS, **ROUNDED}
OPTIONS = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "aot_eager"}


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors made on purpose are not what the session's summary tells of."""
    monkeypatch.setattr(budget, "TALLY", dict(budget.TALLY))


def dropped_gradient(model: nn.Module) -> None:
    next(p for name, p in model.named_parameters() if name.endswith("bias")).grad = None


def wrong_slot(model: nn.Module) -> None:
    """Two values of one weight's gradient change places: those that differ most."""
    grad = next(iter(_values(model))).grad
    assert grad is not None
    grad = grad.view(-1)
    low, high = int(grad.argmin()), int(grad.argmax())
    grad[[low, high]] = grad[[high, low]]


def half_a_gradient(model: nn.Module) -> None:
    """One slot of many."""
    grad = next(iter(_values(model))).grad
    assert grad is not None
    grad = grad.view(-1)
    grad[int(grad.abs().argmax())] *= 0.5


def bias_in_bfloat16(model: nn.Module) -> None:
    """A gradient of few numbers that was summed in too small a precision."""
    grad = next(p for name, p in model.named_parameters() if name.endswith("bias")).grad
    assert grad is not None
    grad.copy_(grad.bfloat16())


def decayed_twice(model: nn.Module) -> None:
    with torch.no_grad():
        for value in _values(model):
            value *= 1 - 1e-2 * 0.1


def _values(model: nn.Module) -> Iterator[nn.Parameter]:
    yield from (site.original for site in sites_of(model).values())


def run(name: str, wrong: Callable[[nn.Module], None] | None = None, ways: dict[str, Any] = EVERY) -> Trio:
    trio = Trio(CASES[name], OPTIONS, adamw, ways=ways, ties=True)

    def loop(system: Any, optimizer: Any, trio: Trio) -> Iterator[Tensor]:
        for batch in trio.case.batches(3):
            optimizer.zero_grad()
            loss = trio.loss(system, batch)
            loss.backward()
            if system is trio.ours and wrong not in (None, decayed_twice):
                wrong(system.model)
            optimizer.step()
            if system is trio.ours and wrong is decayed_twice:
                wrong(system.model)
            yield loss.detach()

    trio.run(loop)
    complete_gradients(trio, {system: without_gradient(system) for system in trio.systems})
    return trio


@pytest.mark.long
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_every_way_of_plain_pytorch_is_run(name: str) -> None:
    trio = run(name)
    assert len(trio.systems) == 3 + len(EVERY) and any(trio.errors.values())


ERRORS = [dropped_gradient, wrong_slot, half_a_gradient, decayed_twice]
BEYOND = r"is \d{3,}\.\d+ of its budget|gradient on one side|B differs"


@pytest.mark.parametrize("wrong", ERRORS)
def test_a_real_error_is_beyond_it(wrong: Callable[[nn.Module], None]) -> None:
    with pytest.raises(AssertionError, match=BEYOND):
        run("mlp", wrong)


def test_a_bias_in_too_small_a_precision_is_beyond_it() -> None:
    """AdamW's step hides most of the error: 40 budgets are left, and a right program has one at most."""
    with pytest.raises(AssertionError, match=r"bias.* is \d{2,}\.\d+ of its budget"):
        run("mlp", bias_in_bfloat16)


@pytest.mark.parametrize("wrong", ERRORS)
def test_a_real_error_is_as_far_beyond_a_case_s_own_ways(wrong: Callable[[nn.Module], None]) -> None:
    """The ways do not widen the budget of what went wrong by more than their own sums differ.

    On CPUs with AVX2 the message is the same to the last digit. With AVX-512 the ways sum in orders whose errors are
    3.5 times as large for one of these errors, which is then still 99,000 budgets away.
    """
    said = []
    for ways in ({}, WAYS_OF["experts"]):
        with pytest.raises(AssertionError, match=r"is \d{2,}\.\d+ of its budget|gradient on one side") as found:
            run("experts", wrong, ways)
        said.append(str(found.value))
    (place, without), (same_place, within) = map(_place_and_size, said)
    assert place == same_place and within > without / 8


def _place_and_size(message: str) -> tuple[str, float]:
    """Where the error is, and how many budgets it is large."""
    found = re.match(r"(.*) is (\d+\.\d+) of its budget", message, re.DOTALL)
    return (found[1], float(found[2])) if found else (message, 1.0)


def test_a_compiled_way_leaves_ours_compiled() -> None:
    """The roots are torch.nn's own class, which Dynamo skips where it is not told otherwise: then all ran eagerly."""
    torch._dynamo.utils.counters.clear()
    trio = run("mlp", ways={"compiled": WAYS["compiled"]})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    products = [product for site in sites_of(trio.ours.model).values() for product, *_ in site.ran]
    assert products and not any(product.startswith("read") for product in products)


def test_further_ways_are_run_only_if_the_budget_is_missed() -> None:
    """Then everything starts anew."""
    built = []

    def loop(system: Any, optimizer: Any, trio: Trio) -> Iterator[Tensor]:
        built.append(len(trio.systems))
        for loss in plain(system, optimizer, trio, steps=2):
            yield loss + 1e-3 if system is trio.ours and misses and len(trio.systems) == 3 else loss

    for misses in (False, True):
        built.clear()
        trio = Trio(CASES["mlp"], OPTIONS, adamw, further=dict(ORDERS))
        assert trio.run(loop) == 2
        assert built == [3] * 3 + [3 + len(ORDERS)] * (3 + len(ORDERS)) * misses
        assert trio.oracle.steps == 2 and len(trio.optimizers) == len(trio.systems)
    wrong = Trio(CASES["mlp"], OPTIONS, adamw, further=dict(ORDERS))

    def error(system: Any, optimizer: Any, trio: Trio) -> Iterator[Tensor]:
        yield from (loss + (system is trio.ours) for loss in plain(system, optimizer, trio, steps=2))

    with pytest.raises(AssertionError, match=BEYOND):
        wrong.run(error)
    assert len(wrong.systems) == 3 + len(ORDERS)


def test_the_largest_of_plain_errors_counts() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    lucky, other, ours = exact.float(), exact.float() + 1e-4, exact.float() - 1.5e-4
    with pytest.raises(AssertionError, match="of its budget"):
        assert_budget(ours, lucky, exact, "here")
    assert assert_budget(ours, lucky, exact, "here", [other]) == pytest.approx(1e-4, rel=1e-2)
    assert assert_budget(ours, lucky, exact, "here", least=1e-4) == 1e-4


def test_an_infinity_must_be_the_oracle_s() -> None:
    """Buffers may hold one; NaN, or an infinity in another place, is an error whatever plain PyTorch's is."""
    limits = torch.tensor([float("inf"), -float("inf"), 1.0])
    assert assert_budget(limits, limits.clone(), limits.double(), "here") == 0
    for wrong in (-limits, limits * float("nan"), torch.full((3,), float("inf"))):
        with pytest.raises(AssertionError, match="here: not finite"):
            assert_budget(wrong, limits, limits.double(), "here")


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_plain_pytorch_that_is_not_finite_allows_nothing(broken: float) -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    lucky, other = exact.float(), torch.tensor([1.0, broken])
    for oracle, twins in ((other, []), (lucky, [other])):
        with pytest.raises(AssertionError, match="plain PyTorch's own is not finite"):
            assert_budget(exact.float() + 1, oracle, exact, "here", twins)


@pytest.mark.parametrize("right", [True, False])
def test_a_near_tie_is_settled_only_by_the_rule(right: bool) -> None:
    """Rounding has put two scores in another order in our θ: its sets count if they are the rule's for that θ."""
    model = nn.Linear(8, 8, bias=False)
    made = topkast.sparsify(nn.Linear(8, 8, bias=False), fwd=0.75, bwd=0.5, balanced=False, min_size=1)
    (plan,) = plans_of(made).values()
    with torch.no_grad():
        model.weight.copy_(torch.arange(1.0, 65.0).reshape(8, 8))
    ours = model.weight.detach().clone()
    ours[4, 0], ours[3, 7] = ours[3, 7].item(), ours[4, 0].item()  # the last one inside B, and the first outside
    other = Oracle(nn.Linear(8, 8, bias=False), {"weight": plan}, Rules(refresh_every=1))
    other.theta["weight"].data.copy_(ours if right else ours.flip(0))
    sets = {"weight": other._select("weight")}
    oracle = Oracle(model, {"weight": plan}, Rules(refresh_every=1), witness=lambda: (sets, {"weight": ours}))
    before = oracle.sets["weight"]
    oracle.step()
    oracle(torch.ones(1, 8))
    assert oracle.ties == right and not torch.equal(before[1], sets["weight"][1])
    assert all(map(torch.equal, oracle.sets["weight"], sets["weight"] if right else before))


def test_more_ways_are_run_only_where_fewer_are_too_small_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[tuple[str, ...]] = []
    monkeypatch.setattr(_zoo_oracle, "start", lambda state, given: ways.append(tuple(given)))

    def steps(fails: int, what: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def run(state: dict[str, Any]) -> dict[str, Any]:
            if len(ways) < fails:
                raise AssertionError(f"{what} {len(ways)}")
            return {"sites": 1}

        return run

    for fails in range(3):
        ways.clear()
        monkeypatch.setattr(_zoo_oracle, "_steps", steps(fails, "of its budget"))
        wider = {_zoo_oracle.WIDER: "of its budget 0"} if fails else {}
        assert _zoo_oracle.equal({}, str) == {"sites": 1} | wider
        assert ways == [("without oneDNN",), tuple(WAYS)][:fails]
    for fails, what, tried in ((3, "of its budget", 2), (1, "A differs", 0)):
        ways.clear()
        monkeypatch.setattr(_zoo_oracle, "_steps", steps(fails, what))
        with pytest.raises(AssertionError, match=what):
            _zoo_oracle.equal({}, str)
        assert len(ways) == tried
