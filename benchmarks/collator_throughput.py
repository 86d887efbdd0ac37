"""Tokens a second of masking and collation on one core, against the collators of transformers, in one run.

    python benchmarks/collator_throughput.py

Ours makes the pairs and the batch; the collators of transformers get finished pairs, which favors them. Every arm
takes the same pairs of the State of the Union speeches (`bert_toolkit[offline]`), in interleaved rounds. A token
counts if it is not padding, a second is one of processor time of one thread. Writes
`benchmarks/results/collator_throughput.json` and `.md`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from bert_toolkit import DataCollatorForPreTraining, NextSentencePairs, TokenizedDocuments
from bert_toolkit.data.documents import DocumentFiles, corpus_files, sentences_of, state_of_the_union_folder
from bert_toolkit.reporting.results import command_line, package_versions
from bert_toolkit.training.pretrained import offline_weights

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="of one arm in one round")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 128, 256])
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(offline_weights())
    files = DocumentFiles(corpus_files(state_of_the_union_folder()))
    documents = TokenizedDocuments.from_documents(map(sentences_of, files), tokenizer)
    pairs = NextSentencePairs(documents, tokenizer, max_length=options.max_length)

    rows = {}
    for batch_size in options.batch_sizes:
        for name, run in arms(pairs, tokenizer, batch_size).items():
            rows[name, batch_size] = {"arm": name, "batch_size": batch_size, "rates": [], "run": run}
    for _ in range(options.rounds):
        for row in rows.values():
            row["rates"].append(tokens_per_second(row["run"], options.seconds))
    for row in rows.values():
        del row["run"]
        row["tokens_per_second"] = statistics.median(row["rates"])
    write(list(rows.values()), options)


def arms(pairs, tokenizer, batch_size: int) -> dict:
    """Name to a function that makes the batch number i and returns it."""
    n_batches = len(pairs) // batch_size

    def indices(number: int) -> range:
        begin = number % n_batches * batch_size
        return range(begin, begin + batch_size)

    def ours(**settings):
        collator = DataCollatorForPreTraining(tokenizer, **settings)
        return lambda number: collator(pairs.__getitems__(indices(number)))

    def theirs(**settings):
        collator = DataCollatorForLanguageModeling(tokenizer, **settings)
        # the pairs are made before the clock runs; whole words need the offsets of the text
        ready = [
            [
                plain_features(pair, tokenizer, pairs.max_length, "whole_word_mask" in settings)
                for pair in pairs.__getitems__(indices(number))
            ]
            for number in range(min(n_batches, 4))
        ]
        return lambda number: collator([dict(example) for example in ready[number % len(ready)]])

    return {
        "bert_toolkit, pairs included": ours(),
        "bert_toolkit, whole words, pairs included": ours(whole_word_mask=True),
        "transformers, pairs ready": theirs(),
        "transformers, whole words, pairs ready": theirs(whole_word_mask=True),
    }


def plain_features(pair, tokenizer, max_length: int, offsets: bool) -> dict:
    ids, types = pair["input_ids"], pair["token_type_ids"]
    a, b = (
        tokenizer.decode(
            [token for token, kind in zip(ids, types, strict=True) if kind == side], skip_special_tokens=True
        )
        for side in (0, 1)
    )
    # the whole-word collator cannot pad offsets, so its examples come padded
    settings = {"padding": "max_length", "return_offsets_mapping": True} if offsets else {}
    return dict(tokenizer(a, b, truncation=True, max_length=max_length, **settings))


def tokens_per_second(run, seconds: float) -> float:
    tokens = number = 0
    begin = time.process_time()
    while (elapsed := time.process_time() - begin) < seconds:
        batch = run(number)
        tokens += int((batch["input_ids"] != 0).sum())
        number += 1
    return tokens / elapsed


def write(rows: list[dict], options) -> None:
    by_arm: dict[str, dict[int, dict]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["batch_size"]] = row
    lines = [
        f"One thread, pairs of at most {options.max_length} tokens; million tokens a second of processor time, "
        f"median of {options.rounds} interleaved rounds (lowest to highest).",
        "",
        "| | " + " | ".join(f"batch {size}" for size in options.batch_sizes) + " |",
        "|---|" + "---|" * len(options.batch_sizes),
    ]
    for arm, cells in by_arm.items():
        texts = [
            f"{row['tokens_per_second'] / 1e6:.2f} ({min(row['rates']) / 1e6:.2f}–{max(row['rates']) / 1e6:.2f})"
            for row in cells.values()
        ]
        lines.append(f"| {arm} | " + " | ".join(texts) + " |")
    lines += ["", f"Command: `{command_line()}`"]
    text = "\n".join(lines) + "\n"
    print(text)
    record = {"options": vars(options), "rows": rows, "machine": platform.machine(), "versions": package_versions()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "collator_throughput.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "collator_throughput.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
