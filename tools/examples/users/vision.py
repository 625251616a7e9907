"""A vision engineer: a model of timm in Lightning, with timm's groups of parameters, a checkpoint, and an export.

python vision.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import topkast


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        net = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=4
        )
        self.net = topkast.compile(net, fwd=0.9, bwd=0.8, refresh_every=10, backend="aot_eager")

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return create_optimizer_v2(self.net, opt="adamw", lr=3e-3, weight_decay=0.05)


def main(folder: Path) -> None:
    lightning.seed_everything(0)
    labels = torch.arange(128) % 4
    images = torch.randn(128, 3, 32, 32) + torch.randn(4, 3, 32, 32)[labels]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=32)
    keep, logger = ModelCheckpoint(folder, save_last=True), CSVLogger(folder, name="log", version=0)
    trainer = lightning.Trainer(
        max_epochs=10, accelerator="cpu", callbacks=[keep, topkast.watch.lightning_callback()], logger=logger,
        log_every_n_steps=4, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    model = Classifier()
    trainer.fit(model, loader)
    loss = trainer.callback_metrics["loss_epoch"]
    assert loss < 1.0, loss  # of four classes at random: 1.39
    assert "sparse/churn_a" in (folder / "log" / "version_0" / "metrics.csv").read_text()

    loaded = Classifier.load_from_checkpoint(keep.last_model_path).eval()
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    result = topkast.export(loaded.net, folder / "model.onnx", (images[:2],))
    print(f"loss {loss:.2f}; the checkpoint holds the same bits; the file differs by {result.max_error:.0e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
