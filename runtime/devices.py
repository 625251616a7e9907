"""Places where a model would train wrongly in silence: each is refused with a named error.

A replay of a CUDA graph runs kernels, and no Python: no hook of an optimizer, and nothing that a method notes of a
gradient. The sets would stay as they are for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from topkast.runtime.errors import DeviceError, GraphError

# Neither MPS nor XPU has every dtype that is needed: float64 for sums, uint16 for the columns of an index.
UNSUPPORTED = ("mps", "xpu")


def check_device(name: str, device: torch.device) -> None:
    """Raise DeviceError if a sparse weight cannot be on this device.

    Args:
        name: the parameter, for the message.
        device: where it is or would be.
    """
    if device.type in UNSUPPORTED:
        raise DeviceError(
            f"{name}: on {device}, must be on a CPU or a CUDA device: the index needs uint16 and int32, and sums need "
            f"float64, which PyTorch does not have there for all operators; keep the model on the CPU"
        )


def capturing() -> bool:
    """Whether the work of this thread is captured in a CUDA graph now."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def check_step_not_captured() -> None:
    """Raise GraphError if an optimizer's step is a part of a CUDA graph."""
    if capturing():
        raise GraphError(
            "optimizer.step() is captured in a CUDA graph: a replay runs no hook, so no set would ever be chosen "
            "again; capture forward and backward (torch.cuda.make_graphed_callables, or mode='reduce-overhead'), and "
            "call optimizer.step() outside of the graph"
        )


def check_gradient_is_seen(name: str, method: str) -> None:
    """Raise GraphError if a method that looks at dense gradients is a part of a CUDA graph.

    Args:
        name: the weight.
        method: its method's name.
    """
    if capturing():
        raise GraphError(
            f"{name}: method={method!r} reads the gradient in every backward, and a replay of a CUDA graph runs no "
            "Python, so its sets would never change; compile without CUDA graphs (mode='default'), or use another "
            "method"
        )


def check_graph_inputs(graphs: bool, partition: bool, devices: Iterable[torch.device]) -> None:
    """Raise GraphError if Inductor would drop the CUDA graphs that were asked for.

    Args:
        graphs: whether CUDA graphs are asked for.
        partition: ``torch._inductor.config.graph_partition``.
        devices: of the graph's inputs.
    """
    kinds = {device.type for device in devices}
    if graphs and not partition and {"cpu", "cuda"} <= kinds:
        raise GraphError(
            "torch._inductor.config.graph_partition is off, and a graph has inputs on the CPU beside those on the GPU: "
            "Inductor would run it without the CUDA graphs that were asked for; leave graph_partition on (the "
            "default), or compile without CUDA graphs (mode='default')"
        )
