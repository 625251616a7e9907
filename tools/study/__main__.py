"""Does it learn? Runs of a declared grid, and tables and plots of what came of them.

    run     train what the file of results does not hold yet
    time    measure the step of each kind of run with the real kernels, beside compiled dense, in pairs
    table   mean, deviation and 95 % interval over seeds, and the paired difference from one arm
    report  all grids of tools/study/grids: TABLES.md, and the SVGs of the page beside the results

A grid is a TOML file of tools/study/grids (its name is enough) or your own; results are JSON lines, one file for all
grids: a run that two of them share is trained once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from topkast.tools.common.arguments import positive
from topkast.tools.common.places import RESULTS

from .grid import Point, arms, chosen, read_grid
from .run_fields import StudyError
from .store import complete, read
from .times import read_times, times_of

HERE = Path(__file__).parent
FOLDER = RESULTS / "study"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; anything out of range ends in a usage message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "time", "table", "report"):
        command = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        if name != "report":
            command.add_argument("grid", help="a name in tools/study/grids, or the path of a TOML file")
        command.add_argument("--results", type=Path, default=FOLDER / "runs.jsonl.gz", help="file of results")
        command.add_argument("--times", type=Path, default=FOLDER / "times.json", help="file of measured times")
        if name in ("run", "time"):
            command.add_argument("--data", type=Path, help="file or folder of a task that has no data of its own")
            command.add_argument("--arms", nargs="+", help="only these; default: all of the grid")
        if name == "run":
            command.add_argument("--workers", type=positive, default=1, help="processes, one thread each")
        elif name == "time":
            command.add_argument("--repeats", type=positive, default=15, help="pairs of each figure")
            command.add_argument("--quick", action="store_true", help="without code generation: does everything run?")
        elif name == "table":
            command.add_argument("--against", help="the arm that the others are compared with")
    return parser.parse_args(argv)


def grid_path(name: str) -> Path:
    """Where the grid of that name or path lies."""
    return Path(name) if name.endswith(".toml") else HERE / "grids" / f"{name}.toml"


def train(grid: list[Point], args: argparse.Namespace, console: Console) -> int:
    """Train what is not in the file of results yet, the runs that choose an arm's rate first; 1 if a run failed."""
    failed = []
    for group in arms(grid):
        trials = [point.trial() for point in group if point.tuned]
        failed += complete(trials, args.results, args.workers, args.data, console)
    runs = [point.run for group in arms(grid) for point in chosen(group, read(args.results))]
    failed += complete(runs, args.results, args.workers, args.data, console)
    for line in failed:
        console.print(f"[red]failed:[/] {escape(line)}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        if args.command == "report":
            from .shown.whole_report import report  # what draws and counts needs packages that training does not

            report(HERE / "grids", FOLDER, read(args.results), args.times, console)
            return 0
        path = grid_path(args.grid)
        grid = read_grid(path, None if args.command == "time" else read_times(args.times))
        if args.command == "table":
            from .shown.estimates import rows
            from .shown.grid_tables import baseline, sheets

            found = rows(grid, read(args.results), times_of(path.stem, args.times))
            for sheet in sheets(found, args.against or baseline(found)):
                print(sheet.markdown())
            return 0
        known = dict.fromkeys(point.arm for point in grid)
        if unknown := set(args.arms or ()) - known.keys():
            raise StudyError(f"--arms {min(unknown)!r}: must be of {', '.join(known)}")
        grid = [point for point in grid if not args.arms or point.arm in args.arms]
        if args.command == "run":
            return train(grid, args, console)
        from .clock import measure_grid

        measure_grid(grid, args.times, args.repeats, "aot_eager" if args.quick else "inductor", args.data)
    except StudyError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
