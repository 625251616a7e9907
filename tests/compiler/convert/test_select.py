"""What is made sparse and what is not, and that reading a model leaves it as it was."""

import copy
import operator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topkast.compiler.convert.select import Selection, select
from topkast.runtime.errors import ConfigError


def choose(model, example_inputs=None, **changes) -> Selection:
    config = {"include": None, "exclude": None, "min_size": 16, "distribution": "uniform", **changes}
    before = copy.deepcopy(model.state_dict())
    mode, rng = [m.training for m in model.modules()], torch.get_rng_state()
    selection = select(model, SimpleNamespace(**config), example_inputs)
    assert mode == [m.training for m in model.modules()] and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(type(b) is torch.Tensor for b in model.buffers()) and all(p.grad is None for p in model.parameters())
    names = [name for name, _ in model.named_parameters()]
    assert sorted(names) == sorted([*selection.sparse, *selection.dense])
    return selection


class Functional(nn.Module):
    def __init__(self, function, **shapes):
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return self.function(self, x)


def checkpointed(s, x):
    return torch.utils.checkpoint.checkpoint(lambda y: y @ s.w, x, use_reentrant=False)


X = torch.randn(2, 5, 8)
LAYOUTS = [
    (lambda s, x: x @ s.w.t(), (6, 8), (0, 1), 1, 10),
    (lambda s, x: x @ s.w, (8, 6), (1, 0), 1, 10),
    (lambda s, x: x @ s.w.T.contiguous(), (6, 8), (0, 1), 1, 10),
    (lambda s, x: torch.einsum("bsd,dhk->bshk", x, s.w), (8, 2, 3), (1, 2, 0), 2, 10),
    (lambda s, x: torch.einsum("bshk,hkd->bsd", x.view(2, 5, 2, 4), s.w), (2, 4, 6), (2, 0, 1), 1, 10),
    (lambda s, x: torch.bmm(x, s.w), (2, 8, 6), (0, 2, 1), 2, 5),
    (lambda s, x: operator.matmul(x, s.w), (2, 8, 6), (0, 2, 1), 2, 5),
    (lambda s, x: x @ s.w.transpose(1, 2), (2, 6, 8), (0, 1, 2), 2, 5),
    (lambda s, x: torch.stack([x[i] @ s.w[i] for i in range(2)]), (2, 8, 6), (0, 2, 1), 2, 5),
    (lambda s, x: sum(F.linear(x, s.w.chunk(3)[i]) for i in range(3)), (24, 8), (0, 1), 1, 10),
    (lambda s, x: x @ s.w.view(4, 2, 6).flatten(0, 1), (8, 6), (1, 0), 1, 10),
    (lambda s, x: torch.tensordot(x, s.w, dims=1), (8, 6), (1, 0), 1, 10),
    (lambda s, x: F.linear(F.linear(x, s.w), s.w), (8, 8), (0, 1), 1, 20),
    (checkpointed, (8, 6), (1, 0), 1, 10),
]


@pytest.mark.parametrize(("function", "shape", "perm", "lead", "positions"), LAYOUTS)
def test_a_weight_is_seen_as_outputs_by_contracted(function, shape, perm, lead, positions):
    model = Functional(function, w=shape)
    exported, symbolic = choose(model, X).sparse["w"], choose(model).sparse["w"]
    assert (exported.perm, exported.lead, exported.positions) == (perm, lead, positions)
    assert (symbolic.perm, symbolic.lead) == (perm, lead)


def test_other_uses():
    model = Functional(lambda s, x: (x + s.p) @ s.w + s.w.sum(), w=(8, 8), p=(5, 8), unused=(8, 8))
    selection = choose(model, X)
    assert selection.sparse["w"].ops == ["matmul", "sum"]
    assert selection.dense["p"] == "not consumed by a matrix product or convolution: used by add"
    assert selection.dense["unused"] == "unused in the trace"
    model.w.requires_grad_(False)
    assert choose(model, X).dense["w"].startswith("frozen")


PLACES = torch.arange(35).view(5, 7) % 9


@pytest.mark.parametrize("dynamo", [False, True])
def test_what_is_looked_up(dynamo):
    """Rows of a table, as relative positions are, are an embedding's; matrices out of a stack are weights."""

    def looked_up(s, x):
        if dynamo and x.sum() > 1e9:  # a branch that only Dynamo copes with
            x = x * 2
        chosen = torch.bmm(x, s.stack[torch.tensor([2, 1])])
        return torch.einsum("bsd,skd->bsk", x, s.table[PLACES]).sum() + chosen.sum()

    selection = choose(Functional(looked_up, table=(9, 8), stack=(4, 8, 6)), X)
    assert selection.how.startswith("Dynamo" if dynamo else "torch.export")
    assert selection.dense["table"].startswith("not consumed by a matrix product or convolution: used by ")
    assert selection.sparse["stack"].ops == ["bmm"]
    if not dynamo:
        assert selection.sparse["stack"].perm == (0, 2, 1)


class Held:
    """A class that torch.export does not know, as the cache of a decoder."""

    def __init__(self, tensor):
        self.layers = [{"keys": tensor}]


def test_an_output_of_an_unknown_class_is_exported():
    def forward(s, x):
        return {"held": Held(x @ s.inner), "out": x @ s.outer}

    selection = choose(Functional(forward, inner=(8, 6), outer=(8, 6)), X)
    assert selection.how.startswith("torch.export")
    assert list(selection.sparse) == ["inner", "outer"], "a weight that only the unknown class needs is seen too"


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3),
        nn.ConvTranspose2d(16, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


IMAGES = torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("inputs", [None, IMAGES])
@pytest.mark.parametrize("kind", ["module", "fx", "exported"])
def test_cnn(inputs, kind):
    model = cnn()
    if kind == "fx":
        model = torch.fx.symbolic_trace(model)
    elif kind == "exported":
        model = torch.export.export(model, (IMAGES,)).module()
    selection = choose(model, inputs)
    assert list(selection.sparse) == ["3.weight", "4.weight", "7.weight"]
    assert selection.sparse["4.weight"].perm == (1, 0, 2, 3)
    assert selection.dense["2.weight"] == "a depthwise convolution"
    assert selection.dense["0.weight"].startswith("the first convolution")
    if inputs is not None:
        assert [use.positions for use in selection.sparse.values()] == [200, 200, 2]
    for change in ({"distribution": "erk"}, {"include": ("0.weight",)}):
        assert "0.weight" in choose(model, inputs, **change).sparse


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(8, 16, batch_first=True), nn.GRU(16, 16)
        self.attention = nn.MultiheadAttention(16, 2)

    def forward(self, x, branch=False):
        y = self.gru(self.lstm(x)[0])[0]
        if branch and y.sum() > 0:
            y = y * 2
        return self.attention(y, y, y)[0]


@pytest.mark.parametrize(
    ("inputs", "how"),
    [((X,), "torch.export"), ((X, True), "Dynamo"), (None, "fx"), (({},), "structure")],
)
def test_rnn_and_attention_however_they_are_read(inputs, how):
    selection = choose(Recurrent(), inputs)
    assert selection.how.startswith(how)
    assert len(selection.sparse) == 6 and all(len(name.split("bias")) == 2 for name in selection.dense)


def test_transformer_layer_without_a_trace():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    expected = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert list(choose(layer).sparse) == expected
    assert list(choose(layer.eval(), torch.randn(2, 5, 16)).sparse) == expected


def test_globs_and_sizes():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 2))
    assert "fewer than min_size=16" in choose(model).dense["2.weight"]
    assert list(choose(model, include=("2.weight",)).sparse) == ["2.weight"]
    assert choose(model, exclude=("1.*",)).dense["1.weight"] == "excluded by '1.*'"
    with pytest.raises(ConfigError, match=r"exclude: '0.wieght'.*0\.weight"):
        choose(model, exclude=("0.wieght",))
    with pytest.raises(ConfigError, match="example_inputs"):
        choose(model, 3)


def test_a_weight_of_exactly_min_size_is_sparse():
    assert list(choose(nn.Sequential(nn.Linear(8, 2)), min_size=16).sparse) == ["0.weight"]
    assert list(choose(nn.Sequential(nn.Linear(8, 2)), min_size=17).sparse) == []


@pytest.mark.parametrize("inputs", [None, IMAGES])
def test_only_one_convolution_of_a_chain_is_the_first(inputs):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert list(choose(model, inputs).sparse) == ["2.weight", "4.weight"]


def test_ties():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    model.forward = lambda x: model["b"](model["a"](x))
    assert choose(model).sparse["a.weight"].owners == [("a", "weight"), ("b", "weight")]


def test_transformers_models():
    t = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}
    gpt2 = choose(t.GPT2LMHeadModel(t.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=16)))
    assert gpt2.how == "torch.export with the model's dummy_inputs"
    assert len(gpt2.sparse) == 4 and all(use.perm == (1, 0) for use in gpt2.sparse.values())
    assert gpt2.dense["transformer.wte.weight"].startswith("tied to an embedding")
    assert len(choose(t.BertForMaskedLM(t.BertConfig(vocab_size=50, **small))).sparse) == 7
    t5 = t.T5Config(num_layers=1, d_model=32, d_kv=16, d_ff=64, num_heads=2, vocab_size=50)
    assert len(choose(t.T5ForConditionalGeneration(t5)).sparse) == 16
    vit = choose(t.ViTForImageClassification(t.ViTConfig(image_size=32, patch_size=8, **small)))
    assert len(vit.sparse) == 7 and "classifier.weight" in vit.sparse
