"""The tables of the page docs/benchmarks.md, in Markdown, from the files in tools/results."""

from __future__ import annotations

from typing import Any

from topkast.tools.common.markdown import table
from topkast.tools.common.pairs import geomean, show
from topkast.tools.common.results import read

from .layer import block_name
from .onnx_runtime.int8_accuracy import HEADS, accuracy_lines

MEANT = (1, 32, 256)  # rows of x whose mean is shown; the worst cell is that of all rows

Found = dict[str, Any]


def kernels() -> str:
    """The three products of a layer: one table a number of threads, and what others offer."""
    found = read("kernels")
    parts = []
    for threads in found["arguments"]["threads"]:
        mine = [row for row in found["geomean"] if row["threads"] == threads]
        blocks = list(dict.fromkeys(tuple(row["block"]) for row in mine))
        by_place = {(row["fwd"], row["bwd"], tuple(row["block"])): row for row in mine}
        lines = []
        for fwd, bwd in dict.fromkeys(key[:2] for key in by_place):
            row = [by_place[fwd, bwd, block] for block in blocks]
            figures = [f"{one['ratios']['step']['median']:.2f}" for one in row]
            lines.append([f"{fwd} / {bwd}", f"{row[0]['bounds']['step']:.3f}", *figures])
        heads = ["forward / backward sparsity", "bound", *map(block_name, blocks)]
        parts += [f"{_threads(threads).capitalize()}:", table(heads, lines, numbers=True)]
    peers = [[row["name"], f"{row['ratio']['median']:.2f}"] for row in found["peers"] if row["threads"] == 1]
    parts += [
        "The step of one layer at 0.9/0.8, one thread, in the same run:",
        table(["what", "time"], peers, numbers=True),
    ]
    return _joined(*parts, source(found, f"bench kernels --repeats {found['arguments']['repeats']}"))


def waiting() -> str:
    """CPU seconds until the first step has ended, cold and warm, and graphs; dense / sparse. And those of imports."""
    found = read("waiting")
    lines = []
    for script in found["arguments"]["script"]:
        rows = {(row["caches"], row["side"]): row["steps"] for row in found["rows"] if row["script"] == script}
        cells = [f"`{script}`"]
        for caches, at, field, form in (
            ("cold", 0, "cpu seconds", ".1f"),
            ("warm", 0, "cpu seconds", ".1f"),
            ("cold", -1, "cpu seconds", ".1f"),
            ("warm", -1, "cpu seconds", ".1f"),
            ("cold", -1, "graphs", "d"),
        ):
            cells.append(" / ".join(format(rows[caches, side][at][field], form) for side in ("dense", "sparse")))
        most = 1.5 * rows["cold", "dense"][0]["cpu seconds"] + 10
        cells.insert(2, f"{most:.1f}")
        cells.append(f"{rows['cold', 'eager'][-1]['cpu seconds']:.1f}")
        lines.append(cells)
    heads = ["script", "first step, cold", "aim: at most", "first step, warm", "whole script, cold"]
    heads += ["whole script, warm", "graphs", "whole script, eager"]
    imports = ", ".join(f"`import {name}` {one['cpu seconds']:.1f}" for name, one in found["imports"].items())
    return _joined(
        table(heads, lines, numbers=True),
        f"CPU seconds of an import in a new process: {imports}.",
        source(found, "bench waiting"),
    )


def autocast() -> str:
    """The products of a layer, and whole steps, in bfloat16 beside dense ones in bfloat16."""
    found = read("autocast")
    lines = []
    for row in found["layers"]:
        ours, through = (row["kernels"][name] for name in ("bf16", "native"))
        shares = [f"{ours[what]['median']:.2f}" for what in ("forward", "input gradient", "weight gradient")]
        shape = " x ".join(map(str, row["shape"]))
        steps = [show(one["step"]) for one in (ours, through)]
        lines.append([shape, block_name(tuple(row["block"])), str(row["threads"]), *steps, *shares])
    heads = ["M x K x N", "block", "threads", "step", "through float32", "forward", "input gradient", "weight gradient"]
    sides = list(found["rows"][0]["ratios"])
    whole = [
        [row["says"], str(row["threads"]), *(show(row["ratios"][side]) for side in sides)] for row in found["rows"]
    ]
    given = found["arguments"]
    threads, models = (" ".join(map(str, given[name])) for name in ("threads", "model"))
    command = f"bench autocast --threads {threads} --model {models} --repeats {given['repeats']}"
    return _joined(
        table(heads, lines, numbers=True),
        "Whole steps, compiled by Inductor, as shares of dense bfloat16:",
        table(["model", "threads", *sides], whole, numbers=True),
        source(found, command),
    )


def steps() -> str:
    """Whole training steps, with the seconds of the first step, which compiles."""
    lines = []
    sources = []
    for name in ("step", "step-resnet50", "step-demo", "step-demo-avx2"):
        found = read(name)
        held = {"avx2": ", AVX2"}.get(found["machine"]["instruction set"]["topkast"], "")
        for row in found["rows"]:
            compiled = row["seconds to compile"]
            refresh = row["refresh"]
            lines.append(
                [
                    row["says"] + held,
                    block_name(tuple(row["block"])),
                    str(row["threads"]),
                    f"{row['bound of the model']:.2f}",
                    show(row["ratio"]),
                    f"{refresh['share of time']:.1%}",
                    f"{compiled['topkast']:.0f} s, {compiled['dense']:.0f} s",
                ]
            )
        given = found["arguments"]
        options = ["bench step", "--repeats", str(given["repeats"])]
        options += ["--threads", *map(str, given["threads"])]
        options += ["--block", *(block_name(tuple(block)) for block in given["block"])]
        options += ["--model", *given["model"]] * (name != "step")
        sources.append(source(found, " ".join(options)))
    heads = ["model and batch", "block", "threads", "bound", "sparse / dense", "refreshes", "first step: sparse, dense"]
    return _joined(table(heads, lines, numbers=True), *sources)


def estimated() -> str:
    """What ``topkast.estimate`` costs, and its ratio beside that of measured steps."""
    found = read("estimated")
    lines = []
    for row in found["rows"]:
        cost = [f"{row['seconds']['cpu']:.1f}", str(row["timed"])]
        ratios = [f"{row[ratio]:.2f}" for ratio in ("ratio", "measured ratio")]
        lines.append([row["says"], *cost, *ratios, "yes" if row["gains"] else f"no: {row['why']}"])
    heads = ["model, at 0.9/0.8", "CPU seconds of the answer", "products timed", "estimate, sparse / dense"]
    return _joined(
        table([*heads, "measured", "says that it gains"], lines, numbers=True),
        source(found, f"bench estimated --backend {found['arguments']['backend']}"),
    )


def memory() -> str:
    """Growth of resident memory while a model trains."""
    found = read("model")
    lines = []
    for way, row in found["ways"].items():
        says = "dense" if way == "dense" else f"topkast, reservoir {way!r}"
        share = f"{row.get('settled / dense', 1.0):.3f}"
        sizes = [f"{row[what] / 1e6:,.0f} MB" for what in ("settled", "counted", "peak of steps")]
        lines.append([says, share, *sizes])
    heads = ["training", "memory, share of dense", "memory", "counted from the tensors", "peak of the steps"]
    return _joined(table(heads, lines, numbers=True), source(found, "bench model"))


def large() -> str:
    """A model that dense training does not fit."""
    found = read("large")
    lines = [
        ["parameters", f"{found['parameters'] / 1e9:.2f} billion"],
        ["dense training state (computed)", _gb(found["dense training state"])],
        ["peak of resident anonymous memory", _gb(found["peak"])],
        ["reservoir, in a file on disk", _gb(found["reservoir on disk"])],
        ["time to build the model", f"{found['seconds to build']:.0f} s"],
        ["time of a step", f"{found['seconds of a step']:.1f} s"],
        ["time of a refresh", f"{found['seconds of a refresh']:.0f} s"],
    ]
    return _joined(table(["", "measured"], lines, numbers=True), source(found, "bench large"))


def onnx_layers() -> str:
    """One linear layer in ONNX Runtime, one table a number of threads."""
    found = read("onnx-layer")
    parts = []
    for threads in found["arguments"]["threads"]:
        mine = [cell for cell in found["layer"] if cell["threads"] == threads]
        kinds = list(dict.fromkeys((cell["format"], tuple(cell["block"])) for cell in mine))
        lines = []
        for sparsity in sorted({cell["sparsity"] for cell in mine}):
            cells = []
            for kind in kinds:
                own = [c for c in mine if (c["format"], tuple(c["block"])) == kind and c["sparsity"] == sparsity]
                mean = geomean(c["speed"]["median"] for c in own if c["m"] in MEANT)
                cells.append(f"{mean:.1f} ({min(c['speed']['median'] for c in own):.2f})")
            lines.append([str(sparsity), *cells])
        parts += [
            f"{_threads(threads).capitalize()}:",
            table(["sparsity", *(f"{format} {block_name(block)}" for format, block in kinds)], lines, numbers=True),
        ]
    return _joined(*parts, source(found, "bench onnx --tables layer"))


def onnx_models() -> str:
    """Whole models in ONNX Runtime."""
    lines = []
    files = [read(f"onnx-{name}") for name in ("gpt2", "bert", "vit", "resnet50")]
    for found in files:
        kinds = dict.fromkeys((row["format"], tuple(row["block"])) for row in found["model"])
        for format, block in kinds:
            rows = [r for r in found["model"] if (r["format"], tuple(r["block"])) == (format, block)]
            held = rows[0]["memory"]
            lines.append(
                [
                    rows[0]["says"],
                    f"{format} {block_name(block)}",
                    ", ".join(f"{row['latency']['median']:.2f}" for row in rows),
                    f"{rows[0]['bytes']['sparse'] / rows[0]['bytes']['dense']:.2f}",
                    f"{held['sparse']['held'] / held['dense']['held']:.2f}",
                    f"{rows[0]['load']['median']:.2f}",
                ]
            )
    heads = ["model and input", "format, block", "latency: one, two threads", "file", "memory", "load"]
    return _joined(table(heads, lines, numbers=True), source(files[0], "bench onnx --tables model"))


def tokens() -> str:
    """Generation with a key-value cache in ONNX Runtime."""
    found = read("tokens")
    lines = [
        [
            row["says"],
            row["kind"],
            side,
            _threads(row["threads"]),
            f"{one['tokens a second']['median']:.1f}",
            show(one["next token"]["ratio"]),
            show(one["first token"]["ratio"]),
            f"{one['bytes'] / row['sides']['dense fp32']['bytes']:.2f}",
        ]
        for row in found["rows"]
        for side, one in row["sides"].items()
    ]
    heads = ["model", "blocks", "file", "threads", "tokens a second", "a new token", "the prompt", "size"]
    given = found["arguments"]
    return _joined(
        table(heads, lines, numbers=True),
        source(found, f"bench tokens --kind {' '.join(given['kind'])} --precision {' '.join(given['precision'])}"),
    )


def int8_layers() -> str:
    """One layer in ONNX Runtime, float32 and int8, dense and sparse."""
    found = read("onnx-int8")
    parts = []
    for threads in dict.fromkeys(cell["threads"] for cell in found["int8"]):
        mine = [cell for cell in found["int8"] if cell["threads"] == threads]
        lines = [
            [kind, *(show(cell[base][kind]) for cell in mine for base in ("of dense fp32", "of dense int8"))]
            for kind in mine[0]["of dense fp32"]
        ]
        heads = [f"M = {cell['m']}, of dense {base}" for cell in mine for base in ("fp32", "int8")]
        parts += [f"{_threads(threads).capitalize()}:", table(["file", *heads], lines, numbers=True)]
    return _joined(*parts, source(found, f"bench onnx --tables int8 --repeats {found['arguments']['repeats']}"))


def int8_accuracy() -> str:
    """Bits per byte of trained models, dense and sparse, and what int8 adds."""
    found = read("int8-accuracy")
    return _joined(
        table(HEADS, accuracy_lines(found["accuracy"]), numbers=True), source(found, "bench int8 --tables accuracy")
    )


def int8_models() -> str:
    """Whole models in ONNX Runtime, dense and sparse, float32 and int8."""
    found = read("int8")
    sides = list(found["model"][0]["ratio"])[1:]
    lines = [
        [
            row["says"],
            _threads(row["threads"]),
            f"{row['bound']:.2f}",
            *(show(row["ratio"][side]) for side in sides),
            ", ".join(f"{row['weights'][side]:.3f}" for side in sides if side.endswith(", int8")),
        ]
        for row in found["model"]
    ]
    heads = ["model", "threads", "bound", *sides, "int8 weights' bytes, library and stock"]
    names = " ".join(row["model"] for row in found["model"])
    return _joined(table(heads, lines, numbers=True), source(found, f"bench int8 --tables model --model {names}"))


def source(found: Found, command: str) -> str:
    """The line below a table: command, machine and date of its figures."""
    machine = found["machine"]
    return (
        f"`python -m topkast.tools.{command}`, {machine['date'][:10]}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['instruction set']['torch']}, torch {machine['torch']}"
        + (f", ONNX Runtime {found['onnxruntime']}" if "onnxruntime" in found else "")
        + "."
    )


def _joined(*parts: str) -> str:
    return "\n\n".join(parts)


def _threads(count: int) -> str:
    return {1: "one thread", 2: "two threads"}.get(count, f"{count} threads")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
