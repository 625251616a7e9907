"""Models built on the meta device: initialised and made sparse module by module."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import topkast
from topkast.compiler.convert import sparsify as sparsify_module
from topkast.runtime.state import site_module
from topkast.runtime.state.find_sites import alive
from topkast.runtime.state.model import sites
from topkast.tests.support.truth.builders import CASES, Encoder, Tied, gpt2

TOKENS = torch.arange(24).view(2, 12) % 41


def llama():
    config = LlamaConfig(
        vocab_size=41, hidden_size=24, intermediate_size=52, num_hidden_layers=2, num_attention_heads=2,
        use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def shared():
    """One module in two places, which initialising visits twice."""
    layer = nn.Linear(24, 24)
    return nn.Sequential(layer, nn.Sequential(nn.GELU(), layer), nn.Linear(24, 7))


class Norms(nn.Module):
    """Float and integer buffers, and a parameter of the root with its own reset."""

    mask: torch.Tensor

    def __init__(self):
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(20, 48), nn.BatchNorm1d(48), nn.Linear(48, 10, bias=False)
        self.scale = nn.Parameter(torch.empty(10))
        self.register_buffer("mask", torch.empty(10), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.uniform_(self.scale)
        self.mask = torch.zeros_like(self.mask).fill_(-torch.inf)

    def forward(self, x):
        return self.out(F.gelu(self.norm(self.into(x)))) * self.scale


def on_meta(build):
    with torch.device("meta"):
        return build()


def by_rule(model):
    """What the documentation promises, on a dense model: the order of ``nn.Module.apply``."""
    if hasattr(model, "_init_weights"):
        return model.apply(model._init_weights)
    for module in _postorder(model):
        held = [*module._parameters.values(), *module._buffers.values()]
        for name in ("reset_parameters", "_reset_parameters"):
            if any(t is not None for t in held) and hasattr(module, name):
                getattr(module, name)()
                break
    return model


def _postorder(module):
    for child in module.children():
        yield from _postorder(child)
    yield module


def dense(build, fill=by_rule):
    """The same model, made and initialised as a whole."""
    model, ties = on_meta(build), on_meta(build)
    names: dict[int, list[str]] = {}
    for name, p in ties.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    model.to_empty(device="cpu")
    for first, *rest in names.values():  # to_empty has cut the ties
        for name in rest:
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, model.get_parameter(first))
    torch.manual_seed(3)
    return fill(model)


def assert_equal(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs) and len(mine)
    for key, value in mine.items():
        assert value.device.type == "cpu" and torch.equal(value, theirs[key]), key
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))
    assert [n for n, _ in one.named_parameters()] == [n for n, _ in other.named_parameters()]


MODELS = {
    "mlp": (CASES["mlp"].build, torch.randn(3, 20)),
    "cnn": (CASES["cnn"].build, torch.randn(3, 3, 16, 16)),
    "norms": (Norms, torch.randn(3, 20)),
    "encoder": (Encoder, torch.randn(2, 7, 12)),
    "attention": (CASES["attention"].build, torch.randn(2, 7, 24)),
    "lstm": (CASES["lstm"].build, torch.randn(3, 5, 11)),
    "shared": (shared, torch.randn(9, 24)),
    "tied": (Tied, torch.randn(9, 24)),
    "twice": (CASES["twice"].build, torch.randn(9, 13)),
    "gpt2": (gpt2, TOKENS),
    "llama": (llama, TOKENS),
}


@pytest.mark.long
@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_dense_model_made_sparse(name, traced):
    build, x = MODELS[name]
    options = dict(min_size=20, seed=5, example_inputs=(x,) if traced else None)
    whole = topkast.sparsify(dense(build), 0.9, 0.8, **options)
    model = on_meta(build)
    torch.manual_seed(3)
    model = topkast.sparsify(model, 0.9, 0.8, **options)
    assert_equal(model, whole)
    report, expected = topkast.report(model), topkast.report(whole)
    assert (report.how, report.dense) == (expected.how, expected.dense) and report.warnings == expected.warnings
    one, other = model(x), whole(x)
    assert torch.equal(*(getattr(out, "logits", out) for out in (one, other)))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_transformers_own_initialisation(name):
    """The numbers are those of transformers' init_weights()."""
    build, _ = MODELS[name]
    whole = topkast.sparsify(dense(build, lambda model: model.init_weights() or model), min_size=20)
    model = on_meta(build)
    torch.manual_seed(3)
    assert_equal(topkast.sparsify(model, min_size=20), whole)


@pytest.mark.long
@pytest.mark.parametrize("reservoir", ["device", "host", "disk"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_trains_as_the_dense_model_does(backend, reservoir):
    options = dict(min_size=20, seed=5, refresh_every=2, backend=backend, reservoir=reservoir)
    losses: list[list[float]] = []
    for build in (lambda: dense(gpt2), lambda: on_meta(gpt2)):
        model = build()
        torch.manual_seed(3)
        model = topkast.compile(model, 0.9, 0.8, example_inputs={"input_ids": TOKENS}, **options)
        assert model.lm_head.weight is model.transformer.wte.weight
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        model.train()
        losses.append([])
        for _ in range(3):
            loss = F.cross_entropy(model(TOKENS).logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        assert all(len(site.churn) == 1 for site in sites(model).values())
    assert losses[0] == losses[1] and losses[0][2] < losses[0][0]


def test_one_module_is_dense_at_a_time(monkeypatch):
    """When a site is made, the weights before it are compact, and those after it have no memory."""
    seen: list[tuple[str, int]] = []

    class SiteModule(site_module.SiteModule):
        def __init__(self, parameter, name, *rest):
            compact = {id(site.original) for site in alive()}
            held = sum(p.numel() for p in model.parameters() if not p.is_meta and p.ndim > 1 and id(p) not in compact)
            seen.append((name, held))
            super().__init__(parameter, name, *rest)

    monkeypatch.setattr(sparsify_module, "SiteModule", SiteModule)
    model = on_meta(lambda: nn.Sequential(*[nn.Linear(32, 32) for _ in range(6)]))
    topkast.sparsify(model, min_size=1)
    assert seen == [(f"{i}.weight", 1024) for i in range(6)]
    # GPT-2's attention and MLP write into their last projection: it waits for them, and no other weight does.
    seen.clear()
    model = on_meta(gpt2)
    topkast.sparsify(model, min_size=1, exclude=["*wte*", "*wpe*"])
    embeddings = 24 * (41 + 12)
    assert max(held for _, held in seen) <= embeddings + 24 * 96 * 1 and len(seen) == 8


def test_ties_of_sparse_weights_stay():
    model = topkast.sparsify(on_meta(Tied), min_size=1, example_inputs=torch.randn(9, 24))
    first, second = (layer.sparse_state.weight for layer in (model.first, model.second))
    assert first is second and first.original.device.type == "cpu"
    assert set(sites(model)) == {"first.weight", "between.weight"}


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.w = nn.Parameter(torch.empty(8, 8))
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))

    def forward(self, x):
        return self.inner(x) @ self.w


def fill(module):
    for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        tensor.fill_(1) if not tensor.is_floating_point() else tensor.normal_()


def test_custom_init():
    whole = topkast.sparsify(dense(Bare, lambda model: model.apply(torch.no_grad()(fill))), min_size=1)
    model = on_meta(Bare)
    torch.manual_seed(3)
    topkast.sparsify(model, min_size=1, init=fill, device="cpu")
    assert_equal(model, whole)
    assert model.steps.tolist() == [1, 1, 1]


def test_attributes_survive():
    model = on_meta(CASES["mlp"].build)
    model[0].bias.no_decay = True
    model[2].weight.requires_grad_(False)
    topkast.sparsify(model, min_size=1)
    assert model[0].bias.no_decay and not model[2].weight.requires_grad


def test_part_of_a_model_on_meta():
    """What has values keeps them, unless initialising would overwrite them."""
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20, device="meta"))
    before = model[0].weight.detach().clone()
    topkast.sparsify(model, min_size=1)
    assert torch.equal(sites(model)["0.weight"].theta(), before) and len(sites(model)) == 2
    mixed = nn.Linear(20, 20, device="meta")
    mixed.bias = nn.Parameter(torch.ones(20))
    with pytest.raises(topkast.ModelError, match=r"bias: not on the meta device"):
        topkast.sparsify(mixed, min_size=1)
    assert mixed.bias.tolist() == [1.0] * 20 and mixed.weight.is_meta


class Replaces(nn.Linear):
    """Assigns its tensors instead of writing to them, and looks at values."""

    def reset_parameters(self):
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.bias.data = torch.zeros(8)
        assert self.weight.abs().max().item() > 0


def test_initialisation_that_a_rehearsal_cannot_run():
    assert len(sites(topkast.sparsify(nn.Sequential(Replaces(8, 8)).to("meta"), min_size=1))) == 1


def refused(model, match, error=topkast.ModelError, **options):
    before = {name: type(module) for name, module in model.named_modules()}
    generator = torch.get_rng_state()
    with pytest.raises(error, match=match):
        topkast.sparsify(model, **{"min_size": 1, **options})
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert torch.equal(generator, torch.get_rng_state()) and not hasattr(model, "_topkast")
    return model


def test_what_nothing_initialises_is_named_before_anything_changes():
    model = refused(on_meta(Bare), r"initialises w \(Bare\), steps \(Bare\).*init=")
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    topkast.sparsify(model, min_size=1, init=fill)  # and so another try is possible


def test_what_is_refused():
    mlp = CASES["mlp"].build
    refused(on_meta(mlp), "device='meta'", topkast.ConfigError, device="meta")
    refused(on_meta(mlp), "device='nowhere'", topkast.ConfigError, device="nowhere")
    refused(on_meta(mlp), "init=3", topkast.ConfigError, init=3)
    refused(mlp(), "init: only for a model on the meta device", topkast.ConfigError, init=fill)
    refused(mlp(), "device: only for a model on the meta device", topkast.ConfigError, device="cpu")
    loose = on_meta(mlp)
    loose.scale = torch.empty(3, device="meta")
    refused(loose, "scale: a tensor on the meta device that is no buffer")
    views = on_meta(mlp)
    views[0].other = nn.Parameter(views[0].weight.detach().t())
    refused(views, "over the memory of another")
    with torch.device("meta"), pytest.raises(topkast.ConfigError, match=r"torch.device\('meta'\)"):
        topkast.sparsify(mlp())


def half(module):
    for p in module.parameters(recurse=False):
        p[: len(p) // 2].normal_()


def infinite(module):
    for p in module.parameters(recurse=False):
        p.fill_(torch.inf)


def late(module):
    """Fails only on values, in the second layer."""
    for p in module.parameters(recurse=False):
        p.normal_()
        if not p.is_meta and len(p) == 37:
            raise RuntimeError("disk on fire")


def shy(module):
    """Touches another module only when there are values."""
    fill(module)
    own: Any = shy
    if isinstance(module, nn.Linear) and not module.bias.is_meta:
        if module.in_features == 20:
            own.first = module
        else:
            own.first.weight.mul_(2)


@pytest.mark.parametrize(
    "init, match",
    [(half, "NaN"), (infinite, "infinite"), (late, "2 .*disk on fire"), (shy, "sparse by now")],
)
def test_a_failure_in_the_middle_leaves_the_model_as_it_was(init, match):
    model = on_meta(CASES["mlp"].build)
    before = dict(model.named_parameters())
    with pytest.raises(topkast.ModelError, match=match) as caught:
        topkast.sparsify(model, min_size=1, init=init)
    assert "on the meta device again" in str(caught.value)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter and parameter.is_meta for name, parameter in before.items())
    topkast.sparsify(model, min_size=1)(torch.randn(2, 20))


def test_containers_with_a_reset_are_named():
    class Net(nn.Sequential):
        def reset_parameters(self):
            raise AssertionError("must not run")

    model = topkast.sparsify(on_meta(lambda: Net(nn.Linear(8, 8))), min_size=1)
    assert any("holds no tensor itself" in text for text in topkast.report(model).warnings)


def test_a_meta_model_is_not_changed_by_tracing():
    model = on_meta(gpt2)
    parameters = dict(model.named_parameters())
    twin = copy.deepcopy(model.config.to_dict())
    with pytest.raises(topkast.ConfigError):
        topkast.sparsify(model, include="nothing", example_inputs={"input_ids": TOKENS})
    assert all(model.get_parameter(name) is p for name, p in parameters.items())
    assert model.config.to_dict() == twin
