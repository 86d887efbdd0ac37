"""Tokens per second of masking and collation on one core, against the collators of transformers, in one run.

    python benchmarks/collator_throughput.py

Ours makes the pairs and the batch; the collators of transformers get finished pairs, which favors them. Every arm
takes the same pairs of the State of the Union speeches (`bert_toolkit[offline]`), in interleaved rounds. A token
counts if it is not padding, a second is one of processor time of one thread. A second table gives the time of a
batch's random numbers from `keyed_random` and from `numpy.random.Philox`. Writes
`benchmarks/results/collator_throughput.json` and `.md`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from bert_toolkit import DataCollatorForPreTraining, NextSentencePairs, TokenizedDocuments
from bert_toolkit.data.documents import DocumentFiles, corpus_files, sentences_of, state_of_the_union_folder
from bert_toolkit.pretraining.keyed_random import random_bits, stream_key
from bert_toolkit.pretraining.sentence_pairs import Pair
from bert_toolkit.provenance import command_line, package_versions
from bert_toolkit.training.pretrained import offline_weights

RESULTS = Path(__file__).parent / "results"
MakeBatch = Callable[[int], dict[str, Any]]


def main() -> None:
    """Measures and writes both tables."""
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

    rows: dict[tuple[str, int], dict[str, Any]] = {}
    runs = {}
    streams: dict[tuple[str, int], list[float]] = {}
    for batch_size in options.batch_sizes:
        for name, run in arms(pairs, tokenizer, batch_size).items():
            rows[name, batch_size] = {"arm": name, "batch_size": batch_size, "rates": []}
            runs[name, batch_size] = run
    for _ in range(options.rounds):
        for key, row in rows.items():
            row["rates"].append(tokens_per_second(runs[key], options.seconds))
        for batch_size in options.batch_sizes:
            for name, draw in random_number_arms(batch_size, options.max_length).items():
                streams.setdefault((name, batch_size), []).append(seconds_per_call(draw, options.seconds / 4))
    for row in rows.values():
        row["tokens_per_second"] = statistics.median(row["rates"])
    random_numbers = [
        {"arm": name, "batch_size": size, "rounds": seconds, "seconds": statistics.median(seconds)}
        for (name, size), seconds in streams.items()
    ]
    write(list(rows.values()), random_numbers, options)


def arms(pairs: NextSentencePairs, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> dict[str, MakeBatch]:
    """Name to a function that makes the batch number i and returns it."""
    n_batches = len(pairs) // batch_size

    def indices(number: int) -> range:
        begin = number % n_batches * batch_size
        return range(begin, begin + batch_size)

    def ours(**settings: Any) -> MakeBatch:
        collator = DataCollatorForPreTraining(tokenizer, **settings)
        return lambda number: collator(pairs.__getitems__(indices(number)))

    def theirs(**settings: Any) -> MakeBatch:
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


def plain_features(
    pair: Pair, tokenizer: PreTrainedTokenizerBase, max_length: int, offsets: bool
) -> dict[str, list[Any]]:
    """The pair as transformers' tokenizer makes it, with offsets where whole words are to be told."""
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


def random_number_arms(batch_size: int, length: int) -> dict[str, Callable[[], np.ndarray]]:
    """Ways to draw `length` numbers of 64 bits for each example of a batch, whatever the order of the examples."""
    indices = np.arange(1000, 1000 + batch_size)
    one = np.random.Philox(key=0)
    state = one.state

    def keyed_random() -> np.ndarray:
        keys = random_bits(stream_key(0, 0, 0), indices)
        return random_bits(keys[:, None], np.arange(length, dtype=np.uint64)[None, :])

    def philox_each() -> np.ndarray:
        return np.stack([np.random.Philox(key=(0, index)).random_raw(length) for index in indices.tolist()])

    def philox_set() -> np.ndarray:
        drawn = []
        for index in indices.tolist():
            state["state"]["counter"][:] = (0, index, 0, 0)
            state["buffer_pos"] = 4  # forgets the numbers that the last counter left
            one.state = state
            drawn.append(one.random_raw(length))
        return np.stack(drawn)

    return {
        "keyed_random": keyed_random,
        "one Philox, its counter set for each example": philox_set,
        "one Philox for each example": philox_each,
    }


def tokens_per_second(run: MakeBatch, seconds: float) -> float:
    """Tokens that are not padding per second of processor time."""
    tokens = number = 0
    begin = time.process_time()
    while (elapsed := time.process_time() - begin) < seconds:
        batch = run(number)
        tokens += int((batch["input_ids"] != 0).sum())
        number += 1
    return tokens / elapsed


def seconds_per_call(draw: Callable[[], np.ndarray], seconds: float) -> float:
    """Seconds of processor time of one call."""
    calls = 0
    begin = time.process_time()
    while (elapsed := time.process_time() - begin) < seconds:
        draw()
        calls += 1
    return elapsed / calls


def write(rows: list[dict[str, Any]], random_numbers: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Prints both tables and writes them with their raw numbers."""
    heads = ["| | " + " | ".join(f"batch {size}" for size in options.batch_sizes) + " |"]
    heads.append("|---|" + "---|" * len(options.batch_sizes))
    cells: dict[str, list[str]] = {}
    for row in rows:
        low, middle, high = (value / 1e6 for value in (min(row["rates"]), row["tokens_per_second"], max(row["rates"])))
        cells.setdefault(row["arm"], []).append(f"{middle:.2f} ({low:.2f}–{high:.2f})")
    draws: dict[str, list[str]] = {}
    for row in random_numbers:
        draws.setdefault(row["arm"], []).append(f"{row['seconds'] * 1e6:,.0f}")
    lines = [
        f"One thread, pairs of at most {options.max_length} tokens; million tokens per second of processor time, "
        f"median of {options.rounds} interleaved rounds (lowest to highest).",
        "",
        *heads,
        *(f"| {arm} | " + " | ".join(texts) + " |" for arm, texts in cells.items()),
        "",
        f"Random numbers alone, {options.max_length} of 64 bits for each example; microseconds of processor time, "
        "median.",
        "",
        *heads,
        *(f"| {arm} | " + " | ".join(texts) + " |" for arm, texts in draws.items()),
        "",
        f"Command: `{command_line()}`",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    record = {
        "options": vars(options),
        "rows": rows,
        "random_numbers": random_numbers,
        "machine": platform.machine(),
        "versions": package_versions(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "collator_throughput.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "collator_throughput.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
