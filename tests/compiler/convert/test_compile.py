"""The public face: what stays of a model, what is refused, and how the sets are counted."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.runtime.state.model import sites


def mlp(width=32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width, bias=False))


def small(model, fwd=0.9, bwd=0.8, **options):
    return topkast.compile(model, fwd, bwd, **({"min_size": 20, "backend": "eager", "seed": 0} | options))


def train(model, steps, lr=0.1, **options):
    opt = torch.optim.AdamW(model.parameters(), lr=lr, **options)
    for _ in range(steps):
        model(torch.randn(8, 32)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    return opt


def densities(model):
    return {name: tuple(float(mask.float().mean()) for mask in pair) for name, pair in topkast.masks(model).items()}


def test_same_object_class_and_hooks():
    class Net(nn.Module):
        """A model with an attribute, a method and a hook of its own."""

        def __init__(self):
            super().__init__()
            self.body, self.scale = mlp(), 2.0

        def forward(self, x):
            return self.body(x) * self.scale

    model, seen = Net(), []
    model.body[0].register_forward_hook(lambda *_: seen.append(1))
    converted = small(model)
    assert converted is model and type(model) is Net and model.scale == 2.0
    assert isinstance(model.body[0], nn.Linear)
    seen.clear()  # tracing runs hooks too, as torch.export does
    model(torch.randn(2, 32))
    assert seen == [1]


def test_optimizer_made_before_still_holds_the_weights():
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    small(model)
    before = topkast.dense_state_dict(model, "all")
    model(torch.randn(4, 32)).sum().backward()
    opt.step()
    assert not torch.equal(before["0.weight"], topkast.dense_state_dict(model, "all")["0.weight"])


def test_bwd_none_is_twice_the_forward_density():
    for fwd, bwd in [(0.9, 0.8), (0.95, 0.9), (0.3, 0.0)]:
        model = topkast.sparsify(mlp(100), fwd)
        assert densities(model)["0.weight"] == pytest.approx((1 - fwd, 1 - bwd))


def test_training_moves_the_sets_and_only_b():
    model = small(mlp(), refresh_every=3)
    before = topkast.masks(model)["0.weight"][0]
    theta, (_, bwd) = topkast.dense_state_dict(model, "all")["0.weight"], topkast.masks(model)["0.weight"]
    train(model, 3, weight_decay=0.1)
    after = topkast.dense_state_dict(model, "all")["0.weight"]
    assert torch.equal(after[~bwd], theta[~bwd]) and not torch.equal(after[bwd], theta[bwd])
    train(model, 4)
    assert not torch.equal(before, topkast.masks(model)["0.weight"][0])


def test_evaluation_does_not_refresh():
    model = small(mlp(), refresh_every=1)
    train(model, 1)
    with torch.no_grad():
        model(torch.randn(2, 32))
    assert all(not site.churn for site in sites(model).values())
    model(torch.randn(2, 32))
    assert all(len(site.churn) == 1 for site in sites(model).values())


@pytest.mark.parametrize("reservoir", ["device", "host", "disk"])
def test_copies_are_independent_and_moves_keep_values(reservoir):
    model = small(mlp(), reservoir=reservoir, refresh_every=2)
    train(model, 2)
    twin = copy.deepcopy(model)
    kept = topkast.dense_state_dict(twin, "all")
    assert sites(twin)["0.weight"].key.item() != sites(model)["0.weight"].key.item()
    train(model, 5)
    assert all(torch.equal(kept[k], v) for k, v in topkast.dense_state_dict(twin, "all").items())
    train(twin, 3)
    moved = copy.deepcopy(twin).double()
    assert topkast.dense_state_dict(moved, "all")["0.weight"].dtype == torch.float64
    assert moved(torch.randn(2, 32).double()).dtype == torch.float64


@pytest.mark.parametrize("build", [mlp, lambda: nn.Linear(32, 32)])
def test_a_copy_of_a_compiled_model_runs_its_own_weights_eagerly(build):
    model = small(build(), backend="aot_eager")
    x = torch.randn(4, 32)
    model(x)
    twin = copy.deepcopy(model)
    ran = [dict(site.ran) for site in sites(model).values()]
    with torch.no_grad():
        for site in sites(twin).values():
            site.original.zero_()
    twin(x).sum().backward()
    assert [dict(site.ran) for site in sites(model).values()] == ran
    assert all(("read", "reference", "eager") in site.ran for site in sites(twin).values())
    assert not torch.equal(twin(x), model(x))


def test_plain_state_dict_round_trip():
    model, other = small(mlp(), refresh_every=2), small(nn.Sequential(*mlp()), refresh_every=2)
    train(model, 5)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    x = torch.randn(3, 32)
    assert torch.equal(model(x), other(x))


def test_broken_state_dict_is_refused():
    model = small(mlp())
    state = model.state_dict()
    key = next(k for k in state if k.endswith("cols"))
    state[key] = torch.full_like(state[key], 255)  # bytes of columns that the weight does not have
    with pytest.raises(RuntimeError, match="index is broken"):
        model.load_state_dict(state)


def test_distributions():
    def wide():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 16))

    total = 64 * 128 + 128 * 16
    for distribution in ("uniform", "erk"):
        found = densities(small(wide(), distribution=distribution, balanced=False))
        kept = [found["0.weight"][i] * 64 * 128 + found["1.weight"][i] * 128 * 16 for i in (0, 1)]
        assert kept == pytest.approx([0.1 * total, 0.2 * total], abs=2)
    erk = densities(small(wide(), distribution="erk", balanced=False))
    assert erk["1.weight"][0] / erk["0.weight"][0] == pytest.approx(
        (128 + 16) / (128 * 16) / ((64 + 128) / (64 * 128)), rel=0.02
    )
    named = densities(small(wide(), distribution={"1.*": (0.5, 0.25)}, balanced=False))
    assert named["1.weight"] == pytest.approx((0.5, 0.75)) and named["0.weight"] == pytest.approx((0.1, 0.2), abs=1e-3)
    for distribution in ("uniform", "erk"):  # to whole weights a row
        rounded = densities(small(wide(), distribution=distribution))
        free = densities(small(wide(), distribution=distribution, balanced=False))
        for name, columns in (("0.weight", 64), ("1.weight", 128)):
            assert [share * columns for share in rounded[name]] == [round(share * columns) for share in free[name]]


def test_exploration_that_never_starts():
    model = small(mlp(), stop_exploring_after=0, refresh_every=2)
    for _ in range(2):
        assert all(torch.equal(*pair) for pair in topkast.masks(model).values())
        train(model, 3)


def test_decay_that_is_cut_is_reported():
    """The default is meant to be cut at large rates; a decay that was asked for is not cut in silence."""
    asked = {"asked": small(mlp(), exploration_decay=20.0), "default": small(mlp())}
    for lr, told in ((0.008, []), (0.2, ["asked"])):
        for model in asked.values():
            train(model, 1, lr=lr)
        warned = {name: topkast.report(model).warnings for name, model in asked.items()}
        assert [name for name, found in warned.items() if "exploration_decay" in str(found)] == told


@pytest.mark.parametrize("options", [{}, {"block": (4, 3)}, {"reservoir": "host"}, {"method": "static-magnitude"}])
def test_the_norm_at_the_start(options):
    """One number for each θ: the same sets, and W_A with the norm of a random set."""
    dense = mlp().state_dict()
    plain, scaled = (small(mlp(), 0.75, None, **options, initial=initial) for initial in (None, "random"))
    theta, forward = topkast.dense_state_dict(scaled, "all"), topkast.dense_state_dict(scaled)
    for name, (fwd, bwd) in topkast.masks(scaled).items():
        assert all(map(torch.equal, (fwd, bwd), topkast.masks(plain)[name]))
        factor = theta[name] / dense[name]
        torch.testing.assert_close(factor, factor.flatten()[0].expand_as(factor))
        # A block that is cut off by the edge holds fewer weights than its units say.
        rel = 0.05 if "block" in options else 1e-5
        site = sites(scaled)[name]  # its density is rounded to whole blocks a row
        wanted = (site.n_fwd / site.geometry.units) ** 0.5
        assert float(forward[name].norm()) == pytest.approx(wanted * float(dense[name].norm()), rel=rel)
    assert torch.equal(theta["0.bias"], dense["0.bias"])


def test_blocks_and_balance():
    model = small(nn.Linear(30, 22), 0.75, 0.5, block=(4, 3), balanced=True)
    fwd, bwd = topkast.masks(model)["weight"]
    for mask, share in ((fwd, 0.25), (bwd, 0.5)):
        padded = torch.nn.functional.pad(mask, (0, 0, 0, 2)).view(6, 4, 10, 3)
        blocks = padded.any(3).any(1)
        assert torch.equal(blocks.sum(1), torch.full((6,), round(share * 10)))
        assert torch.equal(padded.amin(3).amin(1)[:5], blocks[:5])


def test_example_inputs_that_do_not_fit_are_reported():
    model = small(mlp(), example_inputs=(torch.randn(2, 7),))
    assert set(sites(model)) == {"0.weight", "2.weight"}
    assert any("example_inputs" in warning for warning in topkast.report(model).warnings)


def test_tied_weights_are_one_site():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = small(Tied(), balanced=False)
    assert list(sites(model)) == ["a.weight"]
    model(torch.randn(2, 16)).sum().backward()
    assert torch.equal(model.a.weight, model.b.weight)
    assert sum(p.numel() for p in model.parameters()) == round(0.2 * 256) + 32


def test_a_module_with_two_names_is_one_site():
    model = nn.Sequential(layer := nn.Linear(32, 32), nn.ReLU(), layer)
    keys = list(model.state_dict())
    small(model)
    assert list(sites(model)) == ["0.weight"]
    model(torch.randn(2, 32)).sum().backward()
    assert list(topkast.dense_state_dict(model)) == keys
    plain = topkast.densify(model)
    assert plain[0] is plain[2] and list(plain.state_dict()) == keys


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_graph_module_and_exported_program(backend):
    x = torch.randn(4, 32)
    for make in (torch.fx.symbolic_trace, lambda m: torch.export.export(m, (x,)).module()):
        model = small(make(mlp()), backend=backend)
        assert set(sites(model)) == {"0.weight", "2.weight"}
        model(x).sum().backward()
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), model(x))


def test_functions_take_a_wrapper_of_torch_compile():
    model = topkast.sparsify(mlp(), 0.9, 0.8, min_size=20, refresh_every=1)
    wrapped: Any = torch.compile(model, backend="aot_eager")
    assert set(topkast.masks(wrapped)) == {"0.weight", "2.weight"}
    topkast.refresh(wrapped)
    assert isinstance(topkast.densify(wrapped), nn.Sequential)
    assert topkast.report(wrapped).to_dict()


def test_other_backends_are_refreshed_late_and_say_so():
    model = topkast.sparsify(mlp(), 0.9, 0.8, min_size=20, refresh_every=1)
    wrapped: Any = torch.compile(model, backend="aot_eager")
    opt = torch.optim.SGD(wrapped.parameters(), 0.1)
    for _ in range(3):
        wrapped(torch.randn(4, 32)).sum().backward()
        opt.step()
    assert all(site.late == 2 for site in sites(model).values())
    assert any("backend" in warning for warning in topkast.report(model).to_dict()["warnings"])


def test_backend_by_name():
    model = topkast.sparsify(nn.Linear(24, 24, bias=False), 0.9, 0.8, min_size=20, refresh_every=1)
    wrapped: Any = torch.compile(model, backend="topkast")
    opt = torch.optim.SGD(wrapped.parameters(), 0.1)
    for _ in range(3):
        wrapped(torch.randn(4, 24)).square().sum().backward()
        opt.step()
    site = sites(model)["weight"]
    assert len(site.churn) == 2 and site.late == 0
    assert set(site.ran) == {("forward", "dense", ""), ("weight gradient", "dense", "")}


def test_manual_loop():
    model = small(mlp(), refresh_every=2)
    for _ in range(5):
        model(torch.randn(4, 32)).square().sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.01 * p.grad)
                p.grad = None
        topkast.step(model, lr=0.01)
    assert all([at for at, *_ in site.churn] == [2, 4] for site in sites(model).values())
    with pytest.warns(UserWarning, match="without lr"):
        topkast.step(model)


class Scalar(nn.Module):
    """Nothing here can be sparse."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale


def broken(value):
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = value
    return model


@pytest.mark.parametrize(
    "options, names",
    [
        ({"fwd": 1.0}, ["fwd=1.0", "[0, 1)"]),
        ({"fwd": -0.1}, ["fwd=-0.1"]),
        ({"fwd": "0.9"}, ["fwd='0.9'"]),
        ({"fwd": 0.5, "bwd": 0.9}, ["bwd=0.9", "fwd=0.5"]),
        ({"block": (4,)}, ["block=(4,)"]),
        ({"block": (64, 64)}, ["block=(64, 64)", "0.weight"]),
        ({"balanced": 1}, ["balanced=1"]),
        ({"distribution": "even"}, ["distribution='even'", "'erk'"]),
        ({"distribution": "global"}, ["distribution='global'", "'uniform', 'erk'"]),
        ({"distribution": {}}, ["distribution={}", "at least one glob"]),
        ({"initial": "dense"}, ["initial='dense'", "'auto', None, 'random'"]),
        ({"distribution": {"nothing*": (0.5, 0.5)}}, ["nothing*", "0.weight"]),
        ({"distribution": {"0.*": 0.5}}, ["0.*", "(fwd, bwd)"]),
        ({"include": "nothing*"}, ["include", "nothing*"]),
        ({"exclude": ["nothing*"]}, ["exclude", "nothing*"]),
        ({"refresh_every": 0}, ["refresh_every=0"]),
        ({"stop_exploring_after": -1}, ["stop_exploring_after=-1"]),
        ({"explore": "best"}, ["explore='best'", "'random'"]),
        ({"exploration_l2": -1}, ["exploration_l2=-1"]),
        ({"exploration_decay": float("nan")}, ["exploration_decay=nan"]),
        ({"reservoir": "cloud"}, ["reservoir='cloud'", "'disk'"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"min_size": 0}, ["min_size=0"]),
        ({"backend": "fast"}, ["backend='fast'", "'inductor'"]),
        ({"fwdd": 0.9}, ["fwdd"]),
        ({"backend": "aot_eager", "mode": "max-autotune"}, ["mode", "aot_eager"]),
    ],
)
def test_bad_arguments_name_themselves_and_change_nothing(options, names):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(topkast.ConfigError) as caught:
        topkast.compile(model, **({"min_size": 20, "backend": "eager"} | options))
    assert all(name in str(caught.value) for name in names), str(caught.value)
    assert isinstance(caught.value, topkast.TopkastError)
    unchanged(model, before)


def unchanged(model, before):
    assert type(model[0]) is nn.Linear and not model._forward_pre_hooks and not hasattr(model, "_topkast")
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items() if not v.is_meta)


@pytest.mark.parametrize(
    "build, message",
    [
        (Scalar, "no weight can be sparse"),
        (lambda: small(mlp()), "already converted"),
        (lambda: torch.compile(mlp()), "already compiled"),
        (lambda: broken(float("nan")), "NaN"),
        (lambda: broken(float("inf")), "infinite"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "not initialised"),
        (lambda: "model", "must be a torch.nn.Module"),
    ],
)
def test_models_that_are_refused(build, message):
    with pytest.raises(topkast.ModelError, match=message):
        small(build())


def test_refused_models_are_as_they_were():
    model = broken(float("inf"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(topkast.ModelError):
        small(model)
    unchanged(model, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_refused():
    with pytest.raises(topkast.ModelError, match="scripted"):
        small(torch.jit.trace(mlp(), torch.randn(2, 32)))


def test_distributed_tensors_are_refused():
    import torch.distributed as dist
    from torch.distributed.tensor import DeviceMesh, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = mlp()
        mesh = DeviceMesh("cpu", [0])
        model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh))
        with pytest.raises(topkast.ModelError, match="DTensor"):
            small(model)
    finally:
        dist.destroy_process_group()


def test_functions_refuse_a_plain_model():
    for function in (topkast.report, topkast.masks, topkast.refresh, topkast.densify, topkast.dense_state_dict):
        with pytest.raises(topkast.ModelError, match="has not converted"):
            function(mlp())


def test_unsplit_gradient_hooks_see_compact_values():
    model = small(mlp(), balanced=False)
    seen = []
    sites(model)["0.weight"].original.register_hook(lambda grad: seen.append(grad.shape))
    model(torch.randn(4, 32)).sum().backward()
    assert seen == [(round(0.2 * 1024), 1)]  # blocks, values of a block


def test_backend_is_an_entry_point():
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="torch_dynamo_backends", name="topkast")
    assert callable(entry.load())
