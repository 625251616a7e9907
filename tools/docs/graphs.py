"""The graphs of a small model on its way through topkast, as Markdown.

python -m topkast.tools.docs.graphs

prints all of them; the page docs/internals/how-it-works.md shows them. Everything comes from a run.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import onnx
import torch
from torch import fx, nn

import topkast
from topkast.compiler.backend import topkast_aot_eager
from topkast.passes.aten import JOINT
from topkast.passes.aten.base import Pass

from .readable import body, renamed


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


@dataclass(frozen=True)
class Step:
    """A pass, the graph before and after the pass (a line of code each), and its counts of rewrites and refusals."""

    rule: type[Pass]
    before: list[str]
    after: list[str]
    counts: str


@functools.cache
def run() -> tuple[list[str], list[Step]]:
    """Train the model for one step: Dynamo's graph, and the joint graph around each pass."""
    torch.manual_seed(0)
    model = topkast.sparsify(Mlp(), fwd=0.9, bwd=0.8)
    captured: list[fx.Graph] = []

    def backend(module: fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        captured.append(module.graph)
        return topkast_aot_eager(module, inputs)

    with tempfile.TemporaryDirectory() as folder:
        # "first": the listings must not depend on what is faster on this machine.
        with mock.patch.dict(os.environ, TOPKAST_DEBUG=folder, TOPKAST_KERNEL="first"):
            torch.compile(model, backend=backend)(torch.randn(32, 64)).sum().backward()
        files = sorted(Path(folder).iterdir())
        texts = {path.name[5:-3]: path.read_text(encoding="utf-8") for path in files}
    (graph,) = captured
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    names = renamed(inputs)
    primals = {f"primals_{place}": names[name] for place, name in enumerate(inputs, 1)} | {"tangents_1": "dy"}
    steps = []
    for rule in JOINT:
        before, after = (texts[f"{rule.__name__}-{when}"] for when in ("before", "after"))
        counts = re.match(r"# rewritten Counter\((.*)\), refused Counter\((.*)\)\n", after)
        assert counts is not None
        steps.append(Step(rule, body(before, primals), body(after, primals), _sentence(counts[1], counts[2])))
    return body(graph.python_code("self").src, names), steps


def _sentence(rewritten: str, refused: str) -> str:
    parts = [text.strip("{}").replace("'", "") for text in (rewritten, refused)]
    return "; ".join(f"{what}: {part}" for what, part in zip(("rewritten", "refused"), parts, strict=True) if part)


def model() -> str:
    """The code of the model."""
    return _block("python", inspect.getsource(Mlp).splitlines())


def captured() -> str:
    """The graph that Dynamo captures."""
    return _block("python", run()[0])


def joint() -> str:
    """The joint graph of forward and backward, before the first pass."""
    return _block("python", run()[1][0].before)


def passes() -> str:
    """A section for each pass: what the pass does, and what the pass changed in the model's graph."""
    return "\n\n".join(_section(step) for step in run()[1])


def result() -> str:
    """The joint graph after the last pass."""
    return _block("python", run()[1][-1].after)


def file() -> str:
    """The nodes of the exported file, dense and with topkast's own operators."""
    torch.manual_seed(0)
    trained = topkast.sparsify(Mlp(), fwd=0.9, bwd=0.8)
    lines = {}
    with tempfile.TemporaryDirectory() as folder:
        for format in ("dense", "custom"):
            path = Path(folder) / f"{format}.onnx"
            topkast.export(trained, path, torch.randn(32, 64), format=format)
            graph = onnx.load(path).graph
            lines[format] = [_node(node) for node in graph.node]
    return _diff(lines["dense"], lines["custom"])


def _node(node: onnx.NodeProto) -> str:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{', '.join(node.output)} = {name}({', '.join(node.input)})"


def _section(step: Step) -> str:
    """The first paragraph of a pass's file, its two lines with an example, and the changes."""
    says = inspect.getdoc(sys.modules[step.rule.__module__]) or ""
    first = re.sub(r":[a-z]+:(?=`)", "", says.split("\n\n")[0]).replace("``", "`")
    example: list[str] = []
    for line in map(str.strip, says.splitlines()):
        if line.startswith(("before:", "after:")):
            head, *more = re.split(r" {4,}", line)  # statements side by side in the file, below each other on the page
            example += [head, *(f"{'':8}{statement}" for statement in more)]
    parts = [f"### {step.rule.__name__}", first, _block("text", example)]
    counts = step.counts or "nothing to rewrite"
    parts.append(f"In this graph: {counts}.")
    if step.before != step.after:
        parts.append(_diff(step.before, step.after))
    return "\n\n".join(parts)


def _diff(before: Sequence[str], after: Sequence[str]) -> str:
    lines = difflib.unified_diff(before, after, n=1, lineterm="")
    return _block("diff", [line for line in lines if not line.startswith(("---", "+++"))])


def _block(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


# name -> the Markdown, in the order of the page
PARTS = {
    "model": model,
    "captured": captured,
    "joint": joint,
    "passes": passes,
    "result": result,
    "file": file,
}

if __name__ == "__main__":
    print("\n\n".join(make() for make in PARTS.values()))
