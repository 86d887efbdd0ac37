"""Batches of pairs and of ordinary examples, and the independence of masks from everything but their key."""

import re

import numpy as np
import pytest
import torch
from conftest import LANGUAGES, TOKENS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader, Subset
from transformers import BertTokenizer, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from bert_toolkit import DataCollatorForPreTraining, InputError, NextSentencePairs
from bert_toolkit.pretraining.word_boundaries import word_boundaries

COLUMNS = ["attention_mask", "input_ids", "labels", "next_sentence_label", "token_type_ids"]


@pytest.fixture(scope="module")
def pairs(tokenizer, make_documents):
    return NextSentencePairs(make_documents([60] * 20), tokenizer, max_length=64, seed=1)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def original(batch):
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])


@pytest.mark.parametrize("whole_words", [False, True])
def test_batch_of_pairs(pairs, tokenizer, whole_words):
    collator = DataCollatorForPreTraining(tokenizer, whole_word_mask=whole_words)
    indices = list(range(40, 72))
    batch = collator(pairs.__getitems__(indices))
    assert sorted(batch) == COLUMNS
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    for row, index in enumerate(indices):
        pair = pairs[index]
        length = len(pair["input_ids"])
        assert original(batch)[row].tolist()[:length] == pair["input_ids"]
        assert batch["token_type_ids"][row].tolist()[:length] == pair["token_type_ids"]
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)
        assert batch["next_sentence_label"][row] == pair["next_sentence_label"]
        targets = int((batch["labels"][row] != -100).sum())
        assert targets == max(1, round(0.15 * (length - 3)))
    padding = batch["attention_mask"] == 0
    assert (batch["input_ids"][padding] == tokenizer.pad_token_id).all()
    assert (batch["labels"][padding] == -100).all()


def test_special_tokens_are_neither_chosen_nor_drawn(tokenizer, make_documents):
    pairs = NextSentencePairs(make_documents([300] * 20), tokenizer, max_length=128)
    collator = DataCollatorForPreTraining(
        tokenizer, mlm_probability=0.9, mask_replace_prob=0.0, random_replace_prob=1.0
    )
    drawn = np.zeros(len(tokenizer), dtype=np.int64)
    for begin in range(0, len(pairs), 256):
        batch = collator(pairs.__getitems__(range(begin, min(begin + 256, len(pairs)))))
        chosen = batch["labels"] != -100
        assert not np.isin(batch["labels"][chosen].numpy(), tokenizer.all_special_ids).any()
        drawn += np.bincount(batch["input_ids"][chosen].numpy(), minlength=len(tokenizer))
    unused = [tokenizer.convert_tokens_to_ids(f"[unused{i}]") for i in range(3)]
    assert drawn[tokenizer.all_special_ids].sum() == drawn[unused].sum() == 0
    allowed = np.delete(drawn, [*tokenizer.all_special_ids, *unused])
    expected = allowed.mean()
    assert ((allowed - expected) ** 2 / expected).sum() < stats.chi2.ppf(1 - 1e-6, len(allowed) - 1)


def test_mask_depends_on_seed_epoch_and_index_alone(pairs, tokenizer):
    collator = DataCollatorForPreTraining(tokenizer, seed=3)
    batch = collator(pairs.__getitems__(range(16)))
    for other in ([7, 3, 11], [3]):
        again = DataCollatorForPreTraining(tokenizer, seed=3)(pairs.__getitems__(other))
        row, width = other.index(3), again["labels"].shape[1]
        assert torch.equal(again["labels"][row], batch["labels"][3, :width])
        assert torch.equal(again["input_ids"][row], batch["input_ids"][3, :width])
    # examples that were fetched apart take the way of ordinary examples, with the same masks
    apart = DataCollatorForPreTraining(tokenizer, seed=3)([pairs[i] for i in range(16)])
    assert equal(apart, batch)
    columns = [{**pairs[i], "example_index": i, "epoch": pairs.epoch} for i in range(16)]
    assert equal(DataCollatorForPreTraining(tokenizer, seed=3)(columns), batch)
    reseeded = DataCollatorForPreTraining(tokenizer, seed=4)(pairs.__getitems__(range(16)))
    assert not torch.equal(reseeded["labels"], batch["labels"])


def test_masks_are_new_in_every_epoch(tokenizer):
    # two documents of two equal sentences: the pairs hardly change, so only masks can
    documents = [["w1 " * 30, "w1 " * 30]] * 8
    pairs = NextSentencePairs(documents, tokenizer, short_sequence_probability=0.0)
    collator = DataCollatorForPreTraining(tokenizer)
    masks = []
    for epoch in range(4):
        pairs.set_epoch(epoch)
        batch = collator(pairs.__getitems__(range(8)))
        masks += [tuple(row) for row in (batch["labels"] != -100).tolist()]
    assert len(set(masks)) == len(masks)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_do_not_depend_on_workers(pairs, tokenizer, workers):
    collator = DataCollatorForPreTraining(tokenizer, whole_word_mask=True)

    def epochs(n):
        loader = DataLoader(
            pairs, batch_size=8, collate_fn=collator, num_workers=n, persistent_workers=n > 0, shuffle=False
        )
        for epoch in range(3):
            pairs.set_epoch(epoch)
            yield from loader

    single, several = list(epochs(0)), list(epochs(workers))
    assert len(single) == len(several)
    assert all(equal(a, b) for a, b in zip(single, several, strict=True))


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(pairs, tokenizer):
    collator = DataCollatorForPreTraining(tokenizer)
    subset = Subset(pairs, range(12))
    pairs.set_epoch(2)
    loaders = [
        DataLoader(subset, batch_size=4, collate_fn=collator, num_workers=n, multiprocessing_context=context)
        for n, context in ((0, None), (1, "spawn"))
    ]
    assert all(equal(a, b) for a, b in zip(*loaders, strict=True))


def test_plain_examples_of_any_kind(tokenizer):
    collator = DataCollatorForPreTraining(tokenizer, pad_to_multiple_of=16)
    features = [
        tokenizer("w1 w2 w3"),
        tokenizer("w4 w5", "w6 w7 w8 w9"),
        {"input_ids": torch.tensor([2, 20, 21, 22, 3, 0]), "attention_mask": torch.tensor([1, 1, 1, 1, 1, 0])},
    ]
    batch = collator(features)
    assert sorted(batch) == ["attention_mask", "input_ids", "labels", "token_type_ids"]
    assert batch["input_ids"].shape == (3, 16)
    assert batch["attention_mask"].sum(1).tolist() == [5, 9, 5]
    assert batch["token_type_ids"].sum(1).tolist() == [0, 5, 0]
    assert ((batch["labels"] != -100).sum(1) == 1).all()
    labeled = [{**tokenizer("w1 w2"), "next_sentence_label": 1}]
    assert collator(labeled)["next_sentence_label"].tolist() == [1]
    assert "next_sentence_label" not in DataCollatorForPreTraining(tokenizer, next_sentence_labels=False)(labeled)


def test_plain_examples_have_a_seeded_stream(tokenizer):
    features = [tokenizer("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12")] * 4
    one, other = (DataCollatorForPreTraining(tokenizer, mlm_probability=0.5, seed=5) for _ in range(2))
    first, second = one(features), one(features)
    assert not torch.equal(first["labels"], second["labels"])
    assert equal(other(features), first) and equal(other(features), second)
    assert len({tuple(row) for row in first["labels"].tolist()}) == 4


def test_plain_examples_get_new_masks_in_every_epoch_with_workers(tokenizer):
    rows = [dict(tokenizer(" ".join(f"w{i}" for i in range(40))))] * 8
    loader = DataLoader(rows, batch_size=4, collate_fn=DataCollatorForPreTraining(tokenizer), num_workers=2)
    epochs = [torch.cat([batch["labels"] for batch in loader]) for _ in range(2)]
    assert len({tuple(row) for row in torch.cat(epochs).tolist()}) == 16


def test_word_ids_tell_words_where_the_tokenizer_marks_none():
    unmarked = PreTrainedTokenizerFast(tokenizer_object=_pieces_without_marks(), **TOKENS)
    collator = DataCollatorForPreTraining(unmarked, whole_word_mask=True, mlm_probability=0.4)
    ids = [10, 11, 12, 13, 14, 15]
    words = [0, 0, 1, 1, 2, 2]
    for _ in range(20):
        labels = collator([{"input_ids": ids, "word_ids": words}])["labels"][0]
        chosen = (labels != -100).tolist()
        assert chosen[::2] == chosen[1::2] and sum(chosen) == 2
    with pytest.raises(InputError, match="`whole_word_mask` needs .* or `word_ids`"):
        collator([{"input_ids": ids}])


def _pieces_without_marks():
    entries = [*TOKENS.values(), *"abcdefghijklmnop"]
    return Tokenizer(models.Unigram([(entry, -1.0) for entry in entries], unk_id=3))


@pytest.mark.parametrize("whole_words", [False, True])
def test_pairs_and_masks_of_any_tokenizer_in_any_language(tokenizer_of_any_kind, whole_words):
    tokenizer = tokenizer_of_any_kind
    documents = [LANGUAGES[i : i + 2] for i in range(0, len(LANGUAGES) - 1, 2)]
    pairs = NextSentencePairs(documents, tokenizer, max_length=256)
    collator = DataCollatorForPreTraining(tokenizer, whole_word_mask=whole_words, mlm_probability=0.3)
    batch = collator(pairs.__getitems__(range(len(pairs))))
    chosen = batch["labels"] != -100
    special = np.isin(original(batch).numpy(), tokenizer.all_special_ids)
    for row, pair in enumerate(pairs):
        ids = pair["input_ids"]
        assert original(batch)[row, : len(ids)].tolist() == ids
        assert ids[0] == tokenizer.cls_token_id and ids.count(tokenizer.sep_token_id) == 2
        candidates = int((~special[row]).sum())
        if whole_words:
            assert 1 <= chosen[row].sum() <= max(0.3 * candidates + 1, longest_word(tokenizer, ids))
        else:
            assert chosen[row].sum() == max(1, round(0.3 * candidates))
    assert not special[chosen.numpy()].any()


def longest_word(tokenizer, ids):
    continues = word_boundaries(tokenizer).continues_word(np.array([ids]))[0]
    begins = np.flatnonzero(~continues)
    return np.diff([*begins, len(ids)]).max()


def test_segments_can_be_left_out_for_models_that_have_none(pairs, tokenizer):
    collator = DataCollatorForPreTraining(tokenizer, token_type_ids=False)
    whole = DataCollatorForPreTraining(tokenizer)(pairs.__getitems__(range(4)))
    batch = collator(pairs.__getitems__(range(4)))
    assert whole.keys() - batch.keys() == {"token_type_ids"}
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=80,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    batch.pop("next_sentence_label")
    assert RobertaForMaskedLM(config)(**batch).loss > 0


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 512), min_size=1, max_size=4),
    special=st.booleans(),
    whole_words=st.booleans(),
    multiple=st.sampled_from([None, 8, 64]),
)
def test_any_lengths_and_sequences_of_special_tokens_only(tokenizer, lengths, special, whole_words, multiple):
    generator = np.random.default_rng(sum(lengths))
    choices = tokenizer.all_special_ids if special else range(8, len(tokenizer))
    features = [{"input_ids": generator.choice(list(choices), n).tolist()} for n in lengths]
    collator = DataCollatorForPreTraining(tokenizer, whole_word_mask=whole_words, pad_to_multiple_of=multiple)
    batch = collator(features)
    assert batch["input_ids"].shape[1] == -(-max(lengths) // (multiple or 1)) * (multiple or 1)
    targets = (batch["labels"] != -100).sum(1).tolist()
    if special:
        assert targets == [0] * len(lengths)
        assert torch.equal(original(batch), batch["input_ids"])
    else:
        assert all(count >= 1 for count in targets)
        if not whole_words:
            assert targets == [max(1, round(0.15 * n)) for n in lengths]
    for row, feature in enumerate(features):
        assert original(batch)[row, : lengths[row]].tolist() == feature["input_ids"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlm_probability": 1.5}, r"`mlm_probability` must lie in \(0, 1\), got 1.5"),
        ({"mlm_probability": 0}, r"`mlm_probability` must lie in \(0, 1\), got 0"),
        ({"mask_replace_prob": -0.1}, r"`mask_replace_prob` must lie in \[0, 1\]"),
        ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, "must not exceed 1, got 0.8 [+] 0.3"),
    ],
)
def test_bad_shares_are_named(tokenizer, changes, message):
    with pytest.raises(InputError, match=message):
        DataCollatorForPreTraining(tokenizer, **changes)


def test_tokenizer_without_mask_or_words_is_refused():
    entries = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    with pytest.raises(InputError, match="special tokens only"):
        DataCollatorForPreTraining(BertTokenizer(vocab=entries))
    bare = BertTokenizer(vocab={**entries, "w1": 5})
    bare.mask_token = None
    with pytest.raises(InputError, match="the tokenizer has no `mask_token`, which masked language modeling needs"):
        DataCollatorForPreTraining(bare)


def test_a_tokenizer_without_special_tokens_works_once_it_has_what_the_message_asks_for(tokenizer_of_any_kind):
    """As of GPT-2: nothing but a token for the end of a text."""
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of_any_kind.backend_tokenizer, eos_token="</s>")
    documents = [LANGUAGES[:2], LANGUAGES[2:4]]
    for part in (lambda: NextSentencePairs(documents, bare), lambda: DataCollatorForPreTraining(bare)):
        while True:
            try:
                made = part()
                break
            except InputError as error:
                name = re.search(r"the tokenizer has no `(\w+_token)`, which .* needs: set it with", str(error)).group(
                    1
                )
                bare.add_special_tokens({name: f"[{name}]"})
        assert made
    batch = made(NextSentencePairs(documents, bare).__getitems__(range(2)))
    assert (batch["labels"] != -100).any()
    added = [token.content for token in bare.added_tokens_decoder.values() if token.content.startswith("[")]
    assert added == ["[cls_token]", "[sep_token]", "[pad_token]", "[mask_token]"]
