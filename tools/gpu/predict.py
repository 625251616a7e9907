"""The tables of :mod:`topkast.tools.gpu.predicted_times`: layers, whole decoders, and checks of the model.

python -m topkast.tools.gpu.predict              compiles for sm_90 (10 s), prints the tables, writes JSON
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import CONSOLE, machine, write

from .predicted_times import MACHINES, PRODUCTS, Machine, Shape, dense, layer, product

SIDES = (32, 64, 128)
ATTENTION = 400e12  # FLOP/s of flash attention, forward and backward; reckoned
LAUNCHED = 7e-6  # seconds of the host for one ATen launch; measured on a CPU as 35-40 ms for 5,300
HOSTED = (52e-6, 127e-6)  # seconds of the host for one sparse product; measured on a CPU
DECAYS = 53  # ATen launches of the decay for each site and step


@dataclass(frozen=True)
class Model:
    """A decoder as GPT-2 has it, with MLPs of four times the width, on 8 x 1024 tokens."""

    layers: int
    width: int
    vocabulary: int = 50304
    tokens: int = 8192
    sequence: int = 1024

    @property
    def shapes(self) -> list[Shape]:
        w = self.width
        return [Shape(self.tokens, k, n) for k, n in ((w, 3 * w), (w, w), (w, 4 * w), (4 * w, w))]

    @property
    def weights(self) -> int:
        return self.layers * sum(shape.k * shape.n for shape in self.shapes)

    @property
    def others(self) -> int:
        return (self.vocabulary + self.sequence) * self.width


MODELS = {"125M": Model(12, 768), "350M": Model(24, 1024), "1.3B": Model(24, 2048), "7B": Model(32, 4096)}

# What the audit of 2026-11-28 reckoned by hand: (product or step, side, M, K, N) -> low, high. No measurement.
AUDIT = {
    ("spmm", 128, 8192, 4096, 4096): (0.21, 0.26),
    ("spmm_t", 128, 8192, 4096, 4096): (0.24, 0.29),
    ("sddmm", 128, 8192, 4096, 4096): (0.35, 0.46),
    ("step", 128, 8192, 4096, 4096): (0.27, 0.33),
    ("spmm", 64, 8192, 4096, 4096): (0.35, 0.44),
    ("spmm_t", 64, 8192, 4096, 4096): (0.37, 0.47),
    ("sddmm", 64, 8192, 4096, 4096): (0.63, 0.84),
    ("step", 64, 8192, 4096, 4096): (0.45, 0.58),
    ("spmm", 32, 8192, 4096, 4096): (0.66, 0.83),
    ("spmm_t", 32, 8192, 4096, 4096): (0.56, 0.71),
    ("step", 128, 8192, 2048, 2048): (0.71, 0.90),
}


def compiled() -> dict[str, Any]:
    """ "product side" -> facts of the kernel for bfloat16 and many rows, compiled for sm_90."""
    from topkast.runtime.triton.configs import table

    from .compiled import facts
    from .compiled import product as build

    found = {}
    for name in PRODUCTS:
        for side in SIDES:
            tile, depth, *_ = table()["sm_90"][name]["half"][str(side)]["large"]
            found[f"{name} {side}"] = facts(build(name, side, "bf16", "large", 90)[0]) | {"tile": tile, "depth": depth}
    return found


def step(model: Model, side: int | None, found: dict[str, Any], gpu: Machine, decay: int = DECAYS) -> list[float]:
    """Seconds of a training step at 0.9/0.8, fast and slow; dense if ``side`` is None.

    Args:
        decay: launches of the decay for each site; 0: one for all sites.
    """
    sites = model.layers * len(model.shapes)
    head = 3 * dense(Shape(model.tokens, model.width, model.vocabulary), gpu)
    logits = 20 * model.tokens * model.vocabulary / gpu.memory
    attention = 3.5 * model.layers * 2 * model.tokens * model.sequence * model.width / ATTENTION
    # 48 bytes a number of the width in the forward (norms, sums, GELU, permutes), twice that in the backward.
    elementwise = 144 * model.tokens * model.width * model.layers / gpu.memory
    update = 28 + 12  # AdamW in float32; for the dense model also the casts of weights and gradients
    rest = head + logits + attention + elementwise + update * model.others / gpu.memory
    if side is None:
        products = 3 * model.layers * sum(dense(shape, gpu) for shape in model.shapes)
        return [rest + products + update * model.weights / gpu.memory] * 2
    result = []
    for cache, hosted in zip(reversed(gpu.cache), HOSTED, strict=True):
        products = model.layers * sum(
            product(name, side, shape, 0.9, 0.8, found[f"{name} {side}"], gpu, cache)
            for shape in model.shapes
            for name in PRODUCTS
        )
        small = (sites * decay or 1) * 2.5e-6 + 16 * 0.2 * model.weights / gpu.memory
        device = rest + products + 28 * 0.2 * model.weights / gpu.memory + small
        host = sites * (3 * hosted + decay * LAUNCHED)
        result.append(max(device, host))
    return result


def state(model: Model) -> float:
    """Parameters, gradients and AdamW's state over the dense ones, the reservoir on the host."""
    return (0.2 * model.weights + model.others) / (model.weights + model.others)


def checks(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The model beside every figure there is, and which kind of figure it is."""
    gpu = MACHINES["H200"]
    cube = Shape(8192, 8192, 8192)
    rows: list[dict[str, Any]] = [
        {"what": "H200, 8192 cubed dense, TFLOP/s", "kind": "measured; an input of the model",
         "figure": [790, 790], "model": [round(2 * 8192**3 / dense(cube, gpu) / 1e12)] * 2},
    ]  # fmt: skip
    for (name, side, *sizes), bounds in AUDIT.items():
        mine = layer(side, Shape(*sizes), found, gpu)[name]
        what = f"{name}, block {side}, M, K, N = {sizes}, over dense"
        rows.append({"what": what, "kind": "reckoned by hand", "figure": list(bounds), "model": _round(mine)})
    whole = 1e3 * step(MODELS["1.3B"], None, found, gpu)[0]
    rows.append({"what": "1.3B dense step, ms", "kind": "reckoned by hand", "figure": [122, 122],
                 "model": [round(whole)] * 2})  # fmt: skip
    return rows


def _round(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def tables(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each GPU, decoder and block."""
    rows = []
    for gpu in MACHINES.values():
        for name, model in MODELS.items():
            plain = step(model, None, found, gpu)[0]
            for side in SIDES:
                now, fewer = (step(model, side, found, gpu, decay) for decay in (DECAYS, 0))
                rows.append({
                    "gpu": gpu.name, "model": name, "block": side, "dense ms": round(1e3 * plain, 1),
                    "53 launches": _round([one / plain for one in now]),
                    "one launch": _round([one / plain for one in fewer]), "state": round(state(model), 3),
                })  # fmt: skip
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of :func:`tables` as the docs show it."""
    lines = ["| GPU | decoder | block | dense step | sparse / dense, 53 launches of decay | one launch | state |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in rows:
        spans = ("{:.2f}-{:.2f}".format(*row[key]) for key in ("53 launches", "one launch"))
        first = f"| {row['gpu']} | {row['model']} | {row['block']} | {row['dense ms']:.0f} ms | "
        lines.append(first + " | ".join(spans) + f" | {row['state']:.2f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    found = compiled()
    rows, compared = tables(found), checks(found)
    CONSOLE.print(markdown(rows), highlight=False, soft_wrap=True)
    for row in compared:
        CONSOLE.print(row, highlight=False, soft_wrap=True)
    write(args.out / "gpu-estimates.json", machine(), {}, {"compiled": found, "checks": compared, "estimates": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
