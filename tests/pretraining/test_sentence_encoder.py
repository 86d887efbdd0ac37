"""Token ids against the tokenizer's own, in any language, and in several processes."""

import json

import numpy as np
import pytest
from conftest import LANGUAGES
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import BertTokenizer

from bert_toolkit import InputError, TokenizedDocuments
from bert_toolkit.pretraining.sentence_encoder import SentenceEncoder, tokenizer_fingerprint


def test_sentences_are_tokenized_as_inside_a_text(tokenizer_of_any_kind):
    """Joined, they have the tokens of the text; only the space before it is more than some tokenizers put there."""
    backend = tokenizer_of_any_kind.backend_tokenizer
    text = " ".join(LANGUAGES)
    corpus = TokenizedDocuments.from_documents([LANGUAGES], tokenizer_of_any_kind)
    assert corpus.sentence_starts.size == len(LANGUAGES) + 1
    readings = [backend.encode(before + text, add_special_tokens=False).ids for before in ("", " ")]
    assert corpus.tokens.tolist() in readings


def test_type_holds_every_id_of_a_vocabulary_with_gaps(tokenizer):
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description["model"]["vocab"]["w1"] = 70_000
    sparse = BertTokenizer(tokenizer_object=Tokenizer.from_str(json.dumps(description)))
    corpus = TokenizedDocuments.from_documents([["w1 w2"]], sparse)
    assert corpus.tokens.tolist() == [70_000, tokenizer.convert_tokens_to_ids("w2")]


@pytest.mark.parametrize("processes", [1, 2])
def test_half_a_character_is_named(tokenizer, processes):
    stream = SentenceEncoder(tokenizer).stream([["w1", "a \ud83d b"]], processes, tqdm(disable=True))
    with pytest.raises(InputError, match=r"half a character .*\\ud83d.* in .*a .* b"):
        list(stream)


def test_characters_that_no_text_should_have_are_no_words(tokenizer):
    corpus = TokenizedDocuments.from_documents([["w1\x00", "\u200b", "\ufeffw2\x07", "\ufffd"]], tokenizer)
    assert corpus.tokens.tolist() == tokenizer.convert_tokens_to_ids(["w1", "w2"])
    assert corpus.losses.empty_sentences == 2


def test_fingerprint_tells_tokenizers_apart(tokenizer):
    other = BertTokenizer(vocab=dict(tokenizer.get_vocab()), do_lower_case=False)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)
    tokenizer(["w1 w2"], truncation=True, max_length=3, padding="max_length")  # leaves settings in the backend
    assert tokenizer_fingerprint(BertTokenizer(vocab=tokenizer.get_vocab())) == tokenizer_fingerprint(tokenizer)
    assert np.uint16 == SentenceEncoder(tokenizer).dtype
