"""Gradient clipping, by norm and by value, as ever: the norm is that of the gradient at B.

It equals the norm of the dense gradient with everything outside B set to zero; that is computed here by hand.
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

    plain = topkast.densify(model)  # the same W_A in dense layers
    nn.functional.cross_entropy(plain(x), y).backward()
    sets = topkast.masks(model)
    grads = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    kept = [grad * sets[name][1] if name in sets else grad for name, grad in grads.items()]
    by_hand = torch.stack([grad.norm() for grad in kept]).norm()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if step == 0:
            torch.testing.assert_close(norm, by_hand)
            print(f"norm of the gradient {norm:.6f}, of the dense one at B {by_hand:.6f}")
        clipped = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        assert clipped <= 0.1 * (1 + 1e-5)
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        assert all(bool((p.grad.abs() <= 0.01).all()) for p in model.parameters() if p.grad is not None)
        optimizer.step()
    print(f"loss after {step + 1} clipped steps {loss.item():.2f}")


if __name__ == "__main__":
    main()
