"""accelerate: a prepared model trains as in a plain loop, resumes bit for bit, and counts an accumulated step once."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

import topkast
from topkast.tests.compiler.checkpoint.test_checkpoint import same, state_of
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, adamw, sites_of

accelerate = pytest.importorskip("accelerate")

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "min_size": 1}
CONVERT: dict[str, Any] = {
    "sparsify": lambda model: topkast.sparsify(model, **SPARSE),
    # A seed is a setting of the model, as its sparsity is: a state dict holds none.
    "random": lambda model: topkast.sparsify(model, **SPARSE, explore="random", seed=5),
    "compile": lambda model: topkast.compile(model, **SPARSE, backend="aot_eager"),
}


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """accelerate keeps its settings for the whole process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def made(convert: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer, ExponentialLR]:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(20, 48), nn.ReLU(), nn.Dropout(0.3), nn.Linear(48, 37), nn.ReLU(), nn.Linear(37, 10)
    )
    model = CONVERT[convert](model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    return model, optimizer, ExponentialLR(optimizer, 0.9)


def batches(count: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(count * 9, 20, generator=generator), torch.randn(count * 9, 10, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=9)


def train(accelerator: Any, parts: tuple[Any, Any, Any], data: Any) -> None:
    model, optimizer, schedule = parts
    for x, y in data:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def train_plainly(parts: tuple[Any, Any, Any], data: Any, accumulate: int, autocast: Any) -> int:
    model, optimizer, schedule = parts
    steps = 0
    for number, (x, y) in enumerate(data, 1):
        with autocast():
            output = model(x)
        (nn.functional.mse_loss(output.float(), y) / accumulate).backward()
        if number % accumulate == 0 or number == len(data):
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            steps += 1
    return steps


@pytest.mark.parametrize("convert", CONVERT)
@pytest.mark.parametrize(("accumulate", "precision"), [(1, "no"), (4, "no"), (1, "bf16")])
def test_trains_as_in_a_plain_loop(convert: str, accumulate: int, precision: str) -> None:
    """One step of the clock for each step of the optimizer, also if the last group of batches is not full."""
    ours, other = made(convert, 0), made(convert, 0)
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision, step_scheduler_with_optimizer=True
    )
    *parts, data = accelerator.prepare(*ours, batches(8 * accumulate - accumulate // 2))
    assert parts[0] is ours[0] and accelerator.unwrap_model(parts[0]) is ours[0]
    torch.manual_seed(2)  # of the dropout
    train(accelerator, tuple(parts), data)
    torch.manual_seed(2)
    autocast = contextlib.nullcontext if precision == "no" else lambda: torch.autocast("cpu", torch.bfloat16)
    assert train_plainly(other, batches(8 * accumulate - accumulate // 2), accumulate, autocast) == 8
    assert same(state_of(ours[0], ours[1]), state_of(other[0], other[1]))
    assert ours[2].get_last_lr() == other[2].get_last_lr()
    for site in sites_of(ours[0]).values():
        assert site.step == 8 and [at for at, *_ in site.churn] == [3, 6]


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("convert", CONVERT)
def test_a_saved_state_resumes_bit_for_bit(convert: str, safe: bool, tmp_path: Path) -> None:
    """Saved between two refreshes; the model that goes on was made of another seed and has another generator."""
    ends = []
    data = list(batches(10))
    for resumed in (False, True):
        accelerator = accelerate.Accelerator(cpu=True)
        parts = accelerator.prepare(*made(convert, 99 if resumed else 0))
        if resumed:
            accelerator.load_state(str(tmp_path))
        else:
            torch.manual_seed(3)
            train(accelerator, parts, data[:5])
            accelerator.save_state(str(tmp_path), safe_serialization=safe)
        train(accelerator, parts, data[5:])
        model, optimizer, schedule = parts
        ends.append(
            (
                state_of(model, optimizer),
                topkast.masks(model),
                {name: (site.step, site.refreshed_at) for name, site in sites_of(model).items()},
                schedule.state_dict(),
                torch.get_rng_state(),
                random.getstate(),
            )
        )
        for site in sites_of(model).values():
            assert [at for at, *_ in site.churn][-2:] == [6, 9]
    assert (tmp_path / "model.safetensors").exists() == safe
    assert same(*ends)


def test_a_saved_model_is_loaded_alone(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    parts = accelerator.prepare(*made("sparsify", 0))
    train(accelerator, parts, batches(5))
    accelerator.save_model(parts[0], str(tmp_path))
    again = made("sparsify", 1)[0]
    accelerate.load_checkpoint_in_model(again, str(tmp_path))
    assert same(dict(again.state_dict()), accelerator.get_state_dict(parts[0]))
    assert same(topkast.masks(again), topkast.masks(parts[0]))


def test_clipped_as_the_oracle() -> None:
    """The norm that clips is that of B's gradients, as in the oracle; small enough that each step is clipped."""
    clipped = []

    def loop(system: Any, optimizer: Any, trio: Trio) -> Any:
        accelerator = accelerate.Accelerator(cpu=True)
        prepared = accelerator.prepare(optimizer)
        for batch in trio.case.batches(7):
            prepared.zero_grad()
            loss = trio.loss(system, batch)
            accelerator.backward(loss)
            clipped.append(float(accelerator.clip_grad_norm_(system.parameters(), 0.01)) > 0.01)
            prepared.step()
            yield loss.detach()

    assert Trio(CASES["mlp"], {**SPARSE, "backend": "eager"}, adamw).run(loop) == 7
    assert clipped and all(clipped)
