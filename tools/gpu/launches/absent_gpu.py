"""Let Triton and Inductor generate code for an H100 on a machine without a GPU. Nothing of that code runs."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._dynamo.device_interface import CudaInterface
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

H100 = types.SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, total_memory=80 << 30, gcnArchName="",
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
)  # fmt: skip


class Driver:
    """As much of Triton's driver as compiling asks for."""

    utils = types.SimpleNamespace(get_device_properties=lambda _: {"max_shared_mem": 232448})

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


def _nothing(*_: Any) -> None:
    return None


def _zero(*_: Any) -> int:
    return 0


ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "_get_device_properties": lambda *_: H100,
    "get_device_capability": lambda *_: (9, 0),
    "is_bf16_supported": lambda *_, **__: True,
    "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": _nothing,
    "synchronize": _nothing,
    "_lazy_init": _nothing,
    "_exchange_device": _zero,
    "_maybe_exchange_device": _zero,
}


@contextlib.contextmanager
def absent_gpu() -> Iterator[list[str]]:
    """Inside the ``with``, Inductor finds an H100. Its compiled modules get into the list as text, and are not run."""
    from torch._functorch import config as functorch_config
    from torch._inductor import config, scheduler
    from torch._inductor.graph import GraphLowering

    texts: list[str] = []

    def note(lowering: Any) -> Any:
        code = lowering.codegen()[0]
        texts.append(getattr(code, "value", code))
        return types.SimpleNamespace(call=_nothing, __file__="absent.py", runner=None)

    with contextlib.ExitStack() as held:
        held.enter_context(mock.patch.object(driver, "_active", Driver()))
        for name, answer in ANSWERS.items():
            held.enter_context(mock.patch.object(torch.cuda, name, answer, create=True))
        for name in ("is_available", "device_count", "current_device"):
            held.enter_context(mock.patch.object(CudaInterface, name, staticmethod(ANSWERS[name])))
        held.enter_context(mock.patch.object(torch.version, "cuda", "12.8"))
        held.enter_context(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", _zero, create=True))
        held.enter_context(mock.patch.object(scheduler, "has_triton", lambda *_: True))
        held.enter_context(mock.patch.object(GraphLowering, "compile_to_module", note))
        # Folding constants computes them, on the device.
        patches = {"compile_threads": 1, "fx_graph_cache": False, "joint_graph_constant_folding": False}
        held.enter_context(config.patch(patches))
        held.enter_context(functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True))
        yield texts
