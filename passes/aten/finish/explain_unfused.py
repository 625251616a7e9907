"""Write into every dense weight that is left why it is read, so that the report can say why, from a cache too.

before: w = weight(values, ...); y = sin(w)
after:  w = weight(values, ..., why="used by sin"); y = sin(w)
"""

from __future__ import annotations

from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.find_weight import WeightGradient
from topkast.passes.aten.moves import MOVES
from topkast.passes.aten.weight_call import WEIGHT, WEIGHT_GRAD, WeightCall

_PIECES = ("slice", "split", "select", "chunk", "unbind", "split_with_sizes", "cat", "index")


def _op_name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", str(node.target))


def _consumers(node: fx.Node) -> list[str]:
    found: list[str] = []
    for user in node.users:
        found += _consumers(user) if user.target in MOVES else [_op_name(user)]
    return found


def _reason(names: list[str], verb: str) -> str:
    listed = ", ".join(sorted(set(names))) or "the graph's output"
    cut = [name for name in names if name in _PIECES]
    return f"{'cut into pieces or joined: ' if cut else ''}{verb} {listed}"


class ExplainUnfused(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target not in (WEIGHT, WEIGHT_GRAD) or not node.users:
                continue
            if node.target is WEIGHT:
                why = _reason(_consumers(node), "used by")
            else:
                gradient = WeightGradient.of(node)
                why = _reason([] if gradient is None else [_op_name(gradient.maker)], "gradient made by")
            if "refused" in node.meta:
                why = f"{node.meta['refused']} ({why})"
            call = WeightCall.of(node)
            node.args = (*call.operands.values(), *call.args, why)
            for stale in ("eager_input_vals", "arg_kwarg_vals"):
                node.meta.pop(stale, None)
            self.refusals[why] += 1
