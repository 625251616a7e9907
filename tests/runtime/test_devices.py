"""Places where a model would train wrongly in silence raise a named error, in the code that meets them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topkast
from topkast.runtime import devices
from topkast.runtime.state.model import sites


def linear(**options: object) -> nn.Module:
    return topkast.sparsify(nn.Linear(16, 16), 0.8, min_size=1, **options)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a CUDA graph were captured."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_a_step_inside_a_graph(captured: None) -> None:
    """Refused before anything changes; a model without sparse weights may be captured whole."""
    model = linear()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 16)).sum().backward()
    before = [one.clone() for one in model.parameters()]
    with pytest.raises(topkast.GraphError, match="captured in a CUDA graph: a replay runs no hook"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    dense = nn.Linear(4, 4)
    dense(torch.ones(1, 4)).sum().backward()
    torch.optim.SGD(dense.parameters()).step()


def test_a_method_that_reads_gradients_inside_a_graph(captured: None) -> None:
    model = linear(method="rigl", refresh_every=1)
    with pytest.raises(topkast.GraphError, match="weight: method='rigl' reads the gradient in every backward"):
        model(torch.ones(2, 16)).sum().backward()
    linear(method="set", refresh_every=1)(torch.ones(2, 16)).sum().backward()


@pytest.mark.parametrize("graphs, partition, kinds, refused", [
    (True, False, ("cpu", "cuda"), True), (True, True, ("cpu", "cuda"), False), (True, False, ("cuda",), False),
    (False, False, ("cpu", "cuda"), False), (True, False, ("cpu",), False),
])  # fmt: skip
def test_graphs_that_would_be_dropped(graphs: bool, partition: bool, kinds: tuple[str, ...], refused: bool) -> None:
    if refused:
        with pytest.raises(topkast.GraphError, match="graph_partition is off"):
            devices.check_graph_inputs(graphs, partition, map(torch.device, kinds))
    else:
        devices.check_graph_inputs(graphs, partition, map(torch.device, kinds))


def test_the_backend_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("topkast.compiler.backend.check_graph_inputs", lambda *given: asked.append(given[:2]))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, *_, **__: graph.forward)
    model = topkast.compile(nn.Linear(16, 16), 0.8, min_size=1, mode="reduce-overhead")
    with torch._inductor.config.patch(graph_partition=False):
        model(torch.ones(2, 16))
    assert asked == [(True, False)]


@pytest.mark.parametrize("kind", devices.UNSUPPORTED)
def test_devices_without_the_dtypes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a weight is converted, and before a site moves. The device is played by the meta device."""
    with pytest.raises(topkast.DeviceError, match=f"weight: on {kind}, must be on a CPU or a CUDA device"):
        devices.check_device("weight", torch.device(kind))
    monkeypatch.setattr(devices, "UNSUPPORTED", ("meta",))
    dense = nn.Linear(16, 16, device="meta")
    with pytest.raises(topkast.DeviceError):
        topkast.sparsify(dense, 0.8, 0.8, min_size=1)
    assert type(dense) is nn.Linear and isinstance(dense.weight, nn.Parameter)
    model = linear()
    (site,) = sites(model).values()
    with pytest.raises(topkast.DeviceError, match="weight: on meta"):
        site.to("meta")
    assert not any(tensor.is_meta for tensor in (*site.buffers(), *model.parameters()))


@pytest.mark.parametrize("reservoir", ["device", "host"])
def test_addresses_stay_across_refreshes(reservoir: str) -> None:
    """A CUDA graph that was captured once reads new sets at the old addresses."""
    model = topkast.sparsify(nn.Linear(32, 32), 0.8, 0.6, min_size=1, reservoir=reservoir)
    (site,) = sites(model).values()

    def addresses() -> list[int]:
        values, index = site.stored()
        return [tensor.data_ptr() for tensor in (values, *index, *model.parameters())]

    before, sets = addresses(), topkast.masks(model)["weight"]
    with torch.no_grad():
        site.original.mul_(torch.rand_like(site.original))
    topkast.refresh(model)
    assert not torch.equal(sets[1], topkast.masks(model)["weight"][1])
    assert addresses() == before
