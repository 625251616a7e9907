"""The answer of a command: data for ``--json``, and what a person sees."""

from __future__ import annotations

import json
import sys
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 140  # columns if the output is no terminal, where rich would take 80


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Args:
        data: everything that was found, as JSON can hold it.
        shown: tables and sentences, for a person.
        status: the exit status of the command.
    """

    data: dict[str, Any]
    shown: list[Table | str] = field(default_factory=list)
    status: int = 0


def harmless(text: object) -> str:
    """Text with its control characters written as escapes, so that a file's content cannot command a terminal."""
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def cell(value: object) -> Text:
    """A cell of a table. Its content comes from a file, so neither markup nor control characters count."""
    return Text(harmless(value))


def print_answer(answer: Answer, as_json: bool) -> None:
    """Print an answer to standard output.

    Args:
        answer: what a command found.
        as_json: True prints the data as one JSON object, False prints tables and sentences.
    """
    if as_json:
        print(json.dumps(answer.data, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for part in answer.shown:
        if isinstance(part, str):
            lines = "\n".join(map(harmless, part.splitlines()))
            console.print(lines, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(part)
