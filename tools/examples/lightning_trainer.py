"""Lightning's Trainer, with the model inside a LightningModule sparse.

bf16 autocast, clipping, accumulation, an average of the weights and checkpoints are Lightning's own.
"""

import tempfile
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn

import topkast


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 5))
        topkast.compile(self.net, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, backend="eager")

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("validation", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)]


def main() -> None:
    lightning.seed_everything(0)
    x = torch.randn(256, 32)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, (x @ torch.randn(32, 5)).argmax(dim=1)), batch_size=32
    )
    with tempfile.TemporaryDirectory() as folder:
        keep = ModelCheckpoint(folder, save_last=True)
        trainer = lightning.Trainer(
            max_epochs=20, accelerator="cpu", precision="bf16-mixed", gradient_clip_val=1.0, accumulate_grad_batches=2,
            callbacks=[keep, EMAWeightAveraging(decay=0.9)], logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        model = Classifier()
        trainer.fit(model, loader, loader)
        loaded = Classifier.load_from_checkpoint(keep.last_model_path)
    # When training ends, the callback has put the average into the model, and the checkpoint holds it.
    (before, after) = (topkast.dense_state_dict(m.net, values="all") for m in (model, loaded))
    assert all(torch.equal(theta, after[name]) for name, theta in before.items())
    loss, validation = (trainer.callback_metrics[name] for name in ("loss_epoch", "validation"))
    print(f"{trainer.global_step} steps: training loss {loss:.2f}, validation of the average {validation:.2f}")
    assert validation < 1.6  # of five classes at random: ln 5


if __name__ == "__main__":
    main()
