"""Lightning's ModelParallelStrategy, which leaves ``fully_shard`` to the module: two processes on the CPU.

    python tools/examples/fsdp/lightning_strategy.py

With GPUs: ``accelerator="gpu"`` and their number. Lightning makes the mesh before it calls ``configure_model``, so this
is the place to make the model sparse.
"""

import tempfile
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import topkast

RANKS, STEPS = 2, 40


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 5))

    def configure_model(self) -> None:
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        torch.manual_seed(0)  # every rank starts from the same weights
        layers = [layer for layer in self.net if isinstance(layer, nn.Linear)]
        for layer in layers:
            layer.reset_parameters()
        topkast.sparsify(self.net, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, mesh=mesh)
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=False, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(16 * RANKS * STEPS, 32, generator=draw)
    data = torch.utils.data.TensorDataset(x, (x @ torch.randn(32, 5, generator=draw)).argmax(dim=1))
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu", devices=RANKS, max_epochs=1, logger=False, enable_progress_bar=False,
            strategy=ModelParallelStrategy(data_parallel_size=RANKS, tensor_parallel_size=1),
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        model = Classifier()
        trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=16))
    weights = topkast.dense_state_dict(model.net, full=True)
    if trainer.is_global_zero:
        share = sum(int(w.count_nonzero()) for w in weights.values() if w.dim() == 2)
        total = sum(w.numel() for w in weights.values() if w.dim() == 2)
        loss = float(trainer.callback_metrics["loss"])
        print(f"{trainer.global_step} steps on {RANKS} ranks: loss {loss:.2f}, {share / total:.0%} of the weights used")
        assert loss < 1.6  # of five classes at random: ln 5
    time.sleep(1.0)  # gloo's threads let go of the last tensors; if Python ended before, the process would abort


if __name__ == "__main__":
    main()
