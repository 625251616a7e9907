"""A driver for Triton's own JIT: it compiles for a GPU that is not there, and launches run in the emulator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver

from topkast.runtime.triton import configs, products, scaling, single, transient
from topkast.runtime.triton.refresh import sets

from .grid import launch
from .memories import Global

SHARED = {80: 166912, 90: 232448}  # bytes that a program may have


@dataclass
class Launched:
    """One launch, and what was compiled for it."""

    kernel: Any
    grid: tuple[int, int, int]
    instructions: int


@dataclass
class Emulator:
    """Triton's driver, and a log of its launches.

    Args:
        capability: 80 or 90.
        change: of the PTX before it runs; to plant faults.
        reached: tensors whose addresses kernels read from a table.
    """

    capability: int
    change: Callable[[str], str] = lambda ptx: ptx
    reached: list[torch.Tensor] = field(default_factory=list)
    launches: list[Launched] = field(default_factory=list)
    binary_ext: str = "cubin"
    current: Any = None

    @property
    def utils(self) -> Emulator:
        return self

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        shared = SHARED[self.capability]
        return {"max_shared_mem": shared, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, source: Any, _: Any) -> Callable[..., None]:
        types = list(source.signature.values())

        def run(x: int, y: int, z: int, *rest: Any) -> None:
            given = [value for kind, value in zip(types, rest[-len(types) :], strict=True) if kind != "constexpr"]
            memory, arguments = Global(), []
            for tensor in self.reached:
                memory.add(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            for one in given:
                if isinstance(one, torch.Tensor):
                    memory.add(one.untyped_storage().data_ptr(), one.untyped_storage().nbytes())
                arguments.append(one.data_ptr() if isinstance(one, torch.Tensor) else int(one))
            kernel, options = self.current, self.current.metadata
            ptx = self.change(kernel.asm["ptx"])
            arguments += [0] * 2  # scratch memory, which these kernels have none of
            done = launch(ptx, arguments, (x, y, z), options.num_warps * 32, options.shared, memory)
            self.launches.append(Launched(kernel, (x, y, z), done))

        return run


@contextlib.contextmanager
def emulated(capability: int) -> Iterator[Emulator]:
    """Triton compiles for sm_80 or sm_90, and topkast takes its kernels for CPU tensors.

    Once in a process: Triton keeps what it compiled together with the driver that launches it.
    """
    made = Emulator(capability)
    run = CompiledKernel.run.fget

    def noticed(kernel: CompiledKernel) -> Any:
        made.current = kernel
        return run(kernel)

    with contextlib.ExitStack() as held:
        held.enter_context(mock.patch.object(driver, "_active", made))
        held.enter_context(mock.patch.object(CompiledKernel, "run", property(noticed)))
        for module in (products, scaling, sets, single, transient):
            held.enter_context(mock.patch.object(module, "runs_on", lambda device: True))
        name = f"sm_{capability}" if f"sm_{capability}" in configs.table() else "any"
        held.enter_context(mock.patch.object(configs, "architecture", lambda device: name))
        plain = products.arithmetic
        held.enter_context(mock.patch.object(products, "arithmetic", lambda x: plain(x) | {"WIDEN": False}))
        yield made
