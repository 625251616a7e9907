"""Write into every dense weight that is left why it is read, so that the report can say it, from a cache too."""

from __future__ import annotations

from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import MOVES, WEIGHT, WEIGHT_GRAD, source

_PIECES = ("slice", "split", "select", "chunk", "unbind", "split_with_sizes", "cat", "index")


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", str(node.target))


def _consumers(node: fx.Node) -> list[str]:
    found: list[str] = []
    for user in node.users:
        found += _consumers(user) if user.target in MOVES else [_name(user)]
    return found


def _reason(names: list[str], verb: str) -> str:
    listed = ", ".join(sorted(set(names))) or "the graph's output"
    cut = [name for name in names if name in _PIECES]
    return f"{'cut into pieces or joined: ' if cut else ''}{verb} {listed}"


class ExplainUnfused(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if not node.users:
                continue
            if node.target is WEIGHT:
                why = _reason(_consumers(node), "used by")
            elif node.target is WEIGHT_GRAD:
                found, _ = source(node.args[0])
                why = _reason([] if found is None else [_name(found)], "gradient made by")
            else:
                continue
            if "refused" in node.meta:
                why = f"{node.meta['refused']} ({why})"
            node.args = (*node.args[:9], why)
            for stale in ("eager_input_vals", "arg_kwarg_vals"):
                node.meta.pop(stale, None)
            self.refusals[why] += 1
