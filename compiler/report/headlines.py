"""The facts about a whole model in one short sentence each, for the screen and for the page."""

from __future__ import annotations

from collections import Counter
from math import prod
from textwrap import shorten

from .facts import Facts
from .groups import NUMBER, by_kind, grouped, label, layer, with_counts
from .numbers import count, plural, share, size

LINE = 70  # characters that the reasons why parameters stayed dense may take


def title(report: Facts) -> str:
    """The model's clock and how it trains."""
    after = plural(report.totals["step"], "step")
    return f"topkast.report after {after} (method: {report.config['method']}; backend: {report.backend})"


def headlines(report: Facts) -> dict[str, str]:
    """Sentences about density, memory, FLOPs, the refresh and the dense parameters, by a short label."""
    totals = report.totals
    flops, sites, model = totals["flops"], totals["bytes"]["sites"], totals["bytes"]["model"]
    if not report.sites:
        return {"density": "no weight is sparse: every sparse layer was removed from the model", **_dense(report)}
    training = share(flops["sparse_training"], flops["dense_training"])
    forward = share(flops["sparse_forward"], flops["dense_forward"])
    ranks = totals["bytes"]["ranks"]
    here = f" on this rank of {ranks['number']}" if ranks else ""
    bytes_now = f"sparse layers {share(sites['sparse'], sites['dense'])} of dense ({size(sites['sparse'])}{here})"
    whole = f", whole model {share(model['sparse'], model['dense'])} ({size(model['sparse'])})"
    if totals["for_inference"]:
        return {
            "density": f"{_density(report)}, loaded for inference only",
            "memory": bytes_now + whole,
            "FLOPs": f"sparse layers {forward} of dense in a forward",
            **_dense(report),
        }
    return {
        "density": _density(report),
        "memory": bytes_now + (whole if model["optimizer_seen"] else "; no optimizer step yet"),
        "FLOPs": f"sparse layers {training} of dense in a training step, {forward} in a forward",
        "refresh": _refresh(report),
        **_dense(report),
    }


def alike(report: Facts) -> list[str]:
    """The warnings in their order; warnings that say the same of several weights, except for numbers, are one."""
    names, found = {row["name"] for row in report.sites}, dict[tuple[str, str], list[tuple[str, str]]]()
    for text in report.warnings:
        name, _, said = text.partition(": ")
        key = ("weight", NUMBER.sub("*", said)) if name in names else ("model", text)
        found.setdefault(key, []).append((name, said))
    return [_one(of_weights) if kind == "weight" else text for (kind, text), of_weights in found.items()]


def _one(warnings: list[tuple[str, str]]) -> str:
    """One text for (name, sentence) of similar warnings: the first sentence, and to which weights it applies."""
    (name, said), *others = warnings
    if not others:
        return f"{layer(name)}: {said}"
    same = len({text for _, text in warnings}) == 1
    groups = grouped(name for name, _ in warnings)
    if same and len(groups) == 1:
        return f"{layer(label(groups[0]))}: {said}"
    more = "the same of" if same else "similar:"
    return f"{layer(name)}: {said}; {more} {plural(len(others), 'more weight')}"


def _density(report: Facts) -> str:
    sizes = [prod(row["shape"]) for row in report.sites]
    a, b = (
        sum(row[key] * numel for row, numel in zip(report.sites, sizes, strict=True)) / sum(sizes)
        for key in ("density_a", "density_b")
    )
    layers = plural(len(report.sites), "layer")
    if report.totals["for_inference"]:
        return f"A (forward) {a:.1%} of {count(sum(sizes))} weights in {layers}"
    return f"A (forward) {a:.1%}, B (backward) {b:.1%} of {count(sum(sizes))} weights in {layers}"


def _refresh(report: Facts) -> str:
    """The steps of the last and the next refresh, and the churn."""
    last, coming = report.totals["refresh"]["last"], report.totals["refresh"]["next"]
    churn = report.totals["churn"]
    if churn is None:
        return "none: A and B stay as they are" if coming is None else f"none yet, next at step {coming}"
    if coming is None:
        then = "no other will come"
    else:
        then = "the next is due now" if coming <= report.totals["step"] else f"next at {coming}"
    return f"last at step {last}, {then}; churn: {churn['new_a']:.1%} of A, {churn['new_b']:.1%} of B"


def reasons(report: Facts) -> list[tuple[int, str]]:
    """(number of parameters, why they stayed dense), the most frequent first."""
    return by_kind(Counter(report.dense.values()))


def _dense(report: Facts) -> dict[str, str]:
    """The number of dense parameters, and the most frequent reasons, in one line."""
    found, text = reasons(report), ""
    for shown in range(len(found), 0, -1):
        text = f"{plural(len(report.dense), 'parameter')}: {with_counts(found, shown)}"
        if len(text) <= LINE:
            break
    return {"dense": shorten(text, 2 * LINE, placeholder=" …")} if text else {}
