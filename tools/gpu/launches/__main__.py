"""Count launches of kernels and operators of the host in a training step, and write tools/results/gpu-launches.json.

TRITON_INTERPRET=0 python -m topkast.tools.gpu.launches
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

import topkast
from topkast.passes.aten import PassLog
from topkast.passes.aten.weight_call import WeightCall
from topkast.runtime.kernels.traced import trace
from topkast.runtime.layout import Index
from topkast.runtime.state.model import sites
from topkast.runtime.triton.products import turned_size
from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import CONSOLE, machine, write

from .generated import generated

WIDTH, BLOCK, SITES = 256, (64, 64), {"two layers with GELU": 2, "MLP of a decoder": 2}
VIEWS = ("view", "unsqueeze", "squeeze", "select", "slice", "permute", "as_strided", "empty", "expand", "transpose")


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model at 0.9/0.8 in bfloat16, and its input."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)]
    made: nn.Module = nn.Sequential(*layers)
    if name == "MLP of a decoder":
        made = Residual(nn.Sequential(nn.LayerNorm(WIDTH), *layers))
    x = torch.randn(2, 64, WIDTH)
    topkast.sparsify(made, 0.9, 0.8, block=BLOCK, min_size=1)
    return made.bfloat16(), x.bfloat16().requires_grad_()


def turn(made: nn.Module) -> None:
    """Give the sites their indices by columns, as they have them on a GPU."""
    for site in sites(made).values():
        site.turned = torch.zeros(turned_size(site.geometry, site.n_fwd), dtype=torch.int32)
        site.turned_of = site.cols


def counted(texts: list[str], graph: fx.Graph, _: PassLog) -> dict[str, Any]:
    """What the code does: launches, among them those inside our operators, and calls of operators of ours."""
    code = "\n".join(text.split("def call(self, args)")[-1].split("def get_args")[0] for text in texts)
    launched = Counter(re.sub(r"_\d+$", "", name) for name in re.findall(r"^\s+(\w+)\.run\(", code, re.MULTILINE))
    ours = Counter(re.findall(r"= torch\.ops\.topkast\.(\w+)\.default\(", code))
    inside = sum((_inside(node) for node in graph.nodes if _name(node) in ours), Counter())
    kernels = {name: count for name, count in launched.items() if not name.startswith("triton_")}
    return {
        "operators of ours": sum(ours.values()),
        "launches of our kernels": sum(kernels.values()) + inside["ours"],
        "launches beside them for products": inside["others"],
        "other launches": sum(launched.values()) - sum(kernels.values()),
        "by name": {**kernels, **ours},
    }


def _name(node: fx.Node) -> str:
    return node.target._opname if getattr(node.target, "namespace", "") == "topkast" else ""  # type: ignore[union-attr]


def _inside(node: fx.Node) -> Counter[str]:
    """Launches inside an operator of ours."""
    call = WeightCall.of(node)
    inputs = [*call.operands.values(), *([] if call.values is None else [call.values]), *call.index]
    bias = call.options.get("bias")

    def arguments(*given: Any) -> tuple[Any, ...]:
        taken = (*given[:-4], Index(*given[-4:-1]), call.geometry)
        return (*taken, given[-1]) if _name(node) == "spmm" else taken

    fakes = [one.meta["val"] for one in inputs]
    traced = trace(call.options["impl"], _name(node), fakes[0].fake_mode, arguments,
                   [*fakes, None if bias is None else bias.meta["val"]])  # fmt: skip
    found: Counter[str] = Counter()
    for one in traced.nodes:
        if one.op == "call_function":
            name = str(one.target)
            found["ours"] += "triton_kernel" in name
            found["others"] += "triton_kernel" not in name and not any(view in name for view in VIEWS)
    return found


def count(name: str) -> dict[str, Any]:
    """A model's counts with operators, and with launches by Inductor."""
    made, x = model(name)
    row: dict[str, Any] = {"model": name, "sites": SITES[name]}
    for way, launches in (("operators", False), ("launched by Inductor", True)):
        if launches:
            turn(made)
        row[way] = generated(made, x, launches, counted)
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table that docs/benchmarks.md shows."""
    lines = [
        "| forward and backward of | sites | who launches | operators of ours | our kernels | beside them | other |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for way in ("operators", "launched by Inductor"):
            found = row[way]
            numbers = [str(value) for value in found.values() if isinstance(value, int)]
            who = "operators of ours" if way == "operators" else "Inductor"
            lines.append(f"| {row['model']} | {row['sites']} | {who} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is 1: nothing is compiled in the interpreter")
    rows = [count(name) for name in SITES]
    for row in rows:
        CONSOLE.print(row, highlight=False)
    write(args.out / "gpu-launches.json", machine(), {}, {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
