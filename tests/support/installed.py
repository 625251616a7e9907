"""An environment that holds a wheel and what the wheel asks for, without a download: the packages are links."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def environment(folder: Path, wheel: Path | None) -> Path:
    """Make an environment and install a wheel in it, without what the wheel asks for; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    if wheel is None:
        return python
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True, stdin=subprocess.DEVNULL)
    return python


def link_requirements(folder: Path, extra: str = "") -> list[str]:
    """Link the packages that topkast asks for in an environment, and all that these ask for, from this environment.

    Args:
        folder: the environment, in which topkast's wheel is installed.
        extra: the extra of topkast that is wanted too; "" for none.

    Returns:
        The names of the packages.
    """
    (site,) = folder.glob("lib/python*/site-packages")
    (record,) = site.glob("topkast-*.dist-info")
    return link(folder, _required(Distribution.at(record).requires or (), extra))


def link(folder: Path, names: Iterable[str]) -> list[str]:
    """Link packages, and all that these ask for, from this environment; return the names of all.

    Args:
        folder: the environment.
        names: the packages.
    """
    (site,) = folder.glob("lib/python*/site-packages")
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = distribution(name)
            waiting += _required(found[name].requires or (), "")
    for package in found.values():
        for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = site / top
            if not link.is_symlink():
                link.symlink_to(Path(str(package.locate_file(top))).resolve())
    return sorted(found)


def _required(requirements: Iterable[str], extra: str) -> Iterator[str]:
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement.name
