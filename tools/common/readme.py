"""Make the README's table of arguments again, from the records of the options.

python -m topkast.tools.common.readme
"""

from __future__ import annotations

from topkast.compiler.compile import ARGUMENTS
from topkast.compiler.describe import table

from .places import README

MARKS = "<!-- arguments: made by `python -m topkast.tools.common.readme` -->", "<!-- arguments: end -->"


def with_table(page: str) -> str:
    """The page with the table made again between :data:`MARKS`."""
    before, rest = page.split(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{table(ARGUMENTS)}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
