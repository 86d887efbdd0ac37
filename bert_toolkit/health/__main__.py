"""Prints what training health found in a run that is going on or over.

    python -m bert_toolkit.health runs/cola
    python -m bert_toolkit.health runs/cola --json

Exit status: 0 where nothing is wrong, 1 where there is an error or a warning, 2 where the run cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_toolkit.errors import InputError
from bert_toolkit.health.findings import message
from bert_toolkit.health.findings_file import FindingsFile


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings of the run that the command line names.

    Args:
        arguments: Command line without the program; `sys.argv[1:]` if None.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m bert_toolkit.health", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="output directory of the run")
    parser.add_argument("--json", action="store_true", help="one JSON object: verdict, findings, notes")
    chosen = parser.parse_args(arguments)
    try:
        file = FindingsFile.read(chosen.run / "monitoring" / "training_health.jsonl")
    except InputError as error:
        print(f"error: {error}; pass the output directory of a run with TrainingHealthCallback", file=sys.stderr)
        return 2
    findings = [case for case in file.cases.values() if case.symptom_of is None and case.finding.severity != "note"]
    notes = [case for case in file.cases.values() if case.finding.severity == "note"]
    if chosen.json:
        print(
            json.dumps(
                {"verdict": file.verdict, "findings": [case.as_json() for case in file.cases.values()]}, indent=1
            )
        )
        return int(bool(findings))
    for case in findings:
        symptoms = [other.finding for other in file.cases.values() if other.symptom_of == case.finding.rule]
        print(message(case.finding, symptoms), end="\n\n")
    for case in notes:
        print(f"note, step {case.finding.step}: {case.finding.rule.replace('_', ' ')}: {case.finding.seen}")
    print(file.verdict or f"Training health: the run goes on; {len(findings)} faults so far.")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
