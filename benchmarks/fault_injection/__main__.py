"""Does `TrainingHealthCallback` name faults, and only faults? Real small trainings, broken on purpose and healthy.

    python -m benchmarks.fault_injection run                     # every job; goes on where it was stopped
    python -m benchmarks.fault_injection run --only gpt2/nan_batch --seeds 2
    python -m benchmarks.fault_injection replay                  # judge the stored histories again, in seconds
    python -m benchmarks.fault_injection report                  # benchmarks/fault_injection.md
    python -m benchmarks.fault_injection pictures --histories X  # docs/images/health_*.png

Needs the extras `offline`, `recipes` and `test`; run it from the top folder of the repository. One job is one training
of 50 to 200 optimizer steps that takes about 50 samples; a broken one ends 10 samples after the first finding. Seeds 0
to 2 served to choose thresholds, seeds 3 and 7 are reported: they were run once, after the last change of a rule. No
threshold was chosen by the controls marked "held out".
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.fault_injection.report import report
from benchmarks.fault_injection.results import (
    REPORTED_SEEDS,
    TUNING_SEEDS,
    all_jobs,
    read_results,
    replay_job,
    run_job,
)

RESULTS = Path(__file__).parents[1] / "results" / "fault_injection.jsonl"


def main() -> None:
    """Read the command line and do what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "replay", "report", "pictures"])
    parser.add_argument("--only", default="", help="regular expression on model/fault or control/name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*TUNING_SEEDS, *REPORTED_SEEDS])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--histories", help="folder for what was sampled, needed to replay")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.results)
        return
    if arguments.command == "pictures":
        from benchmarks.fault_injection.pictures import pictures  # needs matplotlib

        pictures(Path(arguments.histories), REPORTED_SEEDS[0])
        return
    done = read_results(arguments.results)
    jobs = [job for job in all_jobs(arguments.seeds) if re.search(arguments.only, f"{job[0]}/{job[1]}")]
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    if arguments.histories:
        Path(arguments.histories).mkdir(parents=True, exist_ok=True)
    work: Callable[..., dict] = run_job
    if arguments.command == "replay":
        stored = {path.name for path in Path(arguments.histories).glob("*.npz")}
        jobs = [job for job in jobs if f"{job[0]}.{job[1]}.{job[2]}.npz" in stored]
        work = replay_job
    else:
        jobs = [job for job in jobs if job not in done]
    with ProcessPoolExecutor(arguments.jobs) as pool, arguments.results.open("a", encoding="utf-8") as file:
        for future in [pool.submit(work, *job, arguments.histories) for job in jobs]:
            row = future.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            rules = [f"{case['rule']}@{case['samples']}" for case in row["found"] if case["symptom_of"] is None]
            print(row["kind"], row["name"], row["seed"], row["seconds"], *rules, row["error"] or "", flush=True)


if __name__ == "__main__":
    main()
