"""The model card (``README.md``) of a shared folder: the report's headlines and its table of layers, as Markdown."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from topkast.compiler.report.facts import facts_of
from topkast.compiler.report.groups import layers_of
from topkast.compiler.report.headlines import headlines

HEADING = "## Sparse weights"
GENERATED = "automatically generated"  # in the card that transformers writes for the hub
FIRST_LINES = "---\ntags:\n- topkast\n- sparse\n---\n\n# A model with sparse weights\n"
LOADING = """\
This folder holds the dense model with W_A: weights outside the forward set A are zero. Every program that loads the
model's format can load it. The sets A and B and the values outside A are in `topkast.safetensors`:

```python
model = topkast.from_pretrained("this folder")  # sparse, ready to train on
```
"""


def add_card(folder: Path, model: nn.Module) -> None:
    """Add a section about sparse weights to the ``README.md`` that the library wrote, or write a new one. An older
    section is replaced.

    Args:
        folder: the folder of the model. A file of the user's own must not be in the folder.
        model: the converted model.
    """
    path = folder / "README.md"
    before, after = _around(path.read_text(encoding="utf-8")) if path.exists() else (FIRST_LINES, "")
    path.write_text(f"{before.rstrip()}\n\n{section(model)}{after}", encoding="utf-8")


def may_get_section(card: str) -> bool:
    """Whether a card that goes to the hub is a library's own or has our section, and is not the user's."""
    return GENERATED in card or HEADING in card


def _around(card: str) -> tuple[str, str]:
    """A card before and after our section; a new section comes last."""
    before, heading, rest = card.partition(HEADING)
    _, next_heading, after = rest.partition("\n## ")
    return before, next_heading + after if heading else ""


def section(model: nn.Module) -> str:
    """The section about sparse weights, as Markdown."""
    report = facts_of(model)
    options = {name: report.config[name] for name in ("method", "fwd", "bwd", "block", "refresh_every")}
    rows = [
        f"| {_cell(group.label)} | {group.shape} | {group.density} | {group.churn} |"
        for group in layers_of(report.sites)
    ]
    said = [f"- {label}: {text}" for label, text in headlines(report).items()]
    return "\n".join(
        [
            HEADING,
            "",
            LOADING,
            f"Trained by topkast for {report.totals['step']} steps: "
            + ", ".join(f"{name}={value!r}" for name, value in options.items())
            + ".",
            "",
            *said,
            "",
            "| layers | shape | in A, in B | new at the last refresh, in A, in B |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _cell(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")
