"""Others take a converted model for a plain one: they are right, or get a named error with nothing changed."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization as quantization
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import topkast
from topkast.runtime.state.model import sites
from topkast.tests.compiler.convert.test_names import equal, small, theta, train


@torch.no_grad()
def averaged(model: nn.Module) -> None:
    """As timm's ModelEmaV2 does with all that a state dict holds."""
    for value in model.state_dict().values():
        value.copy_((value.float() * 0.999).to(value.dtype))


def emptied(model: nn.Module) -> None:
    model.to_empty(device="cpu")
    with torch.no_grad():  # whatever the memory held
        for site in sites(model).values():
            site.cols.fill_(3)


def shifted(model: nn.Module) -> None:
    """An index that is valid, and another one."""
    site = next(iter(sites(model).values()))
    spare = (site.cols.int() + 1) % site.geometry.grid[1]
    site.cols.copy_(spare.view(site.geometry.grid[0], -1).sort(1).values.flatten().to(site.cols.dtype))


USES: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda model: model(torch.randn(3, 12)),
    "step": lambda model: torch.optim.SGD(model.parameters(), 0.1).step(),
    "theta": lambda model: topkast.dense_state_dict(model, "all"),
    "masks": topkast.masks,
    "save": lambda model: model.state_dict(),
    "copy": copy.deepcopy,
    "refresh": topkast.refresh,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("write", [averaged, emptied, shifted])
def test_an_index_that_others_have_written_raises(write: Callable[[nn.Module], None], use: str) -> None:
    model, kept = small(), small()
    train(model)
    state = copy.deepcopy(model.state_dict())
    write(model)
    with pytest.raises(topkast.ModelError, match="index was written to by code that is not topkast's"):
        USES[use](model)
    model.load_state_dict(state)  # which is all that it takes
    kept.load_state_dict(state)
    assert equal(theta(model), theta(kept))
    train(model)


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_an_index_that_others_have_written_raises_when_compiled(backend: str) -> None:
    model = topkast.compile(nn.Sequential(nn.Linear(12, 16)), 0.8, 0.5, min_size=1, backend=backend)
    train(model)
    averaged(model)
    with pytest.raises(topkast.ModelError, match="index was written to"):
        model(torch.randn(3, 12))


def test_writes_that_change_nothing_are_no_error() -> None:
    """A broadcast of buffers writes what is there."""
    model = small()
    train(model)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.copy_(buffer.clone())
    model.share_memory()
    train(model)
    for move in (lambda m: m.to("cpu"), lambda m: m.double().float(), copy.deepcopy):
        train(move(model))
    on_meta = small().to("meta")
    with pytest.raises(topkast.ModelError, match="index was written to"):
        on_meta.to_empty(device="cpu")(torch.randn(3, 12))


def _trace(model: nn.Module) -> None:
    x, file = torch.randn(3, 12), io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), model(x))


def _old_onnx(model: nn.Module) -> None:
    import onnxruntime

    x, file = torch.randn(3, 12), io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"])
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), model(x).detach())


def _torch_export(model: nn.Module) -> None:
    x = torch.randn(3, 12)
    for strict in (False, True):
        torch.testing.assert_close(torch.export.export(model, (x,), strict=strict).module()(x), model(x))


def _distributed_state_dict(model: nn.Module) -> None:
    twin, state = small(), get_model_state_dict(model)
    assert list(state) == list(model.state_dict())
    set_model_state_dict(twin, state)
    assert equal(theta(twin), theta(model))


def test_an_optimizer_s_distributed_state_dict_makes_no_step() -> None:
    """torch steps once at learning rate 0, to see which state there is."""
    model, twin = small(), small()
    optimizer, other = (torch.optim.AdamW(m.parameters(), 0.1) for m in (model, twin))
    model(torch.randn(3, 12)).square().sum().backward()
    optimizer.step()
    set_model_state_dict(twin, get_model_state_dict(model))
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))  # else the two share it
    set_optimizer_state_dict(twin, other, state)
    assert [site.step for site in sites(twin).values()] == [site.step for site in sites(model).values()] == [1, 1]
    for m, opt in ((model, optimizer), (twin, other)):
        opt.zero_grad()
        m(torch.ones(3, 12)).square().sum().backward()
        opt.step()
    assert equal(theta(twin), theta(model))


RIGHT = [_trace, _old_onnx, _torch_export, _distributed_state_dict]


@pytest.mark.parametrize("use", RIGHT, ids=lambda use: use.__name__)
def test_tools_that_read_a_model(use: Callable[[nn.Module], None]) -> None:
    model = small()
    train(model)
    before = theta(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls half of these deprecated
        use(model)
    assert equal(theta(model), before)
    train(model)


def _qat(model: nn.Module) -> None:
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.prepare_qat(model.train())


def _onnx(model: nn.Module) -> None:
    torch.onnx.export(model, (torch.randn(3, 12),), io.BytesIO(), verbose=False)


REFUSED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "script": (torch.jit.script, "topkast.densify"),
    "onnx": (
        lambda model: torch.onnx.export(model, (torch.randn(3, 12),), io.BytesIO(), verbose=False),
        "topkast.export",
    ),
    "fuse_modules": (lambda model: quantization.fuse_modules(model.eval(), [["0", "1"]]), "topkast.densify"),
    "prepare_qat": (_qat, "topkast.densify"),
    "quantize_dynamic": (lambda model: quantization.quantize_dynamic(model, {nn.Linear}), "topkast.densify"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tools_that_cannot_say_what_to_use(name: str) -> None:
    model = small()
    before, keys = theta(model), list(model.state_dict())
    use, instead = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((topkast.TopkastError, RuntimeError), match=instead.replace(".", r"\.")):
            use(model)
    assert equal(theta(model), before) and list(model.state_dict()) == keys
    train(model.train())
    assert all(site.refreshed_at == 2 for site in sites(model).values())


CHILD = """
import sys
import torch
import torch.multiprocessing as multiprocessing
from topkast.tests.compiler.convert.test_names import equal, small, theta, train

def work(model, queue):
    train(model, 4, seed=3)
    queue.put({name: value.numpy() for name, value in theta(model).items()})

if __name__ == "__main__":
    torch.set_num_threads(1)
    model = small()
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    import copy
    twin = copy.deepcopy(model)
    child = context.Process(target=work, args=(model, queue))
    child.start()
    found = {name: torch.from_numpy(value) for name, value in queue.get().items()}
    child.join()
    train(twin, 4, seed=3)
    assert equal(found, theta(twin))
"""


@pytest.mark.long
def test_a_spawned_process_trains_the_model_it_was_given(tmp_path: Any) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    subprocess.run([sys.executable, str(script)], check=True, timeout=300)


def test_reading_a_loaded_checkpoint_once_compiles_nothing(tmp_path: Any) -> None:
    """Sampling or evaluating needs ``topkast.sparsify`` alone."""
    from torch._dynamo.utils import counters

    model = small()
    train(model)
    topkast.save(model, tmp_path / "c")
    counters.clear()
    again = small()
    topkast.load(again, tmp_path / "c")
    with torch.no_grad():
        x: Tensor = torch.randn(2, 12)
        assert torch.equal(again(x), model(x))
    assert not counters
