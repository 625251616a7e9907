"""torch.utils.checkpoint: activations of a block are computed again in the backward, with the weights of the forward.

A refresh never happens in between. The run ends in the same bits as one that keeps its activations.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import topkast


class Residual(nn.Module):
    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(3)
        )
        self.out = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.again else block(x))
        return self.out(x)


def kept_for_backward(model: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that a forward saves for its backward, weights and sets included."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(x)
    return sum(saved.values())


def main() -> None:
    ends = []
    for again in (False, True):
        torch.manual_seed(0)
        model = Residual(again)
        topkast.compile(model, fwd=0.9, bwd=0.8, refresh_every=5, min_size=1, backend="eager")
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        x = torch.randn(256, 32)
        y = (x @ torch.randn(32, 5)).argmax(dim=1)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        print(f"computed again: {again!s:5}  kept for the backward: {kept_for_backward(model, x):,} bytes")
        ends.append(topkast.dense_state_dict(model, values="all"))
    assert all(torch.equal(theta, ends[1][name]) for name, theta in ends[0].items())
    print("after 30 steps and 5 refreshes both hold the same bits")


if __name__ == "__main__":
    main()
