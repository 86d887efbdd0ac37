"""Words told from a vocabulary, against the words that BERT's own normalizer and pre-tokenizer find in the text."""

import numpy as np
from conftest import LANGUAGES, TOKENS
from tokenizers import normalizers, pre_tokenizers

from bert_toolkit.pretraining.word_boundaries import word_boundaries


def word_of_every_character(text: str) -> list[int]:
    """Number of the word that BERT's tokenizer puts each character into; -1 for white space."""
    spaced = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=False).normalize_str(text)
    words = [-1] * len(text)
    place = 0
    for number, (word, _) in enumerate(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(spaced)):
        while text[place] != word[0]:
            place += 1
        words[place : place + len(word)] = [number] * len(word)
        place += len(word)
    return words


def test_words_are_those_of_berts_tokenizer(tokenizer_of_any_kind):
    boundaries = word_boundaries(tokenizer_of_any_kind)
    backend = tokenizer_of_any_kind.backend_tokenizer
    compared = 0
    for text in LANGUAGES:
        word_of = word_of_every_character(text)
        encoding = backend.encode(text, add_special_tokens=False)
        continues = boundaries.continues_word(np.array([encoding.ids]))[0].tolist()
        before, last = None, None  # offsets and word of the token before; no word after white space and special tokens
        divided = {place for place in encoding.offsets if encoding.offsets.count(place) > 1}
        for token, place, found in zip(encoding.tokens, encoding.offsets, continues, strict=True):
            words = [word for word in word_of[slice(*place)] if word >= 0]
            if not words or token in ("▁", "Ġ", *TOKENS.values()):
                before, last = None, None
                continue
            if place == before:
                assert found, f"{token} is a piece of the same character"
            else:
                # which words a divided character is a part of, its first byte cannot always say
                if last is not None and place not in divided and before not in divided:
                    assert found == (words[0] == last), (text, token)
                    compared += 1
                last = words[-1]
            before = place
    assert compared > 60
