"""Each way of writing a layer is rewritten, in all three products, and what must be left alone is."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import topkast
from topkast.passes.aten import PassLog
from topkast.passes.aten.base import Pass, run
from topkast.runtime.state.model import sites
from topkast.tests.support.pass_counts import pass_counts


class Holder(nn.Module):
    """A module with one weight of a given shape and a function that uses it."""

    def __init__(self, shape, use):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)
        self.b = nn.Parameter(torch.randn(8))
        self.use = use

    def forward(self, x):
        return self.use(x, self.w, self.b)


def rows(*shape):
    return torch.randn(shape)


CASES = {
    "linear": (lambda: nn.Linear(12, 10), rows(6, 12)),
    "linear 3d": (lambda: nn.Linear(12, 10, bias=False), rows(2, 3, 12)),
    "conv1d of transformers": (lambda: Conv1D(10, 12), rows(2, 3, 12)),
    "x @ w.t()": (lambda: Holder((8, 12), lambda x, w, b: x @ w.t()), rows(5, 12)),
    "x @ w": (lambda: Holder((12, 8), lambda x, w, b: x @ w + b), rows(5, 12)),
    "w @ x": (lambda: Holder((8, 12), lambda x, w, b: w @ x), rows(12, 5)),
    "w.t() @ x": (lambda: Holder((12, 8), lambda x, w, b: w.t() @ x), rows(12, 5)),
    "addmm": (lambda: Holder((12, 8), lambda x, w, b: torch.addmm(b, x, w)), rows(5, 12)),
    "einsum heads": (lambda: Holder((12, 2, 4), lambda x, w, b: torch.einsum("bsd,dhk->bshk", x, w)), rows(2, 3, 12)),
    "einsum merge": (lambda: Holder((2, 4, 8), lambda x, w, b: torch.einsum("bshk,hkd->bsd", x, w)), rows(2, 3, 2, 4)),
    "experts [e, in, out]": (lambda: Holder((3, 12, 8), lambda x, w, b: torch.bmm(x, w)), rows(3, 5, 12)),
    "experts [e, out, in]": (lambda: Holder((3, 8, 12), lambda x, w, b: x @ w.mT), rows(3, 5, 12)),
    "baddbmm": (
        lambda: Holder((3, 12, 8), lambda x, w, b: torch.baddbmm(b.expand(3, 5, 8), x, w)),
        rows(3, 5, 12),
    ),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), rows(2, 6, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, stride=2, bias=False)), rows(2, 3, 9, 9)),
    "conv2d grouped": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=2)), rows(2, 3, 7, 7)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 1), nn.Conv3d(3, 4, 2, dilation=2)), rows(1, 2, 5, 6, 5)),
    "conv transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), rows(2, 4, 5, 5)),
}


def convert(model, x, **options):
    options = {"min_size": 20, "exploration_decay": 0.0, "seed": 0, "backend": "aot_eager"} | options
    return topkast.compile(model, 0.6, 0.3, example_inputs=(x,), **options)


def ran(model):
    found: Counter[Any] = Counter()
    for site in sites(model).values():
        for (product, _, _), count in site.ran.items():
            found[product] += count
    return found


@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
@pytest.mark.parametrize("name", CASES)
def test_every_way_of_writing_a_layer_is_fused(name, block):
    build, x = CASES[name]
    torch.manual_seed(0)
    eager = convert(build(), x, block=block, backend="eager")
    torch.manual_seed(0)
    fused = convert(build(), x, block=block)
    outs = []
    for model in (eager, fused):
        leaf = x.clone().requires_grad_()
        out = model(leaf)
        out.square().mean().backward()
        outs.append([out.detach(), leaf.grad, *[p.grad for p in model.parameters()]])
    for mine, reference in zip(outs[1], outs[0], strict=True):
        torch.testing.assert_close(mine, reference)
    count = len(sites(fused))
    assert count == 1
    assert ran(fused) == {"forward": count, "input gradient": count, "weight gradient": count}


def test_weight_used_twice_sums_sampled_gradients():
    def use(x, w, b):
        return (x @ w) @ w

    torch.manual_seed(0)
    model = convert(Holder((8, 8), use), x := rows(5, 8))
    model(x).sum().backward()
    assert ran(model)["weight gradient"] == 2 and ran(model)["read gradient"] == 0


def test_autocast_casts_values_not_the_dense_weight():
    torch.manual_seed(0)
    model = convert(nn.Linear(16, 16), x := rows(4, 16))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert ran(model) == {"forward": 1, "weight gradient": 1}
    assert pass_counts(model, "SinkCasts")[0]["weight cast"] == 1


@pytest.mark.parametrize(
    "use, why",
    [
        (lambda x, w, b: x[:, :6] @ w[:6], "cut into pieces"),
        (lambda x, w, b: x @ torch.cat([w, torch.ones(12, 2)], 1), "cut into pieces or joined: used by cat"),
        (lambda x, w, b: x @ w.view(4, 2, 3, 4).transpose(1, 2).reshape(8, 12).t(), "are mixed"),
        (lambda x, w, b: x[:, :8] @ w.view(4, 2, 3, 4).transpose(1, 2).reshape(8, 12), "are mixed"),
    ],
)
def test_near_misses_are_left_alone_and_explained(use, why):
    shape = (8, 12) if "mixed" in why else (12, 8)
    torch.manual_seed(0)
    model = convert(Holder(shape, use), x := rows(5, 12), include="w")
    reference = copy.deepcopy(model)
    out = model(x)
    torch.testing.assert_close(out, reference(x))
    out.sum().backward()
    reasons = [reason for site in sites(model).values() for (_, _, reason) in site.ran]
    assert any(why in reason for reason in reasons), reasons


def test_the_backward_keeps_no_dense_weight():
    torch.manual_seed(0)
    model = convert(Holder((8, 12), lambda x, w, b: x @ w.t() + w.sin().sum()), x := rows(5, 12), include="w")
    out = model(x)  # torch 2.11 frees what is saved together with the output
    saved = out.grad_fn.saved_tensors
    assert saved and all(tensor.numel() < 8 * 12 for tensor in saved if tensor.is_floating_point())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_region_is_fused_and_refreshed_outside(reentrant):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return checkpoint(lambda y: self.b(F.relu(self.a(y))), x, use_reentrant=reentrant)

    model = convert(Block(), x := rows(4, 8).requires_grad_(), refresh_every=1)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model(x).square().sum().backward()
        opt.step()
    for site in sites(model).values():
        assert [at for at, *_ in site.churn] == [1, 2]
    assert ran(model)["read"] == 0


def test_two_forwards_before_both_backwards():
    model = convert(nn.Linear(12, 10), x := rows(6, 12))
    first, second = model(x), model(2 * x)
    (first.sum() + second.sum()).backward()
    assert ran(model)["forward"] == 2


def test_dumps_show_the_graph_around_every_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPKAST_DEBUG", str(tmp_path))
    model = convert(nn.Linear(12, 10), x := rows(6, 12))
    model(x)
    before = next(tmp_path.glob("*FuseMatmul-before.py")).read_text()
    after = next(tmp_path.glob("*FuseMatmul-after.py")).read_text()
    assert "topkast.weight" in before and "topkast.spmm" not in before
    assert "topkast.spmm" in after and "rewritten" in after


def test_inference_pipeline_runs_on_any_graph_module():
    model = topkast.sparsify(nn.Linear(12, 10), 0.6, 0.3, min_size=20)
    x = rows(6, 12)
    program = torch.export.export(model, (x,)).run_decompositions()
    module = topkast.passes.aten.inference(program.graph_module)
    assert any(node.target is torch.ops.topkast.spmm.default for node in module.graph.nodes)


def test_base_pass_must_be_implemented():
    with pytest.raises(AssertionError, match="rewrites"):
        run([Pass], torch.fx.symbolic_trace(nn.Linear(2, 2)).graph, PassLog())
