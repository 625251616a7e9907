"""Frozen parameters: what is frozen before topkast.compile stays dense, what is frozen after it stays sparse.

The report says which. A frozen sparse weight runs sparse and does not move, even in the hands of an optimizer.
"""

import torch
from torch import nn

import topkast


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 32)
    y = (x @ torch.randn(32, 5)).argmax(dim=1)
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 5))
    model[0].requires_grad_(False)  # a pretrained part, to be used as it is: dense
    topkast.compile(model, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, backend="eager")
    model[2].requires_grad_(False)  # sparse by now: it stays so, for inference only
    report = topkast.report(model)
    print(f"dense: 0.weight, {report.dense['0.weight']}")
    print("\n".join(f"sparse: {warning}" for warning in report.warnings if "frozen" in warning))
    assert list(topkast.masks(model)) == ["2.weight", "4.weight"]

    before = {name: theta.clone() for name, theta in topkast.dense_state_dict(model, values="all").items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    after = topkast.dense_state_dict(model, values="all")
    moved = [name for name, theta in after.items() if not torch.equal(theta, before[name])]
    print(f"loss {loss.item():.2f}; of {len(after)} parameters these moved: {', '.join(moved)}")
    assert moved == ["4.weight", "4.bias"]


if __name__ == "__main__":
    main()
