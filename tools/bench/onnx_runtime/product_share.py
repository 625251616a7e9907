"""The share of a file's time that goes to products with weights: what sparsity and int8 can make faster."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime

from topkast.tools.common.onnx_sessions import Feeds

PRODUCTS = ("MatMul", "Gemm", "Conv")
# ONNX Runtime gives convolutions names of its own when it lays images out in blocks of channels.
CONVOLUTIONS = ("Conv", "FusedConv")
LEAST = 1024  # entries of a weight; topkast leaves smaller ones dense


def product_share(path: Path, feeds: Feeds, threads: int, runs: int = 5) -> float:
    """The nodes' own times, as ONNX Runtime's profiler notes them: products with constants over all nodes.

    Args:
        path: a dense float32 file.
        feeds: its inputs.
        threads: of the session.
        runs: that count, after two that do not.
    """
    names = weight_products(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(2 + runs):
        session.run(None, dict(feeds))
    profile = Path(session.end_profiling())
    events = json.loads(profile.read_text())
    profile.unlink()
    nodes = [event for event in events if event["name"].endswith("_kernel_time")]
    counted = nodes[len(nodes) * 2 // (2 + runs) :]
    inside = sum(
        event["dur"]
        for event in counted
        if event["args"]["op_name"] in CONVOLUTIONS or event["name"].startswith(tuple(names))
    )
    return inside / sum(event["dur"] for event in counted)


def weight_products(path: Path) -> set[str]:
    """The names of nodes that multiply by a constant. A fusion keeps the name of its product as a beginning."""
    graph = onnx.load(str(path)).graph
    sizes = {tensor.name: tensor for tensor in graph.initializer}
    large = {name for name, tensor in sizes.items() if len(tensor.dims) > 1 and _size(tensor) >= LEAST}
    return {node.name for node in graph.node if node.op_type in PRODUCTS and large & set(node.input)}


def _size(tensor: onnx.TensorProto) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size
