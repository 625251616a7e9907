"""A learning-rate schedule: warm up, then a cosine. The decay of explored weights follows it.

After each step θ ← θ - lr · c · θ on B \\ A with the step's own learning rate, as in AdamW: in the last steps lr is 0,
and nothing moves any more.
"""

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

import topkast


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 32)
    y = (x @ torch.randn(32, 5)).argmax(dim=1)
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 5))
    topkast.compile(model, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, backend="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    still = LambdaLR(optimizer, lambda step: 0.0)
    phases = [LinearLR(optimizer, 0.1, total_iters=10), CosineAnnealingLR(optimizer, 50), still]
    schedule = SequentialLR(optimizer, phases, milestones=[10, 60])

    for step in range(65):
        before = topkast.dense_state_dict(model, values="all")
        (fwd, bwd) = topkast.masks(model)["0.weight"]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        if step % 16 == 0 or lr == 0:
            after = topkast.dense_state_dict(model, values="all")
            moved = (after["0.weight"] - before["0.weight"]).abs()
            explored = moved[bwd & ~fwd].mean()
            print(f"step {step:2}: lr {lr:.4f}, loss {loss.item():.3f}, a step of explored weights {explored:.1e}")
            assert lr > 0 or not moved.any()


if __name__ == "__main__":
    main()
