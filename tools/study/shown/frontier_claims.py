"""Is there a sparse model that beats dense 128, or equals it for less? Four claims, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .estimates import Row
from .grid_tables import Sheet

BASE, SPARSE = "dense 128", "topkast"


@dataclass(frozen=True)
class Claim:
    """Some sparse model costs at most ``most`` of dense 128, and the upper 95 % bound of the paired difference of their
    qualities, in bits, is at most ``bound``."""

    letter: str
    says: str
    cost: str
    most: float
    bound: float


CLAIMS = (
    Claim("a", "better, in at most its training time", "time", 1.0, 0.0),
    Claim("b", "within 0.02 bits, in at most 0.6 of its training time", "time", 0.6, 0.02),
    Claim("c", "within 0.02 bits, with at most 0.5 of its training state", "bytes", 0.5, 0.02),
    Claim("d", "within 0.02 bits, in a file of at most 0.35 of its size", "file", 0.35, 0.02),
)


def claims(found: Sequence[Row]) -> Sheet:
    """A line a claim. The sparse arm with the best tuning run, among those that cost little enough, speaks for it, so
    the choice has not seen the figures that answer."""
    base = next((row for row in found if row.arm == BASE), None)
    sparse = [row for row in found if row.arm.startswith(SPARSE)]
    headings = ["some sparse model is, beside tuned dense 128", "answer", "by", "its share", "difference, bits"]
    return Sheet("", headings, [[f"({claim.letter}) {claim.says}", *_answer(claim, base, sparse)] for claim in CLAIMS])


def _answer(claim: Claim, base: Row | None, sparse: Sequence[Row]) -> list[str]:
    nothing = ["not run yet", "", "", ""]
    if base is None or claim.cost not in base.costs:
        return nothing
    most = claim.most * base.costs[claim.cost]
    # An arm that was measured to cost more answers nothing, whether it was run or not.
    able = [row for row in sparse if (row.measured | row.costs).get(claim.cost, 0.0) <= most]
    if not able:
        return ["no: none costs so little", "", "", ""]
    ran = [row for row in able if claim.cost in row.costs and _paired(row, base)]
    if not ran:
        return nothing
    best = min(ran, key=lambda row: row.mean() if row.tuned is None else row.tuned)
    gap = best.against(base)
    assert gap is not None
    upper = gap.mean + gap.half
    holds = upper < 0 if claim.bound == 0 else upper <= claim.bound
    some = "" if len(ran) == len(able) else f", of the {len(ran)} of {len(able)} such arms run so far"
    share = best.costs[claim.cost] / base.costs[claim.cost]
    return ["yes" if holds else f"no{some}", best.arm, f"{share:.2f}", f"{gap.mean:+.3f} ± {gap.half:.3f}"]


def _paired(row: Row, base: Row) -> bool:
    """Whether every seed of both was run, and enough ended well for an interval."""
    return not row.missing and not base.missing and len(row.qualities.keys() & base.qualities.keys()) > 1
