"""The kernels and the training on a GPU: skipped without one. ``tools/gpu/gpu.sh`` runs them first."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

import topkast
from topkast.passes.aten.fuse.fuse_epilogue import FuseEpilogue
from topkast.runtime import layout
from topkast.runtime.kernels import sets as fastest
from topkast.runtime.kernels.candidates import KERNELS, candidates
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.reference import selection as choose
from topkast.runtime.reference.products import REFERENCE
from topkast.tests.support.pass_counts import pass_counts
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, adamw, plain
from topkast.tests.support.truth.product_layouts import check, sets, within

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BLOCKS = [(16, 16), (32, 32), (64, 64), (128, 128), (48, 16), (16, 80)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("reservoir", ["device", "host", "disk"])
def test_training_on_the_gpu_follows_the_cpu(backend, reservoir, background):
    """With copies on a stream of their own where the reservoir is not on the GPU, and with threads that choose."""
    dense = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 32)).double()
    batches = [torch.randn(8, 48).double() for _ in range(7)]
    found = {}
    for device in ("cpu", "cuda"):
        options = {"min_size": 20, "refresh_every": 2, "reservoir": reservoir, "refresh_in_background": background}
        model = topkast.compile(copy.deepcopy(dense), 0.9, 0.8, backend=backend, **options).to(device)
        opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for x in batches:
            model(x.to(device)).square().mean().backward()
            opt.step()
            opt.zero_grad()
        found[device] = topkast.dense_state_dict(model, "all"), topkast.masks(model)
    for name, theta in found["cpu"][0].items():
        torch.testing.assert_close(found["cuda"][0][name].cpu(), theta)
    for name, pair in found["cpu"][1].items():
        assert all(torch.equal(a, b.cpu()) for a, b in zip(pair, found["cuda"][1][name], strict=True))


def test_a_disk_reservoir_keeps_every_dense_weight_off_the_device():
    """Made sparse on the CPU and then moved; a refresh adds to the device only what belongs to B."""
    model = topkast.sparsify(nn.Linear(2048, 2048, bias=False), 0.9, 0.8, reservoir="disk").cuda()
    opt = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 2048, device="cuda")).sum().backward()
    opt.step()
    opt.zero_grad()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    topkast.refresh(model)
    assert torch.cuda.max_memory_allocated() == before


@pytest.mark.parametrize("reservoir", ["device", "host"])
def test_the_host_waits_for_nothing_in_a_refresh(reservoir):
    """With a reservoir in host memory once, at the end: host memory may be read after that."""
    model = topkast.sparsify(nn.Linear(256, 256), 0.9, 0.8, reservoir=reservoir).cuda()
    topkast.refresh(model)  # compiles the kernels
    try:
        torch.cuda.set_sync_debug_mode("error")
        topkast.refresh(model)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("block", [(1, 1), (32, 32)], ids=str)
def test_a_streamed_refresh_equals_the_one_in_host_memory(block):
    """Bit for bit, several layers after one another; kernels that wait for the copies find what was chosen."""
    dense = nn.Sequential(*[nn.Linear(512, 512, bias=False) for _ in range(5)])
    here = topkast.sparsify(dense, 0.9, 0.8, block=block, reservoir="host")
    there = copy.deepcopy(here).cuda()
    for seed in range(3):
        for model in (here, there):
            with torch.no_grad():
                for parameter in model.parameters():
                    drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                    parameter.mul_(1 + 0.5 * drawn.to(parameter.device))
            topkast.refresh(model)
        for (name, mine), theirs in zip(here.state_dict().items(), there.state_dict().values(), strict=True):
            assert mine.equal(theirs.cpu()), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_single_weights(dtype):
    """Hardly any of them, and many; empty and full rows, unused slots."""
    with torch.device("cuda"):
        for m, how, bias, share in [
            (1, "plain", True, 0.01),
            (130, "cut", False, 0.3),
            (1000, "transposed", True, 0.02),
        ]:
            geometry = Geometry((403, 301), (0, 1), 1, (1, 1))
            check(m, geometry, sets(geometry, share, 2 * share, 2, wide=how == "cut"), dtype, how, bias, "csr")


@pytest.mark.parametrize("block", [(16, 16), (1, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_activation_is_in_the_product(dtype, block, monkeypatch):
    """Through Inductor, whose GELU is several ops; the rule's measurement runs on the GPU's clock."""
    monkeypatch.setenv("TOPKAST_KERNEL", "triton" if block == (16, 16) else "csr")
    dense, x = nn.Sequential(nn.Linear(96, 128), nn.GELU()).cuda(), torch.randn(64, 96, device="cuda").to(dtype)
    found = {}
    for setting in ("fused", "apart"):
        if setting == "apart":
            monkeypatch.setattr(FuseEpilogue, "rewrite", lambda self, graph: None)
        torch._dynamo.reset()
        model = topkast.compile(copy.deepcopy(dense).to(dtype), 0.8, 0.6, block=block, min_size=20)
        with (
            torch.no_grad(),
            torch._inductor.config.patch(fx_graph_cache=False),
            torch._functorch.config.patch(enable_autograd_cache=False),
        ):
            found[setting] = model(x)
        assert pass_counts(model, "FuseEpilogue")[0] == ({"gelu": 1} if setting == "fused" else {})
    with torch.no_grad():
        exact = topkast.densify(model).double()(x.double())
    within(found["fused"], [found["apart"]], exact, f"{block} {dtype}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_products(block, dtype):
    """Against float64, with plain PyTorch's own error on this GPU as the budget; with masks and without."""
    with torch.device("cuda"):
        for m, how, bias in [(5, "plain", True), (130, "cut", False), (1000, "transposed", True)]:
            geometry = Geometry((5 * block[0] - 5, 6 * block[1] + 3), (0, 1), 1, block)
            check(m, geometry, sets(geometry, 0.3, 0.6, 2, wide=how == "cut"), dtype, how, bias, "triton")
        for m in (16, 1024):
            geometry = Geometry((4 * block[0], 6 * block[1]), (0, 1), 1, block)
            check(m, geometry, sets(geometry, 0.3, 0.6), dtype, "plain", True, "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (8, 8), (32, 32)], ids=str)
def test_transient_products(block, dtype):
    with torch.device("cuda"):
        geometry = Geometry((2100, 203), (0, 1), 1, block)
        check(70, geometry, sets(geometry, 0.1, 0.3, 2), dtype, "plain", True, "transient")


def test_tf32_is_used_where_torch_is_told_to():
    geometry = Geometry((256, 512), (0, 1), 1, (64, 64))
    found = {}
    with torch.device("cuda"):
        index = sets(geometry, 0.5, 0.5)
        values, x = torch.randn(index.cols.numel() * geometry.unit), torch.randn(256, 512)
        exact = REFERENCE.spmm(x.double(), values.double(), index, geometry, None)
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            ours = KERNELS["triton"].products.spmm(x, values, index, geometry, None)
            found[precision] = (ours - exact).abs().max().item()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found["high"] > 20 * found["highest"]


@pytest.mark.parametrize("n, rows", [(10, 1), (4099, 3), (30_000_001, 1)])
def test_selection_is_exact_and_waits_for_nothing(n, rows):
    score = torch.randn(rows, n, device="cuda").abs()
    score[:, ::3] = score[:, ::3].mul(8).round()  # ties
    score[:, ::7] = torch.nan
    known = choose.scores(score.view(-1, 1)).view(rows, n)
    counts = [0, 1, n // 5, n // 2, n]
    wanted = [choose.largest(known, count) for count in counts]
    fwd, bwd = wanted[2:4]
    plain_index = layout.build_index(fwd, bwd, rows * counts[3] + 5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [fastest.largest(score, count) for count in counts]
        index = fastest.build_index(fwd, bwd, rows * counts[3] + 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))
    assert all(torch.equal(a.int(), b.int()) for a, b in zip(index, plain_index, strict=True))


@pytest.mark.parametrize("kernel, block", [("triton", (64, 64)), ("csr", (1, 1)), ("transient", (1, 1))])
def test_products_are_captured_and_follow_a_refresh(kernel, block):
    """No host sync and fixed shapes: a CUDA graph holds all three, and is right after new sets were written in place.
    Twice the same inputs give the same bits."""
    run, geometry = KERNELS[kernel].products, Geometry((512, 640), (0, 1), 1, block)
    n_bwd = geometry.units // 2

    def drawn(seed):
        score = torch.rand(geometry.units, generator=torch.Generator().manual_seed(seed)).cuda()
        fwd, bwd = (choose.largest(score, n).view(geometry.grid) for n in (n_bwd // 2, n_bwd))
        return layout.build_index(fwd, bwd, n_bwd)

    index, other = drawn(0), drawn(1)
    values = torch.randn(n_bwd * geometry.unit, device="cuda", dtype=torch.bfloat16)
    x, dy = (torch.randn(256, size, device="cuda", dtype=torch.bfloat16) for size in (640, 512))

    def products(where):
        weight = values, where, geometry
        return run.spmm(x, *weight, None), run.spmm_t(dy, *weight), run.sddmm(dy, x, where, geometry)

    products(index)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        products(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = products(index)
    for new in (index, other, drawn(0)):
        new = Index(*(tensor.clone() for tensor in new))
        for mine, theirs in zip(index, new, strict=True):
            mine.copy_(theirs)
        graph.replay()
        assert all(a.equal(b) for a, b in zip(held, products(new), strict=True))


def on_gpu(name, shape, output):
    def batch(generator):
        return (torch.randn(shape, generator=generator).cuda(),), torch.randn(output, generator=generator).cuda()

    case = CASES[name]
    return dataclasses.replace(case, build=lambda: case.build().cuda(), batch=batch)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("block", [(1, 1), (16, 16)])
@pytest.mark.parametrize("case", [("mlp", (9, 20), (9, 10)), ("encoder", (2, 7, 12), (2, 7, 9))], ids=lambda c: c[0])
def test_training_equals_the_oracle(case, block, backend):
    """Step by step, on the GPU, through the kernels that fit."""
    sites = {(1, 1): CASES[case[0]].sites, (16, 16): ()}[block]  # some weights are smaller than the block
    moved = dataclasses.replace(on_gpu(*case), sites=sites)
    trio = Trio(moved, {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "block": block, "backend": backend}, adamw)
    assert trio.run(plain) == 5
    ran = {k for row in topkast.report(trio.ours.model).sites for found in row["fused"].values() for k in found}
    assert ran == {"transient" if block == (1, 1) else "triton"}


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("block", [(1, 1), (32, 32)])
def test_cuda_graphs(mode, block):
    """Inductor captures the graphs, skips none, and a refresh between replays changes what they compute."""
    dense = nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 64)).cuda()
    batches = [torch.randn(32, 96, device="cuda") for _ in range(9)]
    found = {}
    for each in ("default", mode):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = topkast.compile(copy.deepcopy(dense), 0.8, 0.5, block=block, min_size=20, refresh_every=4, mode=each)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for x in batches:
            torch.compiler.cudagraph_mark_step_begin()
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(len(site["churn"]) == 2 for site in topkast.report(model).sites)
        found[each] = topkast.dense_state_dict(model, "all"), topkast.masks(model)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
    manager = torch._inductor.cudagraph_trees.get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    assert manager is not None and any(manager.roots.values()), "nothing was captured"
    torch.testing.assert_close(found[mode][0], found["default"][0])
    for name, pair in found["default"][1].items():
        assert all(torch.equal(a, b) for a, b in zip(pair, found[mode][1][name], strict=True))


def test_what_fits_on_the_gpu():
    geometry = Geometry((256, 256), (0, 1), 1, (32, 32))
    for dtype, expected in itertools.product(DTYPES, [["triton", "transient", "reference"]]):
        assert candidates("spmm", torch.ones(4, 256, device="cuda", dtype=dtype), geometry) == expected


def test_a_captured_step_and_rigl_in_a_graph_are_refused():
    """What tests/runtime/test_devices.py shows with a stand-in."""
    model = topkast.sparsify(nn.Linear(64, 64), 0.8, 0.6, min_size=1).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
    x = torch.randn(8, 64, device="cuda")
    model(x).sum().backward()
    optimizer.step()
    with pytest.raises(topkast.GraphError, match="replay runs no hook"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    torch.cuda.synchronize()
    options = {"method": "rigl", "min_size": 1, "mode": "reduce-overhead"}
    grown = topkast.compile(nn.Linear(64, 64).cuda(), 0.8, **options)
    with pytest.raises(topkast.GraphError, match="'rigl' reads the gradient"):
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            grown(x).square().mean().backward()
