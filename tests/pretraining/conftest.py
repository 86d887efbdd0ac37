"""A small WordPiece tokenizer and documents of invented words, of which every sentence tells its document."""

import numpy as np
import pytest
from transformers import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{i}" for i in range(400)]
PIECES = [f"##p{i}" for i in range(50)]


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    entries = SPECIAL + [f"[unused{i}]" for i in range(3)] + WORDS + PIECES
    return BertTokenizer(vocab={token: i for i, token in enumerate(entries)}, do_lower_case=True)


@pytest.fixture(scope="session")
def make_documents():
    """Documents whose sentence number s of document d begins with the words w<d> w<s>."""

    def make(sizes: list[int], seed: int = 0, longest: int = 30) -> list[list[str]]:
        generator = np.random.default_rng(seed)
        return [
            [
                " ".join([f"w{d % 400}", f"w{s % 400}", *(f"w{i}" for i in generator.integers(0, 400, n))])
                for s, n in enumerate(generator.integers(1, longest, size))
            ]
            for d, size in enumerate(sizes)
        ]

    return make
