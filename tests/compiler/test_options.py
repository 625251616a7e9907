"""One table of options: what is made from it, and what an option's check allows."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest

import topkast
from topkast.compiler.config import OPTIONS, Config
from topkast.compiler.options import choice, globs, integer, number, options
from topkast.runtime.methods import METHODS
from topkast.runtime.state.model import sites
from topkast.tests.support.truth.builders import CASES

GIVEN: dict[str, Any] = {"block": [4, 2], "include": "*", "distribution": {"0.*": [0.5, 0.25]}, "seed": 3}


def test_a_config_is_a_value() -> None:
    config = Config(**GIVEN)
    assert config.block == (4, 2) and config.include == ("*",) and config.distribution == {"0.*": (0.5, 0.25)}
    assert (config.fwd, config.bwd) == (0.9, 0.8)
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), Config(**asdict(config))):
        assert twin == config
    assert replace(config, seed=4) != config
    with pytest.raises(FrozenInstanceError):
        config.seed = 5


def test_a_site_keeps_the_options_that_the_table_marks() -> None:
    model = topkast.sparsify(CASES["mlp"].model(), min_size=1, refresh_every=7, seed=3)
    rules = [site.rule for site in sites(model).values()]
    marked = {one.name for one in options(Config) if one.kept_by_site}
    for rule in rules:
        assert set(vars(rule)) == marked and (rule.refresh_every, rule.seed) == (7, 3)
        assert rule == copy.deepcopy(rule) == pickle.loads(pickle.dumps(rule)) == rule.replaced()
        assert rule.replaced(seed=4) != rule and rule.replaced(seed=4).seed == 4
        with pytest.raises(AttributeError, match="never changes"):
            rule.seed = 4
        with pytest.raises(AttributeError, match="fwd"):
            _ = rule.fwd


def test_what_methods_use_are_options() -> None:
    names = {one.name for one in options(Config)}
    assert all(set(method.uses) <= names for method in METHODS.values())


def test_each_option_says_one_sentence() -> None:
    for one in OPTIONS:
        assert one.says.endswith(".") and ". " not in one.says and "|" not in one.says, one.name
        assert not one.more or one.more.endswith("."), one.name


def test_sparsify_has_every_option_but_the_backend() -> None:
    with pytest.raises(topkast.ConfigError, match=r"unknown arguments backend, mode; allowed: block, .*init, device"):
        topkast.sparsify(CASES["mlp"].model(), backend="eager", mode="default")
    with pytest.raises(TypeError):
        topkast.compile(CASES["mlp"].model(), 0.9, 0.8, (1, 1))  # type: ignore[call-arg]


def test_a_default_passes_its_own_check() -> None:
    assert all(one.check(one.name, one.default) == one.default for one in OPTIONS)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (number(0, 1), 1.0, r"x=1.0: must be a number in \[0, 1\)"),
        (number(0), True, r"x=True: must be a number in \[0, inf\)"),
        (integer(1), 2.0, r"x=2.0: must be an integer in \[1, inf\)"),
        (globs, 3, "x=3: must be a glob over parameter names, or a list of them"),
        (choice(None, True, False), 1, "x=1: must be one of None, True, False"),
    ],
)
def test_what_is_not_allowed_is_named(check: Any, value: Any, message: str) -> None:
    with pytest.raises(topkast.ConfigError, match=message):
        check("x", value)
