"""An interrupt before every line of `topkast.step`: all weights have made the step, or none has."""

from __future__ import annotations

import copy
import signal
import threading
from typing import Any

import pytest
import torch

import topkast
from topkast.runtime.kernels import explored
from topkast.runtime.layout import explored_values
from topkast.runtime.training.exploration_decay import prepare_decay
from topkast.tests.support.interrupts import interrupt, moments
from topkast.tests.support.truth.lockstep import sites_of
from topkast.tools.fuzz.kinds.trained import everything, same, trained

RULES: dict[str, dict[str, Any]] = {
    "topk": {},
    "given decay": {"exploration_decay": 2.0, "block": (4, 2), "balanced": False},
    "set": {"method": "set", "bwd": None},
}


@pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_whole_at_every_line(rule: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No refresh is due before or after the step, so old and new are all there is."""
    if not native:
        monkeypatch.setattr(explored, "_native", lambda values: False)

    model = trained(1, **RULES[rule])[0]
    kept, old = copy.deepcopy(model.state_dict()), everything(model)

    def step() -> None:
        topkast.step(model, lr=0.1)

    when = moments(step)
    new = everything(model)
    assert not same(old, new) and len(when) > 50
    seen = [0, 0]
    for at in when:
        model.load_state_dict(kept)
        assert interrupt(step, at)
        now = everything(model)
        is_new = same(now, new)
        assert is_new or same(now, old), f"line {at}: neither old nor new"
        seen[is_new] += 1
        if not is_new:
            step()
            assert same(everything(model), new), f"line {at}: the step does not go on as it would have"
    assert min(seen) > 5


def test_signals_while_a_step_decays() -> None:
    """Real signals at random moments, most while native code runs: a value is scaled once, not twice or never."""
    options: dict[str, Any] = {"exploration_decay": 1.0, "refresh_every": 10**6}
    model = topkast.sparsify(torch.nn.Sequential(torch.nn.Linear(512, 256)), 0.8, 0.5, **options)
    (site,) = sites_of(model).values()
    decayed = explored_values(site.index, site.geometry)
    before, arrived = signal.signal(signal.SIGINT, signal.default_int_handler), 0
    try:
        for number in range(300):
            old, step = site.values.clone(), site.step
            shot = threading.Timer(0.0002 * (number % 10), lambda: signal.raise_signal(signal.SIGINT))
            try:
                shot.start()
                while shot.is_alive():
                    old, step = site.values.clone(), site.step
                    topkast.step(model, lr=2**-10)
                shot.join()
            except KeyboardInterrupt:
                arrived += 1
            made = site.step - step
            assert made in (0, 1) and torch.equal(site.values, torch.where(decayed, old * (1 - 2**-10) ** made, old))
    finally:
        signal.signal(signal.SIGINT, before)
    assert arrived > 100


def test_a_decay_that_was_made_is_not_made_again() -> None:
    model = trained(1)[0]
    work = prepare_decay([(site, 0.1) for site in sites_of(model).values()])
    old = everything(model)
    for part in work:
        part()
    new = everything(model)
    for part in work:
        part()
    assert not same(old, new) and same(everything(model), new)
