"""An exponential moving average of the weights, by torch's own AveragedModel, across refreshes.

The sets change every ten steps. The average is of weights all the same: it is compared with one that is kept by hand
over all of θ, dense. It uses the sets of the model that it averages.
"""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import topkast

DECAY = 0.95


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 32)
    y = (x @ torch.randn(32, 5)).argmax(dim=1)
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 5))
    topkast.compile(model, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, backend="eager")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    by_hand: dict[str, torch.Tensor] = {}
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        for name, theta in topkast.dense_state_dict(model, values="all").items():
            by_hand[name] = by_hand[name].lerp(theta, 1 - DECAY) if name in by_hand else theta.clone()

    kept = topkast.dense_state_dict(average, values="all")
    difference = max((kept[name] - by_hand[name]).abs().max().item() for name in kept)
    print(f"loss {loss.item():.3f}, of the average {nn.functional.cross_entropy(average(x), y).item():.3f}")
    print(f"largest difference of the average from a dense one, after 5 refreshes: {difference:.1e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
