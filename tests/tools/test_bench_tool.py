"""topkast.tools.bench: the arithmetic of its pairs, the peers it compares with, and a tiny run of each benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from topkast.runtime.kernels.candidates import KERNELS
from topkast.runtime.layout import index_masks
from topkast.runtime.reference.products import weight_grad
from topkast.tools.bench import __main__ as bench
from topkast.tools.bench import memory as _bench_memory
from topkast.tools.bench.layer import PRODUCTS, random_layer
from topkast.tools.bench.peers import masked_dense, masks, mkl_csr, sparselab_step
from topkast.tools.common.pairs import bound, geomean, geomean_spread, measure, spread
from topkast.tools.common.rotation import measure_rounds, ratios


class FakeTime:
    """A clock that moves only when somebody works."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: Callable[[int], float]) -> Callable[[], None]:
        def part() -> None:
            self.now += seconds(self.order.count(name))
            self.order += name

        return part


def run(tmp_path: Path, *words: str) -> dict[str, Any]:
    """Run a benchmark as the command line does; what its file holds."""
    path = tmp_path / "found.json"
    assert bench.main([words[0], "--quick", "--out", str(path), *words[1:]]) == 0
    found = json.loads(path.read_text())
    assert {"cpu", "torch", "topkast", "instruction set", "date"} <= set(found["machine"])
    assert found["arguments"]["quick"] is True
    return found


def test_pairs_alternate_and_leave_the_warm_up_out() -> None:
    clock = FakeTime()
    dense = [clock.work("d", lambda i: 100.0 if i == 0 else 2.0)]
    sparse = [clock.work("f", lambda i: 0.5), clock.work("b", lambda i: 50.0 if i == 0 else 1.0)]
    pairs = measure(dense, sparse, repeats=3, warmup=1, clock=clock)
    assert clock.order == "dfb" * 4
    assert pairs.dense == [[2.0]] * 3 and pairs.sparse == [[0.5, 1.0]] * 3
    assert pairs.ratio() == {"low": 0.75, "median": 0.75, "high": 0.75}
    assert pairs.seconds() == {"dense": 2.0, "sparse": 1.5}


def test_ratio_is_taken_within_each_pair() -> None:
    # The machine slows down by the pair, both halves alike: seconds wander, the ratio does not.
    clock = FakeTime()
    sides = [clock.work("d", lambda i: 2.0**i)], [clock.work("s", lambda i: 0.25 * 2.0**i)]
    assert set(measure(*sides, repeats=7, clock=clock).ratio().values()) == {0.25}


def test_quartiles_of_ratios_by_part() -> None:
    clock = FakeTime()
    dense = [clock.work("d", lambda i: 1.0), clock.work("e", lambda i: 3.0)]
    sparse = [clock.work("s", lambda i: float(i)), clock.work("t", lambda i: 3.0)]
    pairs = measure(dense, sparse, repeats=5, warmup=0, clock=clock)
    assert pairs.ratio(0) == {"low": 1.0, "median": 2.0, "high": 3.0}
    assert pairs.ratio(1) == {"low": 1.0, "median": 1.0, "high": 1.0}
    assert pairs.ratio() == {"low": 1.0, "median": 1.25, "high": 1.5}


def test_after_is_called_outside_what_is_timed() -> None:
    clock = FakeTime()
    sides = [clock.work("d", lambda i: 1.0)], [clock.work("s", lambda i: 1.0)]
    pairs = measure(*sides, repeats=2, warmup=1, clock=clock, after=clock.work("a", lambda i: 9.0))
    assert clock.order == "dsa" * 3 and pairs.seconds() == {"dense": 1.0, "sparse": 1.0}


def test_bound_and_geometric_means() -> None:
    assert bound(0.9, 0.8) == pytest.approx(0.4 / 3) and bound(0, 0) == 1
    assert geomean([0.5, 2.0, 1.0]) == pytest.approx(1.0)
    spreads = [spread([0.5, 0.5, 0.5]), spread([2.0, 2.0, 2.0])]
    assert geomean_spread(spreads) == pytest.approx({"low": 1.0, "median": 1.0, "high": 1.0})


def test_rounds_begin_with_each_side_in_turn() -> None:
    clock = FakeTime()
    sides = {name: clock.work(name, lambda i, cost=cost: cost) for name, cost in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    times = measure_rounds(sides, repeats=3, warmup=1, clock=clock)
    assert clock.order == "abc" + "bca" + "cab" + "abc"
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}
    assert {name: found["median"] for name, found in ratios(times, "b").items()} == {"a": 0.5, "b": 1.0, "c": 2.0}


@pytest.mark.parametrize("block", [(1, 1), (16, 1), (16, 16)])
def test_layer_holds_its_dense_weight_on_its_sets(block: tuple[int, int]) -> None:
    layer = random_layer((5, 32, 64), block, 0.75, 0.5)
    fwd, bwd = (
        layer.geometry.from_blocks(mask[:, None].expand(-1, layer.geometry.unit))
        for mask in index_masks(layer.index, layer.geometry)
    )
    assert int(fwd.sum()) == 512 and int(bwd.sum()) == 1024 and not (fwd & ~bwd).any()
    impls = layer.impls("reference")
    assert impls == dict.fromkeys(PRODUCTS, "reference")
    y, dx, dw = (part() for part in layer.sparse(impls))
    torch.testing.assert_close(y, layer.x @ (layer.weight * fwd).T)
    torch.testing.assert_close(dx, layer.dy @ (layer.weight * fwd))
    assert dw.shape == layer.values.shape and [part().shape for part in layer.dense()][:2] == [y.shape, dx.shape]


def test_peers_compute_what_we_do() -> None:
    layer = random_layer((5, 32, 48), (1, 1), 0.75, 0.5)
    impls = layer.impls(None)
    assert impls is not None
    y, dx, dw = (part() for part in layer.sparse(impls))
    for build in (masked_dense, mkl_csr):
        theirs: list[Any] = [part() for part in build(layer)]
        torch.testing.assert_close(theirs[0], y)
        torch.testing.assert_close(theirs[1], dx)
        gradient = theirs[2].to_dense() if theirs[2].layout == torch.sparse_csr else theirs[2]
        torch.testing.assert_close(weight_grad(gradient, layer.index, layer.geometry), dw)
        assert not gradient[~masks(layer)[1]].any()


@pytest.mark.long
def test_kernels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = run(tmp_path, "kernels", "--threads", "1", "--repeats", "2")
    assert len(found["step"]) == 16 and len(found["geomean"]) == 8
    for cell in [*found["step"], *found["forward"]]:
        assert cell["ratio"]["low"] <= cell["ratio"]["median"] <= cell["ratio"]["high"]
        assert 0 < cell["bound"] < 1 and set(cell["impl"]) <= set(PRODUCTS)
    assert set(found["step"][0]["products"]) == set(PRODUCTS.values())
    assert {row["name"] for row in found["peers"]} == {"masked dense", "MKL CSR", "topkast 1x1", "sparselab"}
    assert "masked dense" in capsys.readouterr().out


def test_a_kernel_that_does_not_fit_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("topkast.tools.bench.forward_only.BLOCKS", [(1, 1), (128, 1)])
    monkeypatch.setattr("topkast.tools.bench.forward_only.SIZE", 64)
    found = run(tmp_path, "kernels", "--tables", "forward", "--threads", "1", "--repeats", "1", "--impl", "native")
    assert [cell["impl"] is None for cell in found["forward"]][1::2] == [True, True]
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("model", ["gpt2", "resnet50"])
def test_step(tmp_path: Path, model: str, capsys: pytest.CaptureFixture) -> None:
    (row,) = run(tmp_path, "step", "--model", model, "--threads", "1", "--repeats", "2")["rows"]
    assert (row["model"], row["block"], row["threads"]) == (model, [16, 1], 1)
    assert row["bound"] < row["bound of the model"] < 1
    assert row["ratio"]["median"] < row["ratio with refresh"]["median"]
    assert 0 < row["refresh"]["share of time"] < 1
    assert {"forward", "input gradient", "weight gradient"} <= set(row["kernels"])
    assert "training step" in capsys.readouterr().out


@pytest.mark.long
def test_model(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bench_memory, "WAYS", ("dense", "disk"))
    monkeypatch.setattr(_bench_memory, "AIMS", {"disk": 0.32})
    ways = run(tmp_path, "model")["ways"]
    weights = 2 * 256 * 257
    assert ways["dense"]["counted"] == 4 * 4 * weights + 4 * 4  # two moments, and the step of each parameter
    assert (
        ways["disk"]["counted"]
        == ways["disk"]["bytes"]["model"]["sparse"] - ways["disk"]["bytes"]["sites"]["reservoir"]
    )
    for way in ways.values():
        assert way["settled / counted"] == way["settled"] / way["counted"]
        assert way["peak of steps"] > 0
    assert "growth of memory" in capsys.readouterr().out


@pytest.mark.long
def test_onnx(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    size = ["--threads", "1", "--repeats", "1", "--rows", "3", "--model", "gpt2", "--kind", "custom-4x1"]
    found = run(tmp_path, "onnx", *size)
    assert {(cell["format"], cell["written as"]) for cell in found["layer"]} >= {("custom", "custom")}
    assert all(cell["speed"]["median"] > 0 for cell in found["layer"])
    kinds = {"library 16x1, int8", "stock 64x64, fp32", "dense int8"}
    assert found["int8"] and all(kinds <= set(cell["of dense int8"]) for cell in found["int8"])
    assert all(cell["of dense int8"]["dense int8"]["median"] == 1 for cell in found["int8"])
    (row,) = found["model"]
    assert row["memory"]["sparse"]["resident"] > 0 and row["memory"]["dense"]["held"] > 0
    assert row["bytes"]["sparse"] < row["bytes"]["dense"] and row["max error"] < 1e-3
    assert "whole models" in capsys.readouterr().out


@pytest.mark.long
def test_tokens(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    size = ["--threads", "1", "--repeats", "2", "--kind", "custom-4x1", "--precision", "fp32", "int8"]
    (row,) = run(tmp_path, "tokens", *size, "--vocabulary", "64", "--prompt", "5", "--new", "6")["rows"]
    sides = row["sides"]
    assert list(sides) == ["dense fp32", "dense int8, dynamic", "sparse fp32", "sparse int8"]
    assert sides["sparse int8"]["bytes"] < sides["sparse fp32"]["bytes"] < sides["dense fp32"]["bytes"]
    assert sides["dense fp32"]["next token"]["ratio"]["median"] == sides["sparse fp32"]["equal tokens"] == 1
    for side in sides.values():
        assert side["first token"]["seconds"] > 0 and set(side["tokens a second"]) == {"low", "median", "high"}
    assert "generation with a cache" in capsys.readouterr().out


def test_peak_is_seen_though_it_passes() -> None:
    before = _bench_memory.settled()
    with _bench_memory.Peak() as peak:
        torch.ones(2**24).sum().item()
        torch.ones(2**24).add_(1).sum().item()
    assert peak.bytes - before > 0


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "required"),
        (["speed"], "invalid choice"),
        (["kernels", "--threads", "0"], "whole number above 0"),
        (["kernels", "--impl", "magic"], "invalid choice"),
        (["step", "--block", "16"], "ROWSxCOLUMNS"),
        *((([name, "--device", "tpu"]), "neither cpu nor cuda") for name in ("kernels", "step", "model", "large")),
    ],
)
def test_bad_arguments_say_what_is_allowed(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(words)
    assert message in capsys.readouterr().err


def test_a_gpu_must_be_there(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        bench.main(["step", "--device", "cuda"])
    assert "there is no GPU that this torch can use" in capsys.readouterr().err


class FakeEvent:
    """An event of a GPU whose only work is a clock's."""

    clock: FakeTime

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = self.clock()

    def synchronize(self) -> None:
        self.clock.order += "s"

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """What the tools ask a GPU for, answered: events, and the bytes of tensors."""
    FakeEvent.clock = FakeTime()
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 900)
    return torch.device("cuda")


def test_on_a_gpu_events_give_the_times(gpu: torch.device) -> None:
    clock = FakeEvent.clock
    dense, sparse = [clock.work("d", lambda i: 2.0)], [clock.work("f", lambda i: 0.5)]
    pairs = measure(dense, sparse, repeats=2, warmup=0, clock=pytest.fail, device=gpu)
    assert clock.order == "dsfs" * 2 and pairs.ratio()["median"] == pytest.approx(0.25)


def test_on_a_gpu_torch_counts_the_memory(gpu: torch.device) -> None:
    assert _bench_memory.settled(gpu) == 700
    with _bench_memory.peak_on(gpu) as peak:
        pass
    assert peak.bytes == 900


def test_where_single_weights_would_be_slow_they_are_not_the_first_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    always = replace(KERNELS["csr"], fits=lambda product, operand, geometry, conv: True)
    monkeypatch.setitem(KERNELS, "csr", always)
    chosen = random_layer((5, 320, 64), (1, 1), 0.995, 0.98).impls(None)
    assert chosen is not None and (chosen["spmm"], chosen["spmm_t"]) == ("csr", "csr") and chosen["sddmm"] != "csr"
    assert "csr" not in (random_layer((5, 320, 64), (1, 1), 0.9, 0.8).impls(None) or {}).values()


def test_sparselab_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sparselab_step(random_layer((2, 32, 32), (1, 1), 0.9, 0.8)) is None
