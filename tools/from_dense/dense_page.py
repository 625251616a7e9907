"""The tables of the page docs/user/from-dense.md, in Markdown, from tools/results/from-dense.json."""

from __future__ import annotations

import statistics
from typing import Any

from topkast.tools.common.markdown import table
from topkast.tools.common.results import read

NAMES = {
    "dense": "dense, not trained further",
    "one-shot": "one-shot: the largest weights, not trained",
    "topkast": "Top-KAST from dense, distilled",
    "gmp": "gradual pruning (`gmp`), distilled",
}


def retrieval() -> str:
    """How well each encoder retrieves: the mean over seeds, with its standard deviation where there are several."""
    found = read("from-dense")
    rows = found["rows"]
    lines = []
    for fwd in sorted({row["fwd"] for row in rows}):
        for method in NAMES:
            own = [row for row in rows if row["fwd"] == fwd and row["method"] == method]
            if own:
                figures = [_spread([row[name] for row in own]) for name in ("first", "mrr")]
                seeds = str(len(own)) if own[0]["seed"] is not None else "-"
                lines.append([NAMES[method], f"{fwd:g}", *figures, seeds])
    given = found["arguments"]
    heads = ["model", "sparsity", "right answer first", "mean reciprocal rank", "seeds"]
    facts = (
        f"{given['steps']} optimizer steps of 16 texts for each trained row, {given['questions']} questions. "
        f"{_source(found)}"
    )
    return f"{table(heads, lines, numbers=True)}\n\n{facts}"


def exported() -> str:
    """Time and size of the exported encoder, as shares of the dense file's."""
    found = read("from-dense")
    own = found["export"]
    size = own["bytes"]["sparse"] / own["bytes"]["dense"]
    low, median, high = (own["ratio"][name] for name in ("low", "median", "high"))
    lines = [[f"{own['fwd']:g}", f"{median:.2f} [{low:.2f}, {high:.2f}]", f"{size:.2f}", f"{own['error']:.1e}"]]
    heads = ["sparsity", "time of 16 texts / dense", "bytes / dense", "largest error"]
    return f"{table(heads, lines, numbers=True)}\n\n{_source(found)}"


def memory() -> str:
    """Growth of the process at its peak, by the way in which a checkpoint is read."""
    found = read("from-dense")
    ways = {"dense first": "dense model first, then converted", "from file": "read with `init`"}
    lines = [
        [ways[way], f'`"{place}"`', f"{peak:.0f} MiB"]
        for place, peaks in found["loading"].items()
        for way, peak in peaks.items()
    ]
    return f"{table(['way', 'reservoir', 'peak'], lines)}\n\n{_source(found)}"


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def _source(found: dict[str, Any]) -> str:
    facts = found["machine"]
    return f"`python -m topkast.tools.from_dense`, {facts['date'][:10]}; {facts['cpu']}, torch {facts['torch']}."
