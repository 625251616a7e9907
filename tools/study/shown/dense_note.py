"""What stands below a table that compares with a dense arm: its one learning rate holds it back.

The figures are of trials on the study's own code, three seeds; they are not in ``runs.jsonl``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .estimates import Row

SPLIT = (
    "With split rates (matrices at 2e-3, the rest at 16e-3; a trial on the study's own code, three seeds, not in the "
)
# (task, steps) -> what split rates gave.
TRIALS = {
    (
        "bytes",
        300,
    ): f"{SPLIT}stored grids) dense ends at 2.981, 3.057 and 3.000, 0.118 ± 0.098 better than at one rate.",
    ("bytes", 1500): f"{SPLIT}stored grids) dense ends at 2.188, 2.176 and 2.175 and leads default Top-KAST (2.348) by "
    "0.169 ± 0.032.",
}
UNTRIED = (
    "Split rates were not tried here; on the bytes at 300 steps they gain dense 0.118 ± 0.098 (a trial, three seeds)."
)
ALIKE = ("small-dense", "gmp")


def caption(found: Sequence[Row]) -> str:
    """For the rows of one table; empty where no dense model is among them."""
    ran = {row.arm: row for row in found if row.costs}
    alike = [arm for arm in ALIKE if arm in ran]
    parts = []
    if "dense" in ran:
        dense, ours = ran["dense"], ran.get("topkast")
        parts.append(f"dense has one learning rate, {dense.lr:g}, for its norms, embeddings and biases too")
        parts[0] += f", where topkast has {ours.lr:g}." if ours is not None and ours.lr > dense.lr else "."
        parts.append(TRIALS.get((dense.task, dense.steps), UNTRIED))
    if alike:
        one = len(alike) == 1
        parts.append(
            f"{' and '.join(alike)} {'is' if one else 'are'} likely under-tuned in the same way; that was not tried."
        )
    return " ".join(parts)
