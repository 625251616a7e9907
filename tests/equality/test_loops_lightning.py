"""Lightning: Trainer.fit of a sparse module is a plain loop, over refreshes and accumulated steps; files resume."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

import topkast
from topkast.tests.compiler.checkpoint.test_checkpoint import same, state_of
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import adamw, sites_of

lightning: Any = pytest.importorskip("lightning")
pytestmark = [
    # Lightning's own, and its advice on loaders, loggers and checkpoints.
    pytest.mark.filterwarnings("ignore::Warning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # Dynamo looks at it
]

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "min_size": 1}
CASE = CASES["mlp"]


class Module(lightning.LightningModule):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = topkast.sparsify(CASE.model(seed), **SPARSE)

    def training_step(self, batch: Any, number: int) -> Tensor:
        (x,), target = batch
        return CASE.loss(self.net(x), target)

    def configure_optimizers(self) -> Any:
        optimizer = adamw(list(self.parameters()))
        return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.95), "interval": "step"}]


class Manual(Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.automatic_optimization = False

    def training_step(self, batch: Any, number: int) -> Tensor:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        loss = super().training_step(batch, number)
        self.manual_backward(loss)
        optimizer.step()
        schedule.step()
        return loss


class Whole(Module):
    """The LightningModule is compiled, not the network inside."""

    def __init__(self, seed: int = 0) -> None:
        lightning.LightningModule.__init__(self)
        self.net = CASE.model(seed)
        topkast.compile(self, **SPARSE, backend="aot_eager")


def trainer(folder: Path, epochs: int, **options: Any) -> Any:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def loader(batches: int) -> Any:
    return torch.utils.data.DataLoader(CASE.batches(batches), batch_size=None)


def train_plainly(module: nn.Module, batches: int, accumulate: int, clip: float | None, autocast: Any) -> Any:
    """One epoch; the last group of batches may be smaller, and is divided by the same number."""
    (optimizer,), (schedule,) = module.configure_optimizers()
    for number, ((x,), target) in enumerate(CASE.batches(batches), 1):
        with autocast():
            loss = CASE.loss(module.net(x), target)
        (loss / accumulate).backward()
        if number % accumulate == 0 or number == batches:
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            schedule["scheduler"].step()
            optimizer.zero_grad()
    return optimizer


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.1},
    "accumulated": {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
}
RUNS = [(Module, name) for name in OPTIONS] + [(Manual, "plain"), (Whole, "plain"), (Whole, "accumulated")]


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_fit_is_a_plain_loop(kind: type[Module], name: str, tmp_path: Path) -> None:
    """Bit for bit; one step of the clock for each step of the optimizer."""
    options, ours, other = OPTIONS[name], kind(), kind()
    accumulate = options.get("accumulate_grad_batches", 1)
    batches = 8 * accumulate - accumulate // 2
    fitted = trainer(tmp_path, 1, **options)
    fitted.fit(ours, loader(batches))
    autocast = contextlib.nullcontext if name != "bf16" else lambda: torch.autocast("cpu", torch.bfloat16)
    optimizer = train_plainly(other, batches, accumulate, options.get("gradient_clip_val"), autocast)
    assert same(state_of(ours, fitted.optimizers[0]), state_of(other, optimizer))
    for site in sites_of(ours).values():
        assert site.step == 8 and [at for at, *_ in site.churn] == [3, 6]


@pytest.mark.parametrize("kind", [Module, Manual, Whole])
def test_a_checkpoint_resumes_bit_for_bit(kind: type[Module], tmp_path: Path) -> None:
    """Saved between two refreshes; the module that goes on was made of another seed."""
    whole, half, again = kind(), kind(), kind(seed=1)
    through, first, second = trainer(tmp_path, 2), trainer(tmp_path, 1), trainer(tmp_path, 2)
    through.fit(whole, loader(7))
    first.fit(half, loader(7))
    first.save_checkpoint(tmp_path / "half.ckpt")
    second.fit(again, loader(7), ckpt_path=tmp_path / "half.ckpt")
    assert same(state_of(again, second.optimizers[0]), state_of(whole, through.optimizers[0]))
    assert same(topkast.masks(again), topkast.masks(whole))
    assert {(site.step, site.refreshed_at) for site in sites_of(again).values()} == {(14, 12)}
    assert (
        second.lr_scheduler_configs[0].scheduler.get_last_lr()
        == through.lr_scheduler_configs[0].scheduler.get_last_lr()
    )


@pytest.mark.parametrize("kind", [Module, Whole])
def test_a_checkpoint_is_loaded_alone(kind: type[Module], tmp_path: Path) -> None:
    module, fitted = kind(), trainer(tmp_path, 1)
    fitted.fit(module, loader(7))
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "end.ckpt", seed=1)
    assert same(dict(again.state_dict()), dict(module.state_dict()))
