"""Every method beside Top-KAST equals its oracle step by step, on the same state and kernels."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import topkast
from topkast.runtime.layout import Geometry
from topkast.runtime.methods import METHODS
from topkast.runtime.methods.intervals import ended, next_end
from topkast.runtime.reference import dense_gradient as gradient
from topkast.runtime.reference import selection as choose
from topkast.runtime.reference.products import ConvArgs
from topkast.runtime.rule import Rule
from topkast.tests.compiler.checkpoint.test_checkpoint import same, state_of, train
from topkast.tests.passes.aten.test_keep_transposed import stay_rows
from topkast.tests.runtime.native.test_native import LIBRARY
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, adamw, plain, sgd, sites_of

RULES: dict[str, dict[str, Any]] = {
    "static": {"method": "static"},
    "static, balanced blocks": {"method": "static", "balanced": True, "block": (2, 3)},
    "static-magnitude": {"method": "static-magnitude"},
    "static-magnitude, blocks": {"method": "static-magnitude", "block": (3, 5)},
    "set": {"method": "set"},
    "set, stop, erk": {"method": "set", "stop_exploring_after": 5, "distribution": "erk"},
    "set, balanced blocks": {"method": "set", "balanced": True, "block": (2, 3), "drop_fraction": 0.6},
    "rigl": {"method": "rigl"},
    "rigl, all": {"method": "rigl", "refresh_every": 1, "drop_fraction": 0.99, "fwd": 0.4},
    "rigl, stop, erk": {"method": "rigl", "stop_exploring_after": 5, "distribution": "erk"},
    "rigl, blocks": {"method": "rigl", "block": (3, 5), "drop_fraction": 0.5},
    "rigl, balanced": {"method": "rigl", "balanced": True, "drop_fraction": 0.5},
    "rigl, disk": {"method": "rigl", "reservoir": "disk"},
    "magnitude-ste": {"method": "magnitude-ste", "refresh_every": 1},
    "magnitude-ste, stop": {"method": "magnitude-ste", "stop_exploring_after": 3, "block": (2, 2)},
    "gmp": {"method": "gmp", "stop_exploring_after": 5},
    "topkast, falling density": {"fwd_start": 0.3, "fwd_reached_after": 7, "bwd": 0.1, "refresh_growth": 1.5},
    "set, growing intervals": {"method": "set", "refresh_every": 1, "refresh_growth": 1.5},
    "gmp, erk, host": {"method": "gmp", "stop_exploring_after": 4, "distribution": "erk", "reservoir": "host"},
    "gmp, balanced blocks": {"method": "gmp", "stop_exploring_after": 6, "balanced": True, "block": (2, 3)},
}
MOVES = ("topkast", "set", "rigl", "magnitude-ste", "gmp")


def options(rule: str, backend: str = "eager") -> dict[str, Any]:
    every = {"refresh_every": 2} if rule.startswith(MOVES) else {}
    return {"fwd": 0.8, **every, "seed": 4, "backend": backend, **RULES[rule]}


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_oracle(rule: str) -> None:
    trio = Trio(CASES["mlp"], options(rule), sgd)
    trio.run(partial(plain, steps=8), bitwise=True)
    churn = [new for site in sites_of(trio.ours.model).values() for _, new, _ in site.churn]
    if rule.startswith("gmp"):
        assert len(churn) >= 4  # what is left over of a shrinking set is not new
    else:
        assert any(churn) == rule.startswith(MOVES)


@pytest.mark.parametrize(
    "name, rule",
    [
        ("cnn", "rigl"),
        ("cnn", "gmp"),
        ("conv_transpose", "rigl, balanced"),
        ("hf_conv1d", "set, balanced blocks"),
        ("hf_conv1d", "rigl, blocks"),
        ("experts", "rigl"),
        ("mlp", "static"),
        ("mlp", "magnitude-ste"),
    ],
)
def test_compiled(name: str, rule: str) -> None:
    Trio(CASES[name], options(rule, "aot_eager"), adamw).run(partial(plain, steps=5))


@pytest.mark.parametrize("method", METHODS)
def test_no_recompilation(method: str) -> None:
    end = {"stop_exploring_after": 5} if method == "gmp" else {}
    case = CASES["mlp"]
    model = topkast.compile(
        case.model(), fwd=0.8, method=method, min_size=1, backend="aot_eager",
        **({"refresh_every": 1} if "refresh_every" in METHODS[method].uses else {}), **end,
    )  # fmt: skip
    optimizer = sgd(list(model.parameters()))
    for number, (args, target) in enumerate(case.batches(7)):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            optimizer.zero_grad()
            case.loss(model(*args), target).backward()
            optimizer.step()


def made(rule: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The seed of what is drawn must come out of the file: the config has none."""
    given_ = {key: value for key, value in options(rule).items() if key not in ("seed", "backend")}
    model = topkast.sparsify(CASES["mlp"].model(seed), min_size=500, **given_)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


@pytest.mark.parametrize("half", [4, 5])  # a refresh is due, or none
@pytest.mark.parametrize(
    "rule", ["static", "set", "rigl", "magnitude-ste", "gmp", "gmp, balanced blocks", "topkast, falling density"]
)
def test_a_checkpoint_goes_on_bit_for_bit(rule: str, half: int, tmp_path: Path) -> None:
    model, optimizer = made(rule)
    train("mlp", model, optimizer, 0, half)
    topkast.save(model, tmp_path / "half.safetensors", optimizer)
    twin = copy.deepcopy(model)
    train("mlp", model, optimizer, half, 9)
    again, other = made(rule, seed=99)
    topkast.load(again, tmp_path / "half.safetensors", other)
    train("mlp", again, other, half, 9)
    assert same(state_of(again, other), state_of(model, optimizer))
    assert all(site.step == half for site in sites_of(twin).values())  # a copy stands still


def test_a_checkpoint_with_impossible_sets_is_refused(tmp_path: Path) -> None:
    """For gradual pruning any size between the first and the last is possible, for the others two are."""
    model, _ = made("gmp")
    for site in sites_of(model).values():
        assert site.method.holds(site.set_state(), site.n_fwd + 3, site.n_fwd + 3)
        assert not site.method.holds(site.set_state(), site.n_fwd, site.n_bwd)
    model, _ = made("set")
    assert not any(
        site.method.holds(site.set_state(), site.n_fwd + 1, site.n_fwd + 1) for site in sites_of(model).values()
    )


def test_gradual_pruning_follows_the_cubic() -> None:
    case = CASES["mlp"]
    model = topkast.compile(
        case.model(),
        fwd=0.9,
        balanced=False,
        method="gmp",
        refresh_every=5,
        stop_exploring_after=20,
        min_size=1,
        backend="eager",
    )
    optimizer = sgd(list(model.parameters()))
    seen = []
    for args, target in case.batches(26):
        optimizer.zero_grad()
        case.loss(model(*args), target).backward()
        optimizer.step()
        seen.append(float(topkast.masks(model)["2.weight"][0].float().mean()))
    wanted = [1 - 0.9 * (1 - (1 - min(step, 20) / 20) ** 3) for step in (0, 5, 10, 15, 20, 20)]
    assert seen[::5] == pytest.approx(wanted, abs=1 / 1776)


def test_a_falling_density_follows_the_cubic_in_the_same_shapes() -> None:
    """A from half to a tenth, B from all to a fifth; nothing is compiled again."""
    case = CASES["mlp"]
    model = topkast.compile(
        case.model(), fwd=0.9, fwd_start=0.5, fwd_reached_after=8, refresh_every=3, balanced=False, min_size=1,
        backend="aot_eager",
    )  # fmt: skip
    optimizer, seen = sgd(list(model.parameters())), []
    for number, (args, target) in enumerate(case.batches(12)):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            optimizer.zero_grad()
            case.loss(model(*args), target).backward()
        seen.append([float(mask.float().mean()) for mask in topkast.masks(model)["2.weight"]])
        optimizer.step()
    for step, at in ((0, 0), (2, 0), (3, 3), (6, 6), (8, 8), (11, 8)):  # an end of an interval, or the end of the fall
        in_a = 0.1 + 0.4 * (1 - at / 8) ** 3
        assert seen[step] == pytest.approx([in_a, 2 * in_a], abs=2 / 1776), step


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fwd_start": 0.5}, r"fwd_start=0.5, fwd_reached_after=None: must be given together"),
        ({"fwd_reached_after": 9}, r"fwd_start=None, fwd_reached_after=9: must be given together"),
        ({"fwd_start": 0.95, "fwd_reached_after": 9}, r"fwd_start=0.95: must be at most fwd=0.9"),
        ({"fwd_start": 0.5, "fwd_reached_after": 9, "bwd": 0.8}, r"bwd=0.8: must be at most fwd_start=0.5"),
        ({"fwd_start": 0.5, "fwd_reached_after": 9, "distribution": "erk"}, r"distribution='erk': must be 'uniform'"),
        ({"fwd_start": 0.5, "fwd_reached_after": 9, "method": "set"}, r"method='set' does not use it"),
        ({"refresh_growth": 0.9}, r"refresh_growth=0.9: must be a number in \[1, inf\)"),
        ({"refresh_growth": 2.0, "method": "static"}, r"refresh_growth=2.0: method='static' does not use it"),
    ],
)
def test_a_schedule_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(topkast.ConfigError, match=message):
        topkast.sparsify(nn.Linear(64, 64), fwd=0.9, **options)


def test_intervals_grow() -> None:
    rule = Rule(refresh_every=4, refresh_growth=1.5)  # 4, 6, 9, 13.5 and 20.25 steps
    ends = [4, 10, 19, 33, 53]
    assert [step for step in range(60) if ended(rule, step) > ended(rule, step - 1)] == ends
    for step, wanted in ((0, 4), (3, 4), (4, 10), (32, 33), (33, 53)):
        assert next_end(rule, step) == wanted
    assert next_end(Rule(refresh_every=4, refresh_growth=1e300), 5) > 10**15


@st.composite
def problems(draw: st.DrawFn) -> tuple[Geometry, torch.Tensor, int, bool]:
    rows, cols = draw(st.integers(1, 17)), draw(st.integers(1, 13))
    block = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 3), (2, 3), (4, 4)]))
    geometry = Geometry((rows, cols), (0, 1), 1, block)
    balanced = draw(st.booleans())
    count = draw(st.integers(0, geometry.grid[1] if balanced else geometry.units))
    # Few different values: many ties.
    grad = torch.randint(-2, 3, (rows, cols), generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    return geometry, grad.float(), count, balanced


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(problems(), st.integers(1, 60))
def test_best_units_in_parts_are_those_of_the_whole(problem: Any, part: int) -> None:
    geometry, grad, count, balanced = problem
    score = choose.scores(grad, geometry.block).view(geometry.grid[0] if balanced else 1, -1)
    wanted = choose.largest(score, count).view(-1).nonzero()[:, 0]
    sizes = []

    def rows(begin: int, end: int) -> torch.Tensor:
        sizes.append(grad[begin:end].numel())
        return grad[begin:end]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "PART", part)
        units, scores = gradient.best_units(rows, geometry, count, balanced)
    assert torch.equal(units, wanted) and torch.equal(scores, score.view(-1)[wanted])
    assert max(sizes) <= max(part, geometry.block[0] * geometry.cols)  # never whole


def test_rows_of_products() -> None:
    """Any rows of the gradient, of stacked weights and of convolutions, are those of the whole."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    dy, x = draw(5, 9), draw(5, 7)
    cases = [(gradient.product_rows(dy, x), dy.mT @ x)]
    dy, x = draw(3, 5, 4), draw(3, 5, 7)
    cases.append((gradient.product_rows(dy, x), (dy.mT @ x).flatten(0, 1)))
    for groups, transposed, shape in ((1, False, (6, 4, 3)), (2, False, (6, 2, 3)), (2, True, (4, 3, 3))):
        perm = (1, 0, 2) if transposed else (0, 1, 2)
        geometry = Geometry(shape, perm, 1, (1, 1))
        args = ConvArgs([1], [1], [1], transposed, [0], groups)
        x = draw(2, 4, 11)
        dy = draw(*torch.convolution(x, draw(*shape), None, *args).shape)
        whole = torch.ops.aten.convolution_backward(dy, x, draw(*shape), None, *args, [False, True, False])[1]
        wanted = whole.permute(perm).reshape(geometry.rows, geometry.cols)
        cases.append((gradient.conv_rows(dy, x, geometry, args), wanted))
    for rows, wanted in cases:
        for begin, end in ((0, 1), (2, len(wanted)), (1, len(wanted) - 1), (0, len(wanted))):
            torch.testing.assert_close(rows(begin, end), wanted[begin:end], rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(LIBRARY is None, reason="the native kernels are not built")
@pytest.mark.parametrize("layout", ["rows", "tiles"])
def test_rigl_on_native_kernels(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What grows is where the dense gradient of the model with these weights is largest."""
    monkeypatch.setenv("TOPKAST_KERNEL", "native")
    stay_rows(monkeypatch, layout)
    monkeypatch.setattr(gradient, "PART", 500)
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8))
    model = topkast.compile(
        dense,
        fwd=0.9,
        balanced=False,
        method="rigl",
        refresh_every=2,
        min_size=1,
        include=["0.weight", "2.weight"],
        backend="aot_eager",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(64, 32)
    for _ in range(2):
        old, theta = topkast.masks(model), copy.deepcopy(topkast.dense_state_dict(model))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    plain_model = topkast.densify(copy.deepcopy(model))
    plain_model.load_state_dict(theta)
    plain_model(x).square().mean().backward()
    for name, (fwd, _) in topkast.masks(model).items():
        grown = fwd & ~old[name][0]
        assert bool(grown.any())
        score = plain_model.get_parameter(name).grad.abs().double()
        outside = ~fwd & ~old[name][0]
        error = 1e-5 * score.max()
        assert score[grown].min() >= score[outside].max() - error


@pytest.mark.parametrize("name", ["twice", "tied"])
def test_rigl_refuses_a_weight_of_several_products(name: str) -> None:
    case = CASES[name]
    model = topkast.compile(case.model(), fwd=0.8, method="rigl", min_size=1, backend="eager")
    args, target = case.batches(1)[0]
    with pytest.raises(topkast.ModelError, match=r"several products of one backward.*exclude this weight"):
        case.loss(model(*args), target).backward()


def test_rigl_accumulates_gradients() -> None:
    """Several backwards a step: the last says where to grow, and nothing is refused."""
    case = CASES["mlp"]
    model = topkast.compile(case.model(), fwd=0.8, method="rigl", refresh_every=1, min_size=1, backend="eager")
    optimizer = sgd(list(model.parameters()))
    before = {name: fwd for name, (fwd, _) in topkast.masks(model).items()}
    for args, target in case.batches(3):
        case.loss(model(*args), target).backward()
    optimizer.step()
    assert any(bool((fwd != before[name]).any()) for name, (fwd, _) in topkast.masks(model).items())


def test_rigl_refuses_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(topkast.ConfigError, match="method='rigl': each process would grow by its own gradient"):
        topkast.compile(CASES["mlp"].model(), method="rigl", backend="eager")


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_a_refresh_by_hand(method: str) -> None:
    """Static sets stay, RigL without a gradient does not know where to grow; SET draws."""
    model = topkast.compile(CASES["mlp"].model(), fwd=0.8, method=method, min_size=1, backend="eager")
    before = topkast.masks(model)["2.weight"][0]
    topkast.refresh(model)
    assert torch.equal(before, topkast.masks(model)["2.weight"][0]) == (method != "set")


def test_what_enters_starts_at_zero_and_the_rest_stands_still() -> None:
    model, _ = made("set")
    before, old = topkast.dense_state_dict(model, values="all"), topkast.masks(model)
    topkast.refresh(model)
    after, new = topkast.dense_state_dict(model, values="all"), topkast.masks(model)
    for name in old:
        entered = new[name][0] & ~old[name][0]
        assert bool(entered.any()) and not bool(after[name][entered].any())
        assert torch.equal(after[name][~entered], before[name][~entered])


@pytest.mark.parametrize(
    "given_, message",
    [
        ({"method": "prune"}, "method='prune': must be one of 'topkast', 'static'"),
        ({"method": "static", "bwd": 0.5}, "bwd=0.5: method='static' does not use it; it uses no argument"),
        ({"method": "static", "refresh_every": 10}, "refresh_every=10: method='static' does not use it"),
        ({"method": "set", "exploration_decay": 1.0}, "exploration_decay=1.0: method='set' does not use it; it uses"),
        ({"method": "rigl", "explore": "random"}, "explore='random': method='rigl' does not use it"),
        ({"method": "magnitude-ste", "bwd": 0.0}, "bwd=0.0: method='magnitude-ste' does not use it"),
        ({"method": "topkast", "drop_fraction": 0.5}, "drop_fraction=0.5: method='topkast' does not use it"),
        ({"method": "set", "drop_fraction": 1.0}, r"drop_fraction=1.0: must be a number in \[0, 1\)"),
        ({"method": "gmp"}, "stop_exploring_after=None: must be an integer above 0 for method='gmp'"),
        ({"method": "set", "distribution": {"*": (0.9, 0.5)}}, r"distribution\['\*'\] bwd=0.5: must be None"),
    ],
)
def test_what_a_method_does_not_use_is_an_error(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(topkast.ConfigError, match=message):
        topkast.compile(CASES["mlp"].model(), backend="eager", **given_)


def test_a_distribution_by_globs_without_backward_sparsity() -> None:
    given_ = {"2.*": (0.5, None), "*": (0.9, None)}
    model = topkast.compile(CASES["mlp"].model(), method="set", distribution=given_, min_size=1, backend="eager")
    counts = {name: (int(fwd.sum()), int(bwd.sum())) for name, (fwd, bwd) in topkast.masks(model).items()}
    assert counts["2.weight"] == (888, 888) and counts["0.weight"] == (96, 96)


def test_the_report_names_the_method() -> None:
    model = topkast.compile(CASES["mlp"].model(), method="set", min_size=1, backend="eager")
    assert "method: set" in str(topkast.report(model))
