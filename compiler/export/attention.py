"""Correct the attention that torch.onnx writes differently from PyTorch's attention."""

from __future__ import annotations

import torch
from torch import fx

from topkast.passes.aten.nodes import aten, emit


def keep_empty_rows(graph: fx.Graph) -> None:
    """Give zeros to queries that see nothing because of a floating-point mask, as PyTorch does. The exporter's
    operators would give NaN, the softmax of only -inf. These queries get another mask, and their results are set to
    zero afterwards. Boolean masks are unchanged."""
    for node in graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if not isinstance(mask, fx.Node) or not mask.meta["val"].is_floating_point():
            continue
        with graph.inserting_before(node):
            unseen = emit(graph, aten.eq.Scalar, mask, -torch.inf, like=node)
            empty = emit(graph, aten.all.dim, unseen, -1, True, like=node)
            node.replace_input_with(mask, emit(graph, aten.masked_fill.Scalar, mask, empty, 0.0, like=node))
        with graph.inserting_after(node):
            zeroed = emit(graph, aten.masked_fill.Scalar, node, empty, 0.0, like=node)
        node.replace_all_uses_with(zeroed, delete_user_cb=lambda user, new=zeroed: user is not new)
