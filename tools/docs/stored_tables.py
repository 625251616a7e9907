"""The tables of stored results that the pages show: ``{results} NAME`` on a page stands for the table of that name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from topkast.tools.bench import tables as bench
from topkast.tools.bench.scale import scale_page as scale
from topkast.tools.bench.scale import sharded_page as sharded
from topkast.tools.common import results as common
from topkast.tools.common.markdown import table
from topkast.tools.common.places import RESULTS
from topkast.tools.from_dense import dense_page as from_dense
from topkast.tools.study.shown import page_tables as study
from topkast.tools.zoo import records_table
from topkast.tools.zoo.runner import read


def reliability() -> str:
    """Random cases by kind, and how they ended."""
    found = common.read("reliability")
    lines = [
        [
            kind,
            f"{sum(own['cases'].values()):,}",
            "; ".join(f"{n:,} {word}" for word, n in own["cases"].items()),
            str(own["failures"]),
        ]
        for kind, own in found["kinds"].items()
    ]
    facts = f"On {found['machine']['cpu']}, {found['machine']['date'][:10]}."
    return f"{table(('kind', 'cases', 'how they ended', 'failures'), lines)}\n\n{facts}"


def reverted() -> str:
    """Bugs whose fixes were undone, and how the fuzzer found each."""
    stored = common.read("reverted")
    lines = [
        [
            one["mended"],
            one["bug"],
            one["kind"],
            f"{one.get('seconds of a core', 'not measured')}" if one["found"] else "not found",
            f"{one['seconds']} s" if one["found"] else "",
            str(one["seed"]),
            f"`{one.get('error', '')[:90]}`",
        ]
        for one in stored["found"]
    ]
    facts = f"On {stored['machine']['cpu']}, {stored['machine']['date'][:10]}, beside other work."
    head = ("number", "bug", "kind", "found after, seconds of a core", "by the clock", "seed", "by")
    return f"{table(head, lines)}\n\n{facts}"


def zoo() -> str:
    """The models of other packages, suite by suite and kernel by kernel."""
    return records_table.section(list(read(RESULTS / "zoo.json").values()))


# name -> the Markdown
TABLES: dict[str, Callable[[], str]] = {
    "zoo": zoo,
    **{name: partial(study.markdown, name) for name in study.PAGE},
    "from-dense": from_dense.retrieval,
    "from-dense-export": from_dense.exported,
    "from-dense-memory": from_dense.memory,
    "reliability": reliability,
    "reverted": reverted,
    "bench-kernels": bench.kernels,
    "bench-autocast": bench.autocast,
    "bench-steps": bench.steps,
    "bench-waiting": bench.waiting,
    "bench-estimated": bench.estimated,
    "bench-memory": bench.memory,
    "bench-large": bench.large,
    "bench-scale-computed": scale.computed,
    "bench-scale-measured": scale.measured,
    "bench-sharded-exactness": sharded.exactness,
    "bench-traffic": sharded.traffic,
    "kills": sharded.kills,
    "bench-onnx-layers": bench.onnx_layers,
    "bench-onnx-models": bench.onnx_models,
    "bench-tokens": bench.tokens,
    "bench-int8-layers": bench.int8_layers,
    "bench-int8-models": bench.int8_models,
    "bench-int8-accuracy": bench.int8_accuracy,
}
