"""Run the README's lines with the interpreter of an environment in which a wheel was installed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .readme_lines import SHOW, readme_lines, run_in_emptiness


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status of the README's lines."""
    parser = argparse.ArgumentParser(prog="python -m topkast.tools.release", description=__doc__)
    parser.add_argument("python", type=Path, help="the interpreter of the environment, such as build/try/bin/python")
    args = parser.parse_args(argv)
    begin = time.perf_counter()
    done = run_in_emptiness(args.python, readme_lines() + SHOW)
    print(done.stdout + done.stderr)
    print(f"exit status {done.returncode} after {time.perf_counter() - begin:.0f} s")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
