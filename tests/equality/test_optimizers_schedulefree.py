"""Schedule-free optimizers: a weight that enters B begins its fast sequence where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, plain, sites_of

schedulefree = pytest.importorskip("schedulefree")

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "backend": "eager"}
KINDS = {
    "adamw": partial(schedulefree.AdamWScheduleFree, lr=0.02, weight_decay=0.1, eps=1e-4),
    "adamw loop": partial(schedulefree.AdamWScheduleFree, lr=0.02, eps=1e-4, warmup_steps=3, foreach=False),
    "radam": partial(schedulefree.RAdamScheduleFree, lr=0.02, eps=1e-4),
    "sgd": partial(schedulefree.SGDScheduleFree, lr=0.1, weight_decay=0.01),
}


def make(kind: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = KINDS[kind](parameters)
    optimizer.train()
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_after_entering(kind: str) -> None:
    trio = Trio(CASES["mlp"], SPARSE, partial(make, kind))
    trio.run(partial(plain, steps=14))
    entered = [step for site in sites_of(trio.ours.model).values() for step, _, share in site.churn if share]
    assert entered and min(entered) <= 4


def test_evaluation_between_steps() -> None:
    """The averaged weights are read, and training goes on, as the package asks for."""

    def evaluated(system: Any, optimizer: Any, trio: Trio) -> Iterator[Tensor | None]:
        for number, loss in enumerate(plain(system, optimizer, trio, steps=10)):
            if number % 3 == 1:
                optimizer.eval()
                with torch.no_grad():
                    loss = trio.loss(system, trio.case.batches(1, seed=9)[0])
                optimizer.train()
            yield loss

    Trio(CASES["mlp"], SPARSE, partial(make, "adamw")).run(evaluated)


def test_no_step_in_eval_mode() -> None:
    """The package's own error comes through, and the mode stays."""
    trio = Trio(CASES["mlp"], SPARSE, partial(make, "sgd"))
    optimizer = trio.optimizers[0]
    optimizer.eval()
    with pytest.raises(Exception, match="not in train mode"):
        next(plain(trio.ours, optimizer, trio))
    assert not any(group["train_mode"] for group in optimizer.param_groups)
