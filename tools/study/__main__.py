"""Does it learn? Runs of a declared grid, and tables and plots of what came of them.

    run     train what the file of results does not hold yet
    time    measure the step of each kind of run with the real kernels, beside compiled dense, in pairs
    table   mean, deviation and 95 % interval over seeds, and the paired difference from one arm
    plot    quality against density, FLOPs, measured time and bytes, one SVG
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
PICTURES = ("tuned", "frontier", "rivals", "range-balanced", "rates")  # grids whose picture is kept


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; anything out of range ends in a usage message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "time", "table", "plot", "report"):
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
        elif name == "plot":
            command.add_argument("--out", type=Path, default=Path("build/study"), help="folder for the picture")
    return parser.parse_args(argv)


def grid_path(name: str) -> Path:
    """Where the grid of that name or path lies."""
    return Path(name) if name.endswith(".toml") else HERE / "grids" / f"{name}.toml"


def train(grid: list[Point], args: argparse.Namespace, console: Console) -> int:
    """What is not in the file of results yet; 1 if a run failed."""
    failed = []
    if any(point.tuned for point in grid):  # an arm's rate decides what is run for the seeds
        for group in arms(grid):
            trials = [point.trial() for point in group if point.tuned]
            failed += complete(trials, args.results, args.workers, args.data, console)
            points = chosen(group, read(args.results))
            failed += complete([point.run for point in points], args.results, args.workers, args.data, console)
    else:
        failed = complete([point.run for point in grid], args.results, args.workers, args.data, console)
    for line in failed:
        console.print(f"[red]failed:[/] {escape(line)}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def show(grid: list[Point], args: argparse.Namespace, console: Console) -> None:
    """The tables or the picture of one grid."""
    # What draws and counts needs packages that training does not.
    from topkast.tools.study.shown.estimates import rows
    from topkast.tools.study.shown.grid_tables import baseline, sheets

    found = rows(grid, read(args.results), times_of(grid_path(args.grid).stem, args.times))
    if args.command == "table":
        for sheet in sheets(found, args.against or baseline(found)):
            console.print(sheet.rich())
        return
    from topkast.tools.study.shown.plot import plot

    name = grid_path(args.grid).stem
    written = plot(found, name, args.out / f"{name}.svg")
    console.print(f"wrote {written}" if written else "nothing of this grid was run", highlight=False)


def report(args: argparse.Namespace, console: Console) -> None:
    """Every table and picture that is kept in the repository."""
    from topkast.tools.study.shown.estimates import compared, rows
    from topkast.tools.study.shown.plot import plot
    from topkast.tools.study.shown.whole_report import tables

    held = read(args.results)
    text = tables(HERE / "grids", held, args.times, FOLDER / "topology")
    (FOLDER / "TABLES.md").write_text(text, encoding="utf-8")
    for old in FOLDER.glob("*.svg"):  # one of a grid that is gone, or of results that are, would stay
        old.unlink()
    for path in sorted(path for path in (HERE / "grids").glob("*.toml") if path.stem in PICTURES):
        try:
            times = times_of(path.stem, args.times)
            found = rows(read_grid(path, times), held, times)
        except StudyError as error:
            console.print(f"[yellow]left out:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            continue
        if written := plot(compared(found), path.stem, FOLDER / f"{path.stem}.svg"):
            console.print(f"wrote {written}", highlight=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        if args.command == "report":
            report(args, console)
            return 0
        times = None if args.command == "time" else read_times(args.times)
        grid = read_grid(grid_path(args.grid), times)
        if args.command in ("run", "time"):
            known = dict.fromkeys(point.arm for point in grid)
            if unknown := set(args.arms or ()) - known.keys():
                raise StudyError(f"--arms {min(unknown)!r}: must be of {', '.join(known)}")
            grid = [point for point in grid if not args.arms or point.arm in args.arms]
        if args.command == "run":
            return train(grid, args, console)
        if args.command == "time":
            from .clock import measure_grid

            measure_grid(grid, args.times, args.repeats, "aot_eager" if args.quick else "inductor", args.data)
        else:
            show(grid, args, console)
    except StudyError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
