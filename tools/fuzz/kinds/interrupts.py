"""Ctrl-C just before a random line of refresh, step, load, save or a conversion: all is old or all is new."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

import topkast
from topkast.runtime.state.find_sites import alive
from topkast.runtime.state.refresh import refresh
from topkast.runtime.state.when import due_at_step_end
from topkast.tests.support.interrupts import interrupt, moments
from topkast.tests.support.truth.lockstep import sites_of

from .trained import assert_sound, everything, net, same, train, trained

CALLS = ("refresh", "step", "late step", "load", "dense", "save", "compile")
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"reservoir": "host", "block": (4, 2), "balanced": False},
    {"explore": "random"},
    {"method": "set", "bwd": None},
)
cases = st.tuples(st.sampled_from(CALLS), st.integers(0, len(RULES) - 1), st.floats(0, 1, exclude_max=True))


class Setting:
    """A call with what it works on, made anew for each use."""

    def __init__(self, call: str, rule: int, folder: Path) -> None:
        self.call, self.options, self.folder = call, RULES[rule], folder
        self.file = folder / "file"
        other = trained(4, seed=5, **self.options)
        topkast.save(other[0], self.file, other[1])
        self.plain = net(7)
        # After 3 steps a refresh is due, which a further step makes first if no forward has made it.
        self.model, self.optimizer = trained(2 if call == "step" else 3, **self.options)

    def run(self) -> None:
        if self.call == "refresh":
            topkast.refresh(self.model)
        elif self.call in ("step", "late step"):
            topkast.step(self.model, lr=0.1)
        elif self.call == "load":
            topkast.load(self.model, self.file, self.optimizer)
        elif self.call == "dense":
            topkast.load_dense_state_dict(self.model, net(9).state_dict())
        elif self.call == "save":
            topkast.save(self.model, self.file, self.optimizer)
        else:
            topkast.compile(self.plain, min_size=1, backend="eager", seed=1, initial="random")


def go_on(setting: Setting) -> None:
    """After an interrupted step: the step if no site has made it, and the refresh that a rule makes after the step."""
    steps = {site.step for site in sites_of(setting.model).values()}
    assert len(steps) == 1, "one site has made the step, and another has not"
    if steps == {2 if setting.call == "step" else 3}:
        setting.run()
    refresh(site for site in sites_of(setting.model).values() if due_at_step_end(site))


def parts(setting: Setting) -> list[Any]:
    """What may be old or new, each part by itself: a refresh changes one weight after the other."""
    model, clocks, optimizer = everything(setting.model, setting.optimizer)
    if setting.call not in ("refresh", "step", "late step"):
        return [(model, clocks, optimizer)]
    found = []
    for number, name in enumerate(sites_of(setting.model)):
        module = name.rpartition(".")[0]
        own = {key: value for key, value in model.items() if key == name or key.startswith(f"{module}.sparse_state")}
        found.append((own, clocks[number]))
    return found


@functools.cache
def lines(call: str, rule: int) -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        return moments(Setting(call, rule, Path(folder)).run)


@functools.cache
def results(call: str, rule: int) -> tuple[list[Any], list[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(call, rule, Path(folder))
        old = parts(setting)
        setting.run()
        return old, parts(setting)


def check(case: Any) -> str:
    call, rule, share = case
    when = lines(call, rule)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(call, rule, Path(folder))
        before, looks = setting.file.read_bytes(), copy.deepcopy(setting.plain.state_dict())
        came = interrupt(setting.run, when[int(share * len(when))])
        assert torch.is_grad_enabled(), "gradients are switched off"
        if call == "compile":
            if "_topkast" in vars(setting.plain):
                assert_sound(setting.plain)
            else:
                assert same(dict(setting.plain.state_dict()), dict(looks)), "neither as it was nor converted"
                topkast.compile(setting.plain, min_size=1, backend="eager")
        old, new = results(call, rule)
        if call in ("step", "late step"):
            go_on(setting)
            old = new
        for number, part in enumerate(parts(setting)):
            assert same(part, old[number]) or same(part, new[number]), f"part {number} is neither old nor new"
        if call == "save":
            loaded = trained(0, **RULES[rule])
            assert before == setting.file.read_bytes() or came is not None
            topkast.load(loaded[0], setting.file, loaded[1])
        train(setting.model, setting.optimizer, 4)
        assert_sound(setting.model)
        assert alive()
    return call
