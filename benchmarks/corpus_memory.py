"""Peak memory of tokenizing a large corpus and making pairs of it.

    python benchmarks/corpus_memory.py --megabytes 1000

Writes text files of that size (speeches of the State of the Union, in ever new order) into a temporary folder,
tokenizes them with two processes and makes a thousand batches, or as many as there are. Prints the peak resident
memory, mapped files included, of this process and of the largest worker, and writes
`benchmarks/results/corpus_memory.json`.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from bert_toolkit import DataCollatorForPreTraining, NextSentencePairs, TokenizedDocuments
from bert_toolkit.data.documents import DocumentFiles, corpus_files, sentences_of, state_of_the_union_folder
from bert_toolkit.reporting.results import command_line, package_versions
from bert_toolkit.training.pretrained import offline_weights


def peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(offline_weights())
    with tempfile.TemporaryDirectory() as folder:
        files, written = [], 0
        speeches = corpus_files(state_of_the_union_folder())
        generator = random.Random(0)
        while written < options.megabytes * 1e6:
            files.append(Path(folder) / f"{len(files)}.txt")
            paragraphs = generator.choice(speeches).read_text(encoding="utf-8").split("\n\n")
            generator.shuffle(paragraphs)
            written += files[-1].write_text("\n\n".join(paragraphs), encoding="utf-8")
        before, begin = peak_mib(resource.RUSAGE_SELF), time.perf_counter()
        corpus = TokenizedDocuments.build(
            Path(folder) / "corpus", DocumentFiles(files), tokenizer, sentences_of, options.processes, written
        )
        seconds = time.perf_counter() - begin
        pairs = NextSentencePairs(corpus, tokenizer)
        pairs.set_epoch(1)
        collator = DataCollatorForPreTraining(tokenizer)
        for number in range(min(1000, len(pairs) // 32)):
            collator(pairs.__getitems__(range(number * 32, number * 32 + 32)))
        record = {
            "characters": written,
            "tokens": len(corpus.tokens),
            "pairs": len(pairs),
            "peak MiB before": before,
            "peak MiB of this process": peak_mib(resource.RUSAGE_SELF),
            "peak MiB of the largest worker": peak_mib(resource.RUSAGE_CHILDREN),
            "seconds of tokenizing": seconds,
            "command": command_line(),
            "versions": package_versions(),
        }
    print(json.dumps(record, indent=2))
    path = Path(__file__).parent / "results" / "corpus_memory.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
