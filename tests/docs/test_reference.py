"""Every public name has its entry in the reference, once."""

from __future__ import annotations

import re
from collections import Counter
from types import ModuleType

import topkast
from topkast.tools.common.places import DOCS


def entries() -> Counter[str]:
    """The names for which docs/reference has an entry, with their number."""
    found: Counter[str] = Counter()
    for page in sorted((DOCS / "reference").glob("*.md")):
        module = ""
        for kind, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(encoding="utf-8"), re.M):
            if kind == "currentmodule":
                module = name
            elif kind.startswith("auto"):
                found[f"{module}.{name}"] += 1
    return found


def test_every_public_name_has_one_entry() -> None:
    wanted = {f"topkast.{name}" for name in topkast.__all__ if not isinstance(getattr(topkast, name), ModuleType)}
    modules = [name for name in topkast.__all__ if isinstance(getattr(topkast, name), ModuleType)]
    assert modules == ["onnx", "topology", "watch"]
    wanted |= {f"topkast.{module}.{name}" for module in modules for name in getattr(topkast, module).__all__}
    found = entries()
    assert wanted - set(found) == set()
    assert [name for name, number in found.items() if number > 1] == []
