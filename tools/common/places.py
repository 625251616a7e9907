"""Where things lie in a clone."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tools" / "results"
README = ROOT / "README.md"
DOCS = ROOT / "docs"
