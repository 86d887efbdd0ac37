"""The command `bert-toolkit`, also `python -m bert_toolkit`: what a run has left, for people.

    bert-toolkit report runs/cola
    bert-toolkit report runs/cola runs/cola-other --output comparison.html
    bert-toolkit health runs/cola

Exit status of `report`: 0, or 2 where a run cannot be read; of `health`: as `python -m bert_toolkit.health`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bert_toolkit.errors import InputError
from bert_toolkit.health.__main__ import main as print_health
from bert_toolkit.run_page import write_run_page


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subcommand that the command line names.

    Args:
        arguments: Command line without the program; `sys.argv[1:]` if None.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="bert-toolkit", description="Shows what a run has left.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="write one HTML page of a run, or of two side by side")
    report.add_argument("run", help="output directory of the run")
    report.add_argument("other", nargs="?", help="output directory of another run, to compare with")
    report.add_argument("--output", help="file to write (default: report.html in the directory of the run)")
    commands.add_parser("health", help="print what training health found", add_help=False)
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.command == "health":
        return print_health(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        print(write_run_page(chosen.run, chosen.other, chosen.output))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
