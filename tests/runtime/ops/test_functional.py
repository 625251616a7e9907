"""``torch.func`` over a sparse model: transforms see Top-KAST's gradient, and what stands in a site's place stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

import topkast
from topkast.runtime.ops.eager_weight import Read, Sample
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import sites_of

Parameters = dict[str, Tensor]


def made(block: tuple[int, int] = (1, 1), case: str = "mlp", every: int = 100) -> nn.Module:
    torch.manual_seed(3)
    options = {"fwd": 0.8, "bwd": 0.6, "min_size": 1, "backend": "eager"}
    return topkast.compile(CASES[case].model(), block=block, refresh_every=every, **options).double()


def parts(model: nn.Module) -> tuple[Parameters, Tensor, Tensor]:
    x, y = torch.randn(4, 20, dtype=torch.float64), torch.randn(4, 10, dtype=torch.float64)
    return {name: p.detach() for name, p in model.named_parameters()}, x, y


def loss_of(model: nn.Module) -> Any:
    return lambda parameters, x, y: (functional_call(model, parameters, (x,)) - y).square().mean()


def backward(model: nn.Module, x: Tensor, y: Tensor) -> Parameters:
    model.zero_grad()
    (model(x) - y).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("block", [(1, 1), (4, 3)])
def test_reverse_mode_is_what_backward_gives(block: tuple[int, int]) -> None:
    model = made(block)
    parameters, x, y = parts(model)
    expected = backward(model, x, y)
    found = grad(loss_of(model))(parameters, x, y)
    rows = jacrev(lambda p: functional_call(model, p, (x,)))(parameters)
    slope = 2 * (model(x) - y) / y.numel()
    for name, one in expected.items():
        assert torch.equal(found[name], one), name
        torch.testing.assert_close(torch.einsum("mn,mn...->...", slope, rows[name]), one)


def test_one_gradient_for_each_sample() -> None:
    model = made()
    parameters, x, y = parts(model)
    each = vmap(grad(loss_of(model)), in_dims=(None, 0, 0))(parameters, x, y)
    for i in range(4):
        for name, one in backward(model, x[i], y[i]).items():
            torch.testing.assert_close(each[name][i], one)


def test_rigl_grows_by_no_gradient_of_a_single_element() -> None:
    """Under vmap it says so. Of the whole batch, and forward, all is as with any other method."""
    torch.manual_seed(3)
    model = topkast.sparsify(CASES["mlp"].model(), 0.8, method="rigl", min_size=1).double()
    parameters, x, y = parts(model)
    loss = loss_of(model)
    for transform in (vmap(grad(loss), in_dims=(None, 0, 0)), jacrev(lambda p, x, y: loss(p, x, y).expand(2))):
        with pytest.raises(topkast.ModelError, match=r"vmap takes its gradient.*method='rigl'"):
            transform(parameters, x, y)
    found, expected = grad(loss)(parameters, x, y), backward(model, x, y)
    assert all(torch.equal(found[name], one) for name, one in expected.items())
    torch.testing.assert_close(vmap(lambda a: functional_call(model, parameters, (a,)))(x), model(x))


def test_forward_mode_is_the_slope_of_the_output() -> None:
    """Outside A a weight has no effect, and no tangent. In float64 central differences are good to about 1e-9."""
    model = made()
    parameters, x, _ = parts(model)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}

    def output(step: float) -> Tensor:
        return functional_call(model, {name: p + step * tangents[name] for name, p in parameters.items()}, (x,))

    _, slope = jvp(lambda p: functional_call(model, p, (x,)), (parameters,), (tangents,))
    torch.testing.assert_close(slope, (output(1e-5) - output(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-8)
    with torch.autograd.forward_ad.dual_level():
        duals = {name: torch.autograd.forward_ad.make_dual(p, tangents[name]) for name, p in parameters.items()}
        out = functional_call(model, duals, (x,))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(out).tangent, slope)


@pytest.mark.parametrize("block", [(1, 1), (4, 3)])
def test_gradients_of_gradients(block: tuple[int, int]) -> None:
    """Of a penalty on the gradient's norm, against the same with masks on dense weights."""
    model = made(block)
    _, x, y = parts(model)
    found = torch.autograd.grad((model(x) - y).square().mean(), list(model.parameters()), create_graph=True)
    sum(g.square().sum() for g in found).backward()

    sets = topkast.masks(model)
    state = topkast.dense_state_dict(model, values="all")
    dense = {name: value.clone().requires_grad_() for name, value in state.items()}

    class Masked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, theta: Tensor, fwd: Tensor, bwd: Tensor) -> Tensor:
            ctx.bwd = bwd
            return theta * fwd

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
            return grads[0] * ctx.bwd, None, None

    used = {name: Masked.apply(value, *sets[name]) if name in sets else value for name, value in dense.items()}
    plain = CASES["mlp"].model().double()
    slopes = torch.autograd.grad(
        (functional_call(plain, used, (x,)) - y).square().mean(), list(dense.values()), create_graph=True
    )
    sum(g.square().sum() for g in slopes).backward()
    for name, site in sites_of(model).items():
        fwd, bwd = sets[name]
        expected = Sample.apply(dense[name].grad, *site.index, site.key, site.geometry, site.n_fwd).view(
            site.value_shape
        )
        torch.testing.assert_close(site.original.grad, expected)
        assert bool(dense[name].grad[bwd & ~fwd].any())
    torch.testing.assert_close(model[0].bias.grad, dense["0.bias"].grad)


@pytest.mark.parametrize("name", ["mlp", "cnn", "experts"])
def test_the_two_functions_are_each_other_s_derivative(name: str) -> None:
    """torch's own check of first and second derivatives, in both modes and batched."""
    for site in list(sites_of(made((1, 1), name)).values())[:2]:
        rest = (*site.index, site.key, site.geometry, site.n_fwd)
        # Where all of B is A, Read is differentiable in the strict sense.
        strict = (site.row_ptr, site.row_ptr[1:].clone(), site.cols, site.key, site.geometry, site.n_bwd)
        values = site.values.clone().requires_grad_()
        dense = torch.randn(site.geometry.shape, dtype=torch.float64, requires_grad=True)
        options: dict[str, Any] = {"check_forward_ad": True, "fast_mode": True}
        assert torch.autograd.gradcheck(lambda v, s=strict: Read.apply(v, *s), (values,), **options)
        assert torch.autograd.gradcheck(lambda d, r=rest: Sample.apply(d, *r), (dense,), **options)
        assert torch.autograd.gradgradcheck(lambda v, s=strict: Read.apply(v, *s).square(), (values,), fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda d, r=rest: Sample.apply(d, *r).square(), (dense,), fast_mode=True)


def test_curvature() -> None:
    """All second derivatives at once, of one layer's values: those of the gradient that backward gives."""
    model = made()
    parameters, x, y = parts(model)
    key = "4.weight"

    def slope(values: Tensor) -> Tensor:
        return grad(loss_of(model))({**parameters, key: values}, x, y)[key]

    found = hessian(lambda values: loss_of(model)({**parameters, key: values}, x, y))(parameters[key])
    count, shape = parameters[key].numel(), parameters[key].shape
    step = 1e-5 * torch.eye(count, dtype=torch.float64).view(count, *shape)
    numeric = torch.stack([(slope(parameters[key] + s) - slope(parameters[key] - s)) / 2e-5 for s in step], dim=-1)
    numeric = numeric.view(*shape, *shape)
    torch.testing.assert_close(found, numeric, rtol=1e-6, atol=1e-8)


def test_an_ensemble_has_an_index_for_each_model() -> None:
    models = [made() for _ in range(3)]
    for seed, model in enumerate(models):
        for site in sites_of(model).values():
            generator = torch.Generator().manual_seed(seed)
            site.load_theta(torch.randn(site.geometry.shape, generator=generator, dtype=torch.float64))
    _, x, y = parts(models[0])
    parameters, buffers = stack_module_state(models)
    outputs = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    slopes = vmap(grad(lambda p, b: (functional_call(models[0], (p, b), (x,)) - y).square().mean()))(
        parameters, buffers
    )
    for i, model in enumerate(models):
        torch.testing.assert_close(outputs[i], model(x))
        for name, one in backward(model, x, y).items():
            torch.testing.assert_close(slopes[name][i], one)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_due_refresh_waits_while_other_tensors_stand_in_a_site(compiled: bool) -> None:
    """Else θ would be made of the caller's values, and the caller's tensors would be written to."""
    case = CASES["mlp"]
    backend = "aot_eager" if compiled else "eager"
    model = topkast.compile(case.model(), fwd=0.8, bwd=0.6, refresh_every=1, min_size=1, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (args, target), other = case.batches(1)[0], {name: 2 * p.detach() for name, p in model.named_parameters()}
    case.loss(model(*args), target).backward()
    optimizer.step()
    before = {name: value.clone() for name, value in topkast.dense_state_dict(model, values="all").items()}
    given = {name: value.clone() for name, value in other.items()}
    functional_call(model, other, args)
    if not compiled:
        grad(lambda p: case.loss(functional_call(model, p, args), target))(other)
        vmap(model)(args[0])
    assert all(torch.equal(value, given[name]) for name, value in other.items())
    after = topkast.dense_state_dict(model, values="all")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {site.refreshed_at for site in sites_of(model).values()} == {0}
    model(*args)
    assert {site.refreshed_at for site in sites_of(model).values()} == {1}
