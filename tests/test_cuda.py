"""The same training on a GPU: skipped without one."""

import copy

import pytest
import torch
from torch import nn

import topkast

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("reservoir", ["device", "host"])
def test_training_on_the_gpu_follows_the_cpu(backend, reservoir):
    dense = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 32)).double()
    batches = [torch.randn(8, 48).double() for _ in range(5)]
    found = {}
    for device in ("cpu", "cuda"):
        options = {"min_size": 20, "refresh_every": 2, "reservoir": reservoir}
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


def test_a_host_reservoir_keeps_every_dense_weight_off_the_device():
    """Made sparse on the CPU and then moved; a refresh adds to the device only what belongs to B."""
    model = topkast.sparsify(nn.Linear(2048, 2048, bias=False), 0.9, 0.8, reservoir="host").cuda()
    opt = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 2048, device="cuda")).sum().backward()
    opt.step()
    opt.zero_grad()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    topkast.refresh(model)
    assert torch.cuda.max_memory_allocated() - before < 0.5 * 4 * 2048**2
