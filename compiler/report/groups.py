"""Group weights that are equal except for numbers in their names, such as the same layer of each transformer block."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from .numbers import plural

NUMBER = re.compile(r"\d+")
FEW = 4  # names that are listed


def grouped(names: Iterable[str], equal: Mapping[str, Hashable] | None = None) -> list[list[str]]:
    """Groups of names, in the order of their first names.

    Args:
        names: names of parameters.
        equal: name -> a value that must be the same for all names of a group; None: nothing else must be the same.
    """
    found: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        found[NUMBER.sub("*", name), equal[name] if equal is not None else None].append(name)
    return list(found.values())


def label(names: list[str]) -> str:
    """The names of a group as one text, for example ``12 × encoder.layer.*.attention.self.query.weight``. A number that
    all names share stays; ``*`` stands for other numbers."""
    if len(names) == 1:
        return names[0]
    numbers = zip(*(NUMBER.findall(name) for name in names), strict=True)
    shown = [found[0] if len(set(found)) == 1 else "*" for found in numbers]
    pattern = "".join(text + number for text, number in zip(NUMBER.split(names[0]), [*shown, ""], strict=True))
    return f"{len(names)} × {pattern}"


def layer(name: str) -> str:
    """The name of a weight's layer: the name, or the label of names, without the attribute ``weight`` at its end."""
    return name.removesuffix(".weight")


def by_kind(counts: Mapping[str, int]) -> list[tuple[int, str]]:
    """(count, text), the largest count first. Texts that differ only in numbers are one, and the first is the
    example."""
    kinds = dict[str, list[str]]()
    for text in counts:
        kinds.setdefault(NUMBER.sub("*", text), []).append(text)
    found = [(sum(counts[text] for text in texts), texts) for texts in kinds.values()]
    found.sort(key=lambda one: -one[0])
    return [(total, texts[0] if len(texts) == 1 else f"such as: {texts[0]}") for total, texts in found]


def with_counts(found: list[tuple[int, str]], shown: int, noun: str = "") -> str:
    """The first reasons of :func:`by_kind` in one line, each with its count, and the count of all others.

    Args:
        found: (count, reason).
        shown: how many reasons are named.
        noun: what is counted; "" for the number alone.
    """
    rest = sum(number for number, _ in found[shown:])
    parts = [*found[:shown], *([(rest, "other reasons")] if rest else [])]
    return ", ".join(f"{plural(number, noun) if noun else number} ({why})" for number, why in parts)


@dataclass(frozen=True)
class Layers:
    """Sparse weights of the same shape, blocks and ops whose names differ only in numbers.

    Args:
        rows: the weights, as :class:`topkast.compiler.report.facts.Facts` holds them.
    """

    rows: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """The names as one text. Names that are only numbers, as in ``nn.Sequential``, are listed if they are few."""
        names = [row["name"] for row in self.rows]
        numbers = [layer(name) for name in names]
        return ", ".join(numbers) if len(names) <= FEW and all(map(str.isdigit, numbers)) else layer(label(names))

    @property
    def shape(self) -> str:
        """The shape of each weight."""
        return "×".join(map(str, self.rows[0]["shape"]))

    @property
    def numel(self) -> int:
        """The number of entries of all weights of the group."""
        return len(self.rows) * prod(self.rows[0]["shape"])

    @property
    def density(self) -> str:
        """The shares of the entries that are in A and in B."""
        return ", ".join(_between([row[key] for row in self.rows]) for key in ("density_a", "density_b"))

    @property
    def ran(self) -> str:
        """The kernels that ran; if they are not the same for all weights, with the number of weights."""
        counts = Counter(ran(row) for row in self.rows)
        if len(counts) == 1:
            return next(iter(counts))
        return "; ".join(f"{text} in {count}" for text, count in counts.most_common())

    @property
    def churn(self) -> str:
        """The mean shares of A and of B that were new at the last refresh."""
        last = [row["churn"][-1] for row in self.rows if row["churn"]]
        return ", ".join(f"{sum(c[key] for c in last) / len(last):.1%}" for key in ("new_a", "new_b")) if last else "-"


def layers_of(sites: list[dict[str, Any]]) -> list[Layers]:
    """The groups of the sparse weights, those with the most entries first."""
    rows = {row["name"]: row for row in sites}
    equal = {name: (*row["shape"], "|", *row["block"], row["balanced"], *row["ops"]) for name, row in rows.items()}
    found = [Layers([rows[name] for name in names]) for names in grouped(rows, equal)]
    return sorted(found, key=lambda layers: -layers.numel)


def ran(row: dict[str, Any]) -> str:
    """The kernels that ran one weight's products, and the reasons why other uses of the weight were not fused.

    For example "native", "native, dense for weight gradient", "not fused (eager)" or "not run yet".
    """
    kernels = {product: " or ".join(found) for product, found in row["fused"].items()}
    counts = Counter(kernels.values()).most_common()
    parts = [kernel for kernel, _ in counts[:1]]
    for kernel, _ in counts[1:]:
        parts.append(f"{kernel} for {' and '.join(name for name, used in kernels.items() if used == kernel)}")
    parts += [f"not fused ({why})" for why in dict.fromkeys(entry["why"] for entry in row["unfused"])]
    return ", ".join(parts) or "not run yet"


def _between(shares: list[float]) -> str:
    """One percentage, or the lowest and the highest."""
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return low if low == high else f"{low} to {high}"


def at_dots(name: str, width: int) -> str:
    """The name in lines of at most ``width`` characters, broken after its dots; only a longer part is broken elsewhere,
    by the console."""
    lines = [""]
    for part in re.findall(r"[^.]*\.|[^.]+$", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
