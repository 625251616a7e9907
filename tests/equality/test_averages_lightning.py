"""Lightning's averages of a sparse model: its callback of AveragedModels is exact, its SWA pairs the right weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.tests.runtime.state.test_copies import follow, mean
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import sgd

lightning: Any = pytest.importorskip("lightning")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")


def test_stochastic_weight_averaging() -> None:
    """Its own update of its own copy: each weight's mean over the updates that it was in B for."""
    count = torch.tensor(0)

    def update(average: nn.Module, model: nn.Module, number: int) -> None:
        swa = callbacks.StochasticWeightAveraging
        with torch.no_grad():
            swa.update_parameters(average, model, count, swa.avg_fn)
        assert int(count) == number + 1

    follow(update, {}, share=mean, whole=False, steps=14, first=3)


class Training(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = topkast.sparsify(CASES["mlp"].model(), 0.8, 0.6, refresh_every=3, min_size=1)

    def training_step(self, batch: Any, number: int) -> Any:
        (x,), target = batch
        return CASES["mlp"].loss(self.net(x), target)

    def configure_optimizers(self) -> Any:
        return sgd(list(self.net.parameters()))


@pytest.mark.filterwarnings("ignore::Warning")  # Lightning's advice on workers, loggers and checkpoints
def test_ema_weight_averaging(tmp_path: Any) -> None:
    """Its last average, which it leaves in the model, is that of a run beside it that uses topkast.averaged."""
    trained, ours = Training(), Training()
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=[callbacks.EMAWeightAveraging(decay=0.8, update_every_n_steps=1, update_starting_at_step=0)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    batches = CASES["mlp"].batches(11)
    trainer.fit(trained, train_dataloaders=torch.utils.data.DataLoader(batches, batch_size=None))
    average, optimizer = topkast.averaged(ours.net, 0.8), ours.configure_optimizers()
    for number, batch in enumerate(batches):
        optimizer.zero_grad()
        ours.training_step(batch, number).backward()
        optimizer.step()
        average.update()
    found, expected = (topkast.dense_state_dict(model, values="all") for model in (trained.net, average))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)
