"""torch.amp: products in bfloat16 under autocast, and a GradScaler, whose skipped steps are no steps.

The values, their gradients and the optimizer stay float32.
"""

import torch
from torch import nn

import topkast


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 32)
    y = (x @ torch.randn(32, 5)).argmax(dim=1)
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 5))
    topkast.compile(model, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, backend="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    losses = []
    for step in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
            loss = nn.functional.cross_entropy(output, y)
        assert output.dtype == torch.bfloat16
        # One batch overflows: the scaler sees it, skips the step and halves its scale.
        scaler.scale(loss * (float("inf") if step == 20 else 1)).backward()
        before = topkast.dense_state_dict(model, values="all")
        scaler.step(optimizer)
        scaler.update()
        if step == 20:
            after = topkast.dense_state_dict(model, values="all")
            assert all(torch.equal(theta, after[name]) for name, theta in before.items())
            print(f"step {step}: skipped, no weight moved, the scale is {scaler.get_scale():g}")
        losses.append(loss.item())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    assert losses[-1] < losses[0]


if __name__ == "__main__":
    main()
