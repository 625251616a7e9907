"""Questions and answers from docstrings: the first sentence is the question, the rest is the answer."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("numpy", "scipy", "networkx", "torch")  # topkast itself needs them, so they are installed
WORDS = (5, 20)  # the fewest words of a question and of an answer
NODES = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)


def pairs(packages: tuple[str, ...] = PACKAGES) -> list[tuple[str, str]]:
    """(question, answer) of every function and class with a long docstring, in an order that is random but fixed."""
    found = {question: answer for package in packages for question, answer in _of(package)}
    return sorted(found.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest())


def _of(package: str) -> Iterator[tuple[str, str]]:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        if "test" in path.name or "tests" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            text = (ast.get_docstring(node) or "") if isinstance(node, NODES) else ""
            question, _, answer = text.partition("\n\n")
            if len(question.split()) >= WORDS[0] and len(answer.split()) >= WORDS[1]:
                yield " ".join(question.split()), " ".join(answer.split())
