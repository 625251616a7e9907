"""Accelerate's plugin for FSDP2. Not run: Accelerate uses the plugin on GPUs only, and there was none.

    accelerate launch --num_processes 8 tools/examples/fsdp/accelerate_plugin.py

``cpu_ram_efficient_loading`` must be False: it moves the model to the meta device after the conversion.
"""

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import topkast


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def main() -> None:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block"],
        cpu_ram_efficient_loading=False,
        state_dict_type="SHARDED_STATE_DICT",
    )
    accelerator = Accelerator(fsdp_plugin=plugin, mixed_precision="bf16")
    torch.manual_seed(0)  # every rank starts from the same weights
    model = nn.Sequential(nn.Linear(32, 256), Block(256), Block(256), nn.Linear(256, 5))
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    topkast.sparsify(model, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, mesh=mesh)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    draw = torch.Generator().manual_seed(accelerator.process_index)
    for step in range(100):
        x = torch.randn(64, 32, generator=draw).to(accelerator.device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), x[:, :5].argmax(dim=1))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            accelerator.print(f"step {step}: loss {loss.item():.3f}")
    accelerator.save_state("accelerate-state")


if __name__ == "__main__":
    main()
