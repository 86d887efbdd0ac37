"""Pre-training data at scale: tokenization by processes, memory by size of the corpus, batches by workers.

    python benchmarks/pretraining_data.py
    python benchmarks/pretraining_data.py --parts memory --megabytes 1000 3000 10000

Corpora of any size are speeches of the State of the Union (`bert_toolkit[offline]`) with their paragraphs in ever new
order, written into a temporary folder. Three parts, each measure in a process of its own:

- tokenization: megabytes per second from text files to a tokenized corpus, by number of processes;
- memory: peak of the resident memory of tokenizing a corpus, planning an epoch and making a thousand batches, by size
  of the corpus, and the line through the sizes at 10 GB;
- loading: batches per second out of a DataLoader, masks included, by number of workers.

Parts that are not asked for keep the results of before. Writes `benchmarks/results/pretraining_data.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from bert_toolkit import DataCollatorForPreTraining, NextSentencePairs, TokenizedDocuments
from bert_toolkit.data.documents import DocumentFiles, corpus_files, sentences_of, state_of_the_union_folder
from bert_toolkit.provenance import command_line, package_versions
from bert_toolkit.training.pretrained import offline_weights

RESULTS = Path(__file__).parent / "results"
PARTS = ("tokenization", "memory", "loading")
EXTRAPOLATED = 10_000  # megabytes


def main() -> None:
    """Measures the parts that were asked for and writes the tables of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 150, 450], help="of text, for memory")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 4], help="that tokenize; memory: the second"
    )
    parser.add_argument("--tokenized_megabytes", type=int, default=30, help="of text, for tokenization and loading")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--batch_size", type=int, default=32, help="pairs of a batch, at most 128 tokens each")
    parser.add_argument("--seconds", type=float, default=3.0, help="of loading by one number of workers in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "pretraining_data.json")
    options = parser.parse_args()
    record = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    for part in options.parts:
        measured: dict[str, Any] = {"cores": os.cpu_count(), "load before": round(os.getloadavg()[0], 1)}
        measured["rows"] = globals()[f"measure_{part}"](options)
        record[part] = measured | {"command": command_line(), "versions": package_versions()}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = tables(record)
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def in_new_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of its own, whose peak of memory is nobody else's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def write_corpus(folder: Path, megabytes: int) -> tuple[list[Path], int]:
    """Text files of this size together, and their bytes."""
    speeches = [path.read_text(encoding="utf-8").split("\n\n") for path in corpus_files(state_of_the_union_folder())]
    generator = random.Random(0)
    files: list[Path] = []
    written = 0
    while written < megabytes * 1e6:
        files.append(folder / f"{len(files)}.txt")
        paragraphs = generator.choice(speeches).copy()
        generator.shuffle(paragraphs)
        files[-1].write_text("\n\n".join(paragraphs), encoding="utf-8")
        written += files[-1].stat().st_size
    return files, written


def measure_tokenization(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Throughput by number of processes, in interleaved rounds."""
    with tempfile.TemporaryDirectory() as folder:
        _, size = write_corpus(Path(folder), options.tokenized_megabytes)
        rounds: dict[int, list[float]] = {processes: [] for processes in options.processes}
        tokens = 0
        for _ in range(options.rounds):
            for processes, seconds in rounds.items():
                taken, tokens = in_new_process(tokenize, folder, processes, size)
                seconds.append(taken)
    return [
        {
            "processes": processes,
            "megabytes": size / 1e6,
            "tokens": tokens,
            "rounds": seconds,
            "megabytes_per_second": size / 1e6 / statistics.median(seconds),
        }
        for processes, seconds in rounds.items()
    ]


def tokenize(folder: str, processes: int, size: int) -> tuple[float, int]:
    """Seconds from files to a corpus, and its tokens."""
    tokenizer = AutoTokenizer.from_pretrained(offline_weights())
    files = DocumentFiles(corpus_files(folder))
    with tempfile.TemporaryDirectory() as target:
        begin = time.perf_counter()
        corpus = TokenizedDocuments.build(
            Path(target) / "corpus", files, tokenizer, sentences_of, processes, size, show_progress=False
        )
        return time.perf_counter() - begin, len(corpus.tokens)


def measure_memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peaks of memory by size of the corpus, smallest first."""
    processes = options.processes[min(1, len(options.processes) - 1)]
    rows = []
    for megabytes in sorted(options.megabytes):
        rows.append(in_new_process(use_memory, megabytes, processes))
        print(json.dumps(rows[-1]), flush=True)
    return rows


class PeakMemory(threading.Thread):
    """Watches this process's memory: the peak of what is its own, and of all that is resident, mapped files included.

    The pages of mapped files are the system's to take back at any time; what is the process's own is not.
    """

    def __init__(self) -> None:
        """Starts watching."""
        super().__init__(daemon=True)
        self.own = 0.0
        self.begin = self.read()
        self.start()

    def run(self) -> None:
        """Reads every 20 ms."""
        while True:
            self.read()
            time.sleep(0.02)

    def read(self) -> float:
        """Own memory in MiB; also raises the peak."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        own = int(status.split("RssAnon:")[1].split()[0]) / 1024
        self.own = max(self.own, own)
        return own

    def resident(self) -> float:
        """Peak of all resident memory in MiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def use_memory(megabytes: int, processes: int) -> dict[str, Any]:
    """Tokenizes a corpus, plans two epochs and makes a thousand batches, or as many as there are."""
    tokenizer = AutoTokenizer.from_pretrained(offline_weights())
    with tempfile.TemporaryDirectory() as folder:
        files, size = write_corpus(Path(folder), megabytes)
        memory, begin = PeakMemory(), time.perf_counter()
        corpus = TokenizedDocuments.build(
            Path(folder) / "corpus",
            DocumentFiles(files),
            tokenizer,
            sentences_of,
            processes,
            size,
            show_progress=False,
        )
        tokenized = time.perf_counter()
        after_tokenization = memory.own
        pairs = NextSentencePairs(corpus, tokenizer, group_size=32)
        planned = time.perf_counter()
        pairs.set_epoch(1)
        planned_again = time.perf_counter()
        assert not pairs.remarks
        collator = DataCollatorForPreTraining(tokenizer)
        for number in range(min(1000, len(pairs) // 32)):
            collator(pairs.__getitems__(range(number * 32, number * 32 + 32)))
        return {
            "megabytes": size / 1e6,
            "processes": processes,
            "tokens": len(corpus.tokens),
            "sentences": len(corpus.sentence_starts) - 1,
            "pairs": len(pairs),
            "own_mib_before": memory.begin,
            "own_mib_tokenizing": after_tokenization,
            "own_mib": memory.own,
            "resident_mib": memory.resident(),
            "largest_worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
            "seconds_tokenizing": tokenized - begin,
            "seconds_first_plan": planned - tokenized,
            "seconds_next_epoch": planned_again - planned,
        }


def measure_loading(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Batches per second by number of workers, in interleaved rounds."""
    return in_new_process(load, options)


def load(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Loads batches for some seconds, the start of the workers not counted."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(offline_weights())
    with tempfile.TemporaryDirectory() as folder:
        files, _ = write_corpus(Path(folder), options.tokenized_megabytes)
        corpus = TokenizedDocuments.build(
            Path(folder) / "corpus", DocumentFiles(files), tokenizer, sentences_of, 2, show_progress=False
        )
        pairs = NextSentencePairs(corpus, tokenizer)
        collator = DataCollatorForPreTraining(tokenizer)
        rates: dict[int, list[float]] = {workers: [] for workers in options.workers}
        tokens_per_batch = 0.0
        for _ in range(options.rounds):
            for workers in options.workers:
                loader = torch.utils.data.DataLoader(
                    pairs, options.batch_size, num_workers=workers, collate_fn=collator
                )
                batches = tokens = 0
                iterator = iter(loader)
                for _ in range(2 * workers + 1):  # those that the workers make before the first is taken
                    next(iterator)
                begin = time.perf_counter()
                for batch in iterator:
                    batches += 1
                    tokens += int(batch["attention_mask"].sum())
                    if (elapsed := time.perf_counter() - begin) >= options.seconds:
                        break
                rates[workers].append(batches / elapsed)
                tokens_per_batch = tokens / batches
    return [
        {
            "workers": workers,
            "batch_size": options.batch_size,
            "rounds": rounds,
            "batches_per_second": statistics.median(rounds),
            "tokens_per_second": statistics.median(rounds) * tokens_per_batch,
        }
        for workers, rounds in rates.items()
    ]


def tables(record: dict[str, Any]) -> str:
    """The results as a page."""
    lines: list[str] = []
    if "tokenization" in record:
        rows = record["tokenization"]["rows"]
        lines += [f"Tokenization of {rows[0]['megabytes']:.0f} MB of text{_machine(record['tokenization'])}", ""]
        lines += ["| processes | MB per second | million tokens per second | × one process |", "|---|---|---|---|"]
        for row in rows:
            rate = row["megabytes_per_second"]
            tokens = rate * row["tokens"] / row["megabytes"] / 1e6
            lines.append(
                f"| {row['processes']} | {rate:.2f} | {tokens:.2f} | {rate / rows[0]['megabytes_per_second']:.2f} |"
            )
    if "memory" in record:
        rows = record["memory"]["rows"]
        lines += ["", f"Memory, {rows[0]['processes']} processes{_machine(record['memory'])}; peaks in MiB", ""]
        columns = ["own_mib_tokenizing", "own_mib", "resident_mib", "largest_worker_mib"]
        columns += ["seconds_tokenizing", "seconds_first_plan", "seconds_next_epoch"]
        lines += [
            "| text, MB | million tokens | million pairs | own, tokenizing | own, in all | with mapped files "
            "| largest worker | s tokenizing | s first plan | s next epoch |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            values = " | ".join(f"{row[column]:,.{int(row[column] < 10)}f}" for column in columns)
            lines.append(
                f"| {row['megabytes']:,.0f} | {row['tokens'] / 1e6:.1f} | {row['pairs'] / 1e6:.3f} | {values} |"
            )
        if len(rows) > 1:
            sizes = [row["megabytes"] for row in rows]
            at_10_gb = []
            for column in columns:
                slope, start = np.polyfit(sizes, [row[column] for row in rows], 1)
                at_10_gb.append(f"{start + slope * EXTRAPOLATED:,.0f}")
            tokens, pairs = (
                rows[-1][name] / rows[-1]["megabytes"] * EXTRAPOLATED / 1e6 for name in ("tokens", "pairs")
            )
            lines.append(f"| {EXTRAPOLATED:,} by the line | {tokens:,.0f} | {pairs:.1f} | {' | '.join(at_10_gb)} |")
    if "loading" in record:
        rows = record["loading"]["rows"]
        lines += ["", f"Batches of {rows[0]['batch_size']} pairs{_machine(record['loading'])}", ""]
        lines += ["| workers | batches per second | million tokens per second |", "|---|---|---|"]
        for row in rows:
            low, high = min(row["rounds"]), max(row["rounds"])
            lines.append(
                f"| {row['workers']} | {row['batches_per_second']:,.0f} ({low:,.0f}–{high:,.0f}) "
                f"| {row['tokens_per_second'] / 1e6:.2f} |"
            )
    commands = dict.fromkeys(record[part]["command"] for part in PARTS if part in record)
    return "\n".join([*lines, "", *(f"Command: `{command}`" for command in commands)]) + "\n"


def _machine(measured: dict[str, Any]) -> str:
    return f", {measured['cores']} cores, load {measured['load before']} before"


if __name__ == "__main__":
    main()
