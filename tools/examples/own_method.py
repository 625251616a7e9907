"""A method of one's own: B \\ A holds the weights with the largest momentum of the gradient.

The class is 20 lines. A checkpoint holds the momentum, so a run that is resumed in the middle ends in the same bits.
"""

import tempfile

import torch
from torch import Tensor, nn

import topkast


@topkast.register_method
class GradientMomentum(topkast.Method):
    name = "gradient-momentum"
    says = "A is the largest weights, B \\ A has the largest momentum of the gradient."
    uses = ("bwd", "refresh_every")
    watches = largest_first = True
    momentum: Tensor | None = None

    def start(self, state: topkast.SetState, score: Tensor) -> tuple[Tensor, Tensor]:
        fwd = state.largest(score, state.fwd_per_group)
        wanted = self.saved(state)["momentum"].to(score).view_as(score)
        return fwd, state.largest(torch.where(fwd, torch.inf, wanted), state.bwd_per_group)

    renew = start

    def see(self, state: topkast.SetState, rows: topkast.Rows) -> None:
        self.momentum = 0.9 * self.saved(state)["momentum"] + state.gradient_scores(rows).float().cpu()

    def saved(self, state: topkast.SetState) -> dict[str, Tensor]:
        return {"momentum": torch.zeros(state.geometry.units) if self.momentum is None else self.momentum}

    def restore(self, saved: dict[str, Tensor]) -> None:
        self.momentum = saved["momentum"]


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    topkast.sparsify(model, fwd=0.9, bwd=0.7, method="gradient-momentum", refresh_every=5, min_size=1)
    return model, torch.optim.SGD(model.parameters(), 0.3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(64, 32, generator=generator)
        loss = nn.functional.mse_loss(model(x), x[:, :8].abs())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    model, optimizer = made()
    first = train(model, optimizer, range(1))
    train(model, optimizer, range(1, 18))
    with tempfile.TemporaryDirectory() as folder:
        topkast.save(model, f"{folder}/run.safetensors", optimizer)
        resumed, other = made()
        topkast.load(resumed, f"{folder}/run.safetensors", other)
    last = train(model, optimizer, range(18, 40))
    train(resumed, other, range(18, 40))
    state = resumed.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert last < first
    print(f"loss {first:.2f} to {last:.2f} with a method of one's own; resumed at step 18, it ends in the same bits")


if __name__ == "__main__":
    main()
