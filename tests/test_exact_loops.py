"""Training loops as people write them: each equals the oracle step by step, and refreshes where it should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import topkast
from topkast.tests.support.truth.builders import CASES, Case
from topkast.tests.support.truth.lockstep import Trio, adamw, in_closure, plain, sgd, sites_of

BACKENDS = ["eager", "aot_eager"]
SPARSE = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2}
Loop = Iterator[Tensor | None]


def accumulate(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """Three micro-batches a step."""
    batches = trio.case.batches(15)
    for first in range(0, 15, 3):
        for batch in batches[first : first + 3]:
            (trio.loss(system, batch) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield None


def clipped(system: Any, optimizer: Any, trio: Trio) -> Loop:
    for batch in trio.case.batches(5):
        optimizer.zero_grad()
        trio.loss(system, batch).backward()
        torch.nn.utils.clip_grad_norm_(system.parameters(), 0.2)
        optimizer.step()
        yield None


def late_zero(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """The gradient of the last step is still there when the sets are chosen again."""
    for batch in trio.case.batches(6):
        loss = trio.loss(system, batch)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        yield None


def never_zero(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """Gradients that outlive a refresh follow their index."""
    for batch in trio.case.batches(6):
        trio.loss(system, batch).backward()
        optimizer.step()
        yield None


def scheduled(system: Any, optimizer: Any, trio: Trio) -> Loop:
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
    for _ in plain(system, optimizer, trio):
        schedule.step()
        yield None


def closure(system: Any, optimizer: Any, trio: Trio) -> Loop:
    for _ in in_closure(system, optimizer, trio):
        yield None


def two_forwards(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """Both forwards, then both backwards, in the other order."""
    batches = trio.case.batches(10)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        optimizer.zero_grad()
        losses = trio.loss(system, first), trio.loss(system, second)
        losses[1].backward()
        losses[0].backward()
        optimizer.step()
        yield None


def retained(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """One graph, two backwards."""
    for batch in trio.case.batches(5):
        optimizer.zero_grad()
        loss = trio.loss(system, batch)
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
        yield None


def evaluated(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """Evaluation between the steps reads the sets of the last forward: a due refresh waits."""
    held = trio.case.batches(1, seed=7)[0]
    for batch in trio.case.batches(6):
        optimizer.zero_grad()
        trio.loss(system, batch).backward()
        optimizer.step()
        system.train(False)
        with torch.no_grad():
            loss = trio.loss(system, held)
        with torch.inference_mode():
            again = trio.loss(system, held)
        assert torch.equal(loss, again)
        system.train()
        # Not inside a with: the other systems' loops would run in its mode.
        yield loss


def autocast(system: Any, optimizer: Any, trio: Trio) -> Loop:
    for batch in trio.case.batches(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = trio.loss(system, batch)
        loss.backward()
        optimizer.step()
        yield None


LOOPS = [accumulate, clipped, late_zero, never_zero, scheduled, closure, two_forwards, retained, evaluated]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loop", LOOPS)
def test_loop(loop: Any, backend: str) -> None:
    trio = Trio(CASES["mlp"], {**SPARSE, "backend": backend}, sgd)
    # The norm of the gradient sums in another order over the compact values.
    trio.run(loop, bitwise=backend == "eager" and loop is not clipped)
    assert trio.oracle.refreshed_at >= 4


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loop", [accumulate, two_forwards, evaluated])
def test_loop_adamw_encoder(loop: Any, backend: str) -> None:
    Trio(CASES["encoder"], {**SPARSE, "backend": backend}, adamw).run(loop)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "hf_conv1d"])
def test_autocast(name: str, backend: str) -> None:
    trio = Trio(CASES[name], {**SPARSE, "backend": backend}, sgd)
    trio.run(autocast, bitwise=backend == "eager")


@pytest.mark.parametrize("fused", [False, True])
def test_scaler_skips(fused: bool) -> None:
    """A step that GradScaler skips is no step: nothing is counted, nothing moves, nothing is refreshed."""

    def scaled(system: Any, optimizer: Any, trio: Trio) -> Loop:
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        for number, batch in enumerate(trio.case.batches(7)):
            optimizer.zero_grad()
            loss = trio.loss(system, batch)
            scaler.scale(loss * float("inf") if number in (2, 3) else loss).backward()
            before = system.state("all")
            scaler.step(optimizer)
            scaler.update()
            if number in (2, 3):
                after = system.state("all")
                assert all(torch.equal(before[key], after[key]) for key in before)
            yield None

    trio = Trio(CASES["mlp"], {**SPARSE, "backend": "eager"}, lambda p: torch.optim.AdamW(p, 1e-2, fused=fused))
    trio.run(scaled)
    assert trio.oracle.steps == 5


class Checkpointed(nn.Module):
    """Sites inside recomputed segments, one of which is used twice."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.into, self.out = nn.Linear(14, 26), nn.Linear(26, 5)
        self.block = nn.Sequential(nn.Linear(26, 40), nn.GELU(), nn.Linear(40, 26), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.out(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool, backend: str) -> None:
    """A refresh happens before the forward, also of weights that only recomputed segments use, never later."""
    case = Case("checkpointed", lambda: Checkpointed(reentrant), (9, 14), ("block.0.weight", "block.2.weight"))
    trio = Trio(case, {**SPARSE, "backend": backend}, sgd)
    trio.run(plain, bitwise=backend == "eager")
    assert {site.refreshed_at for site in sites_of(trio.ours.model).values()} == {4}


def test_all_checkpointed() -> None:
    """Every site is in a reentrant segment, whose first forward runs without gradients."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(14, 30), nn.GELU(), nn.Linear(30, 8))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=True)

    def loop(system: Any, optimizer: Any, trio: Trio) -> Loop:
        for (x,), target in trio.case.batches(5):
            optimizer.zero_grad()
            x = trio.cast(system, x).requires_grad_()
            trio.case.loss(system(x), trio.cast(system, target)).backward()
            optimizer.step()
            yield None

    case = Case("all_checkpointed", Outer, (9, 14), ("block.0.weight",))
    Trio(case, {**SPARSE, "backend": "eager"}, sgd).run(loop, bitwise=True)


@pytest.mark.filterwarnings("ignore:topkast.step without lr:UserWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lr", [None, 0.02])
def test_no_optimizer(lr: float | None, backend: str) -> None:
    """A loop that updates parameters itself calls topkast.step."""

    def manual(system: Any, optimizer: Any, trio: Trio) -> Loop:
        for batch in trio.case.batches(5):
            trio.loss(system, batch).backward()
            with torch.no_grad():
                for parameter in system.parameters():
                    parameter -= 0.02 * parameter.grad
                    parameter.grad = None
            if system is trio.ours:
                topkast.step(system.model) if lr is None else topkast.step(system.model, lr=lr)
            else:
                system.step(lr or 0.0)
            yield None

    Trio(CASES["mlp"], {**SPARSE, "backend": backend}, None).run(manual, bitwise=backend == "eager")


@pytest.mark.parametrize("backend", BACKENDS)
def test_refresh_between_forward_and_backward_raises(backend: str) -> None:
    case = CASES["mlp"]
    model = topkast.compile(case.model(), **SPARSE, min_size=1, backend=backend)
    ((x,), target) = case.batches(1)[0]
    loss = case.loss(model(x), target)
    with torch.no_grad():
        for site in sites_of(model).values():
            site.load_theta(torch.randn(site.geometry.shape))
    topkast.refresh(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_evaluation_never_refreshes() -> None:
    case = CASES["mlp"]
    model = topkast.compile(case.model(), fwd=0.8, bwd=0.6, refresh_every=1, min_size=1, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    batch = case.batches(1)[0]
    case.loss(model(*batch[0]), batch[1]).backward()
    optimizer.step()
    for site in sites_of(model).values():
        assert site.step == 1
    before = {name: [m.clone() for m in sets] for name, sets in topkast.masks(model).items()}
    with torch.no_grad():
        model(*batch[0])
    model.eval()
    with torch.no_grad():
        first = model(*batch[0])
        assert torch.equal(first, model(*batch[0]))
    for name, sets in topkast.masks(model).items():
        assert all(torch.equal(a, b) for a, b in zip(sets, before[name], strict=True))
    assert all(site.refreshed_at == 0 for site in sites_of(model).values())
    model.train()
    model(*batch[0])
    assert all(site.refreshed_at == 1 for site in sites_of(model).values())


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "gru"])
def test_refresh_recompiles_nothing(name: str) -> None:
    """Promise 3: the number of graphs does not change over refreshes, nor does a guard fail."""
    from torch._dynamo.utils import counters

    trio = Trio(CASES[name], {**SPARSE, "refresh_every": 1, "backend": "aot_eager"}, adamw)
    model, optimizer = trio.ours.model, trio.optimizers[0]
    graphs = []
    for number, batch in enumerate(trio.case.batches(5)):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            optimizer.zero_grad()
            trio.loss(trio.ours, batch).backward()
            optimizer.step()
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert len(set(graphs)) == 1, graphs
    assert {site.refreshed_at for site in sites_of(model).values()} == {4}
