"""Does it learn? Runs of a declared grid, and tables and plots of what came of them.

    run    train what the file of results does not hold yet
    table  mean, deviation and 95 % interval over seeds, and the paired difference from one arm
    plot   quality against density, FLOPs, measured time and bytes, one PNG a task

A grid is a TOML file of tools/grids (its name is enough) or your own; results are JSON lines, one file for all
grids: a run that two of them share is trained once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _arguments import positive
from _study_run import Run, StudyError, read_grid
from _study_store import complete, read
from rich.console import Console
from rich.markup import escape

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "study" / "runs.jsonl"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; anything out of range ends in a usage message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table", "plot"):
        command = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_argument("grid", help="a name in tools/grids, or the path of a TOML file")
        command.add_argument("--results", type=Path, default=RESULTS, help="file of results")
        if name == "run":
            command.add_argument("--workers", type=positive, default=1, help="processes, one thread each")
            command.add_argument("--data", type=Path, help="file or folder of a task that has no data of its own")
        elif name == "table":
            command.add_argument("--against", default="topkast", help="the arm that the others are compared with")
        else:
            command.add_argument("--out", type=Path, default=Path("build/study"), help="folder for the pictures")
    return parser.parse_args(argv)


def grid_path(name: str) -> Path:
    """Where the grid of that name or path lies."""
    return Path(name) if name.endswith(".toml") else HERE / "grids" / f"{name}.toml"


def density(run: Run) -> float:
    """Forward density, for the plots."""
    return 1 - (run.fwd or 0.0)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 150)
    path = grid_path(args.grid)
    try:
        grid = read_grid(path)
        if args.command == "run":
            failed = complete([run for _, run in grid], args.results, args.workers, args.data, console)
            for line in failed:
                console.print(f"[red]failed:[/] {escape(line)}", highlight=False, soft_wrap=True)
            return 1 if failed else 0
        # What draws and counts needs packages that training does not.
        from _study_table import rows, tables

        found = rows(grid, read(args.results))
        if args.command == "table":
            for table in tables(found, args.against):
                console.print(table)
        else:
            from _study_plot import plot

            for written in plot(found, {arm: density(run) for arm, run in grid}, args.out):
                console.print(f"wrote {written}", highlight=False)
    except StudyError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
