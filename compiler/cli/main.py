"""The command ``topkast``."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version

from . import clear_cache, doctor, export_checkpoint, inspect_file, report_checkpoint
from .answer import Answer, harmless, print_answer

# Each module has NAME, HELP, EXAMPLES, add_arguments(parser) and answer(args).
COMMANDS = (inspect_file, report_checkpoint, export_checkpoint, doctor, clear_cache)


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit status: 0 if the command could do its work, 1 if ``doctor`` found that something is missing, 2 if a
        file or an argument is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="topkast",
        description="Look into files of topkast, export checkpoints, and check an installation.",
        epilog="examples:\n" + "\n".join(f"  {line}" for command in COMMANDS for line in command.EXAMPLES[:1]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"topkast {version('topkast')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog="examples:\n" + "\n".join(f"  {line}" for line in command.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
        sub.set_defaults(answer=command.answer)
    args = parser.parse_args(argv)
    answer = _answered(args)
    print_answer(answer, args.json)
    return answer.status


def _answered(args: argparse.Namespace) -> Answer:
    """The command's answer, or its error as an answer of status 2."""
    try:
        found: Answer = args.answer(args)
    except (OSError, ValueError, RuntimeError, TypeError, ImportError) as error:  # topkast's own errors are among these
        sentence = harmless(error)
        return Answer({"error": sentence}, [f"error: {sentence}"], status=2)
    json.dumps(found.data)  # an answer that cannot be JSON is a fault of the command, with or without --json
    return found


if __name__ == "__main__":
    sys.exit(main())
