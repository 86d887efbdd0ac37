"""Writes the bundled sample: minimal pairs of acceptable and unacceptable sentences in CoLA's raw layout.

    python tools/sample/grammar.py [folder]

The training and in-domain dev files share phenomena and words; the out-of-domain dev file has phenomena and content
words of its own. The source column names the phenomenon. The same seed writes the same bytes on every machine.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import in_domain_pairs
import out_of_domain_pairs
from drawing import Draw

SAMPLE_FOLDER = Path(__file__).parents[2] / "bert_toolkit" / "data" / "sample"
SEED = 2024
TRAIN_PAIRS, IN_DOMAIN_PAIRS, OUT_OF_DOMAIN_PAIRS = 48, 10, 14
"""Minimal pairs of each phenomenon in each file."""

Phenomenon = Callable[[Draw], tuple[str, str]]


def write_sample(folder: Path, seed: int = SEED) -> None:
    """Writes the three files of the sample.

    Args:
        folder: Where to; existing files are replaced.
        seed: Another seed writes other sentences.
    """
    used: set[str] = set()
    files: dict[str, list[str]] = {"in_domain_train.tsv": [], "in_domain_dev.tsv": [], "out_of_domain_dev.tsv": []}
    train, in_domain, out_of_domain = files.values()
    for phenomenon in in_domain_pairs.PHENOMENA:
        pairs = _new_pairs(phenomenon, seed, used)
        train += _lines(phenomenon, pairs, TRAIN_PAIRS)
        in_domain += _lines(phenomenon, pairs, IN_DOMAIN_PAIRS)
    for phenomenon in out_of_domain_pairs.PHENOMENA:
        pairs = _new_pairs(phenomenon, seed, used)
        out_of_domain += _lines(phenomenon, pairs, OUT_OF_DOMAIN_PAIRS)
    for name, lines in files.items():
        (folder / name).write_bytes("".join(lines).encode("utf-8"))


def _new_pairs(phenomenon: Phenomenon, seed: int, used: set[str]) -> Iterator[tuple[str, str]]:
    """Pairs of sentences none of which was written before."""
    for number in range(100_000):
        pair = phenomenon(Draw(seed, phenomenon.__name__, number))
        acceptable, unacceptable = (_as_sentence(text) for text in pair)
        if acceptable != unacceptable and not used & {acceptable, unacceptable}:
            used.update((acceptable, unacceptable))
            yield acceptable, unacceptable


def _as_sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _lines(phenomenon: Phenomenon, pairs: Iterator[tuple[str, str]], count: int) -> list[str]:
    lines = []
    for _ in range(count):
        acceptable, unacceptable = next(pairs)
        lines.append(f"{phenomenon.__name__}\t1\t\t{acceptable}\n")
        lines.append(f"{phenomenon.__name__}\t0\t*\t{unacceptable}\n")
    return lines


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLE_FOLDER)
