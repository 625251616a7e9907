"""torch.func on a sparse model: a gradient for each sample, and an ensemble with sets of its own in each member.

The parameters are the compact vectors of B's values, and so are their gradients.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import topkast


def made(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 5))
    return topkast.compile(model, fwd=0.9, bwd=0.8, min_size=1, backend="eager")


def main() -> None:
    model = made(0)
    x, y = torch.randn(16, 32), torch.randint(5, (16,))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, (x,)), y)

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    nn.functional.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(each[name].mean(dim=0), parameter.grad)
    norms = sum(gradient.flatten(1).square().sum(dim=1) for gradient in each.values()).sqrt()
    print(f"norms of the gradients of {len(norms)} samples: {norms.min():.2f} to {norms.max():.2f}; their mean is "
          "what backward gives")  # fmt: skip

    models = [made(seed) for seed in range(4)]
    stacked = stack_module_state(models)  # values, and as buffers the sets
    outputs = vmap(lambda values, sets: functional_call(models[0], (values, sets), (x,)))(*stacked)
    for output, member in zip(outputs, models, strict=True):
        torch.testing.assert_close(output, member(x))
    print(f"an ensemble of {len(models)} in one call: {tuple(outputs.shape)}")


if __name__ == "__main__":
    main()
