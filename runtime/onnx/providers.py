"""Check where the nodes of a session run, if providers other than the CPU were requested, and warn of differences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from topkast.runtime.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# Providers with their own memory. The other providers use the CPU's memory, and nothing is copied for them.
DEVICES = {
    f"{name}ExecutionProvider"
    for name in ("CUDA", "Tensorrt", "NvTensorRTRTX", "ROCM", "MIGraphX", "Dml", "CANN", "WebGpu", "JS")
}
Placed = tuple[str, str, str]  # name, operator, domain of a node
RECORD = "session.record_ep_graph_assignment_info"
CPU = "CPUExecutionProvider"
NAMED = 3  # the largest number of nodes that a warning names


def _names(asked: Sequence[Any]) -> list[str]:
    return [name if isinstance(name, str) else name[0] for name in asked]


def refuse_missing(asked: Sequence[Any], there: Sequence[str]) -> None:
    """Raise DeviceError if no requested provider is there, and the CPU was not requested either. ONNX Runtime would
    run everything on the CPU.

    Args:
        asked: the providers, as for ``InferenceSession``.
        there: the providers that are built in, or that were started.
    """
    names = _names(asked)
    if CPU not in names and not set(names) & set(there):
        raise DeviceError(
            f"providers={names!r}: none can be started here, ONNX Runtime has {', '.join(there)}; install a package of "
            f"ONNX Runtime with this provider on a machine with its device (onnxruntime-gpu for CUDA), or add {CPU!r} "
            "to run there instead"
        )


def noted(options: onnxruntime.SessionOptions) -> None:
    """Let a session remember where its nodes run. A version that cannot do so ignores the entry."""
    options.add_session_config_entry(RECORD, "1")


def placed(made: onnxruntime.InferenceSession) -> dict[str, list[Placed]]:
    """See :func:`topkast.runtime.onnx.library.placement`."""
    found: dict[str, list[Placed]] = {name: [] for name in made.get_providers()}
    try:
        parts = made.get_provider_graph_assignment_info()
    except Exception as error:  # of several kinds: no such method, or nothing was recorded
        raise ConfigError(
            f"session: ONNX Runtime does not tell where its nodes run ({error}); make the session with "
            "topkast.onnx.session, on ONNX Runtime 1.24 or newer"
        ) from error
    for part in parts:
        nodes = found.setdefault(part.ep_name, [])
        nodes += [(node.name, node.op_type, node.domain) for node in part.get_nodes()]
    return found


def refused(asked: Sequence[Any], made: onnxruntime.InferenceSession) -> str | None:
    """A sentence about providers that ONNX Runtime has but could not start. It warns about unknown providers itself."""
    import onnxruntime

    missing = [n for n in _names(asked) if n in onnxruntime.get_available_providers() and n not in made.get_providers()]
    if not missing:
        return None
    return f"{', '.join(missing)} could not be started, so the file runs on {', '.join(made.get_providers())}"


def device(made: onnxruntime.InferenceSession) -> str | None:
    """The first provider with its own memory; None if everything is in the CPU's memory."""
    return next((name for name in made.get_providers() if name in DEVICES), None)


def cost(model: onnx.ModelProto, provider: str) -> str | None:
    """A sentence about the cost of our nodes beside ``provider``, which cannot run them; None without such nodes.

    Args:
        model: the model; its weights are not needed.
        provider: the provider of the other nodes.
    """
    graph = model.graph
    nodes = [node for node in graph.node if node.domain == "topkast"]
    if not nodes:
        return None
    constants = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
    numbers = {value.name: _numbers(value) for value in [*graph.input, *graph.value_info, *graph.output]}
    copied = [name for node in nodes for name in [*node.input, *node.output] if name not in constants]
    size = 4 * sum(numbers.get(name, 1) for name in copied if name)
    more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
    return (
        f"{', '.join(node.name for node in nodes[:NAMED])}{more}: topkast's kernels run on the CPU, not on {provider}; "
        f"up to {size:,} bytes of activations are copied in each run (a size that the file leaves open counts as one). "
        'Export with format="block" for that provider; or open the file with onnxruntime.InferenceSession, which '
        "computes these products there at dense speed"
    )


def _numbers(value: onnx.ValueInfoProto) -> int:
    """How many numbers an activation has, if every size that the file leaves open is one."""
    return math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)


def check(asked: Sequence[Any], made: onnxruntime.InferenceSession, file: str | bytes) -> None:
    """Warn if a session does not run as requested.

    Args:
        asked: the providers, as for ``InferenceSession``.
        made: the session.
        file: the path or the bytes of the file.
    """
    provider = device(made)
    for said in (refused(asked, made), provider and cost(_load(file), provider)):
        if said:
            warnings.warn(said, stacklevel=3)


def _load(file: str | bytes) -> onnx.ModelProto:
    import onnx

    return onnx.load_from_string(file) if isinstance(file, bytes) else onnx.load(file, load_external_data=False)
