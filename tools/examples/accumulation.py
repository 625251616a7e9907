"""Gradient accumulation: four small batches are one large one. A refresh counts optimizer steps, not batches."""

import copy

import torch
from torch import nn

import topkast


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 32, dtype=torch.float64)
    y = (x @ torch.randn(32, 5, dtype=torch.float64)).argmax(dim=1)
    dense = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 5)).double()
    ends = []
    for parts in (1, 4):
        model = copy.deepcopy(dense)
        topkast.compile(model, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, backend="eager")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            for inputs, targets in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (nn.functional.cross_entropy(model(inputs), targets) / parts).backward()
            optimizer.step()
        ends.append((topkast.dense_state_dict(model, values="all"), topkast.masks(model)))
    (large, large_sets), (small, small_sets) = ends
    difference = max((large[name] - small[name]).abs().max().item() for name in large)
    same = all(torch.equal(fwd, small_sets[name][0]) for name, (fwd, _) in large_sets.items())
    same &= all(torch.equal(bwd, small_sets[name][1]) for name, (_, bwd) in large_sets.items())
    print(f"after 40 steps: the same sets: {same}; largest difference of a weight {difference:.1e}")
    assert same and difference < 1e-10


if __name__ == "__main__":
    main()
