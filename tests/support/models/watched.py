"""A small model that is watched while it trains: by a loop, by transformers' Trainer, and by Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import topkast

CONVERT: dict[str, Any] = {"fwd": 0.8, "bwd": 0.5, "refresh_every": 2, "min_size": 1, "seed": 0}


def made(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    return topkast.sparsify(model, **{**CONVERT, **options})


def train(model: nn.Module, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(steps):
        model(torch.randn(8, 16, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def transformers_trainer(transformers: Any, folder: Path, **options: Any) -> Any:
    """A Trainer for 4 steps of a sparse GPT-2, which logs after two.

    Args:
        transformers: the package.
        folder: for the Trainer's files.
        options: "callbacks" of the Trainer; everything else is for its arguments.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    topkast.sparsify(model, **CONVERT)
    callbacks = options.pop("callbacks", [])
    data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=4, logging_steps=2, save_strategy="no", per_device_train_batch_size=4,
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, **{"report_to": [], **options},
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks)


def lightning_run(lightning: Any, net: nn.Module, log: Any) -> None:
    """Train 4 steps; the figures go to a logger after every two.

    Args:
        lightning: the package ``lightning.pytorch``.
        net: the sparse model.
        log: the logger.
    """

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    loader: Any = torch.utils.data.DataLoader(torch.randn(32, 16), batch_size=8)
    quiet: Any = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    callback = topkast.watch.lightning_callback(every=2)
    trainer = lightning.Trainer(
        max_epochs=1, logger=log, callbacks=[callback], accelerator="cpu", log_every_n_steps=1, **quiet
    )
    trainer.fit(Module(), loader)
