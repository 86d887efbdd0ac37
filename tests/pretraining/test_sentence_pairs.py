"""Pairs against the definition: documents, labels, lengths, what is put back, and dependence on the key alone."""

import pickle

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import BertTokenizer

from bert_toolkit import DataCollatorForPreTraining, InputError, NextSentencePairs, TokenizedDocuments
from bert_toolkit.pretraining import sentence_pairs

LONG = [40] * 30


def sentences_as_ids(documents, tokenizer):
    return [[tokenizer(s, add_special_tokens=False)["input_ids"] for s in document] for document in documents]


def halves(pair):
    ids, types = np.array(pair["input_ids"]), np.array(pair["token_type_ids"])
    return ids[types == 0][1:-1], ids[types == 1][:-1]


def find(needle, texts):
    """All (document, begin) where the tokens of a segment occur."""
    text, found = needle.tobytes(), []
    for number, document in enumerate(texts):
        whole, begin = document.tobytes(), 0
        while (begin := whole.find(text, begin)) != -1:
            if begin % 8 == 0:
                found.append((number, begin // 8))
            begin += 1
    return found


@pytest.mark.parametrize("max_length", [16, 64, 200])
def test_b_follows_a_or_is_from_another_document(tokenizer, make_documents, max_length):
    documents = make_documents([12] * 8 + [2, 3, 40])
    pairs = NextSentencePairs(documents, tokenizer, max_length=max_length, seed=3)
    texts = [np.array(sum(d, []), dtype=np.int64) for d in sentences_as_ids(documents, tokenizer)]
    starts = [set(np.cumsum([0, *map(len, d)]).tolist()) for d in sentences_as_ids(documents, tokenizer)]
    adjoining = 0
    for pair in pairs:
        ids, types = pair["input_ids"], pair["token_type_ids"]
        assert len(ids) <= max_length
        assert ids[0] == tokenizer.cls_token_id
        assert [i for i, token in enumerate(ids) if token == tokenizer.sep_token_id] == [
            types.index(1) - 1,
            len(ids) - 1,
        ]
        assert types == sorted(types)
        a, b = halves(pair)
        assert len(a) >= 1 and len(b) >= 1
        if len(a) < 4 or len(b) < 4:
            continue  # too short to be found in one place only
        in_a, in_b = find(a, texts), find(b, texts)
        assert in_a and in_b, "a segment must be a stretch of one document"
        shared = {document for document, _ in in_a} & {document for document, _ in in_b}
        if pair["next_sentence_label"] == 1:
            assert not shared
        else:
            assert shared
            gaps = [y - x - len(a) for d, x in in_a for e, y in in_b if d == e]
            assert min(gap for gap in gaps if gap >= 0) >= 0
            adjoining += 0 in gaps
        if len(ids) < max_length:  # untrimmed segments are whole sentences
            assert any(x in starts[d] and x + len(a) in starts[d] for d, x in in_a)
            assert any(x in starts[d] and x + len(b) in starts[d] for d, x in in_b)
    assert adjoining > 0


@pytest.mark.parametrize("sizes", [[3] * 200, [2] * 150 + [1] * 150, [60, 5, 7, 300], LONG], ids=str)
@pytest.mark.parametrize("probability", [0.5, 0.3, 0.0, 1.0])
def test_share_of_random_pairs_holds_by_construction(tokenizer, make_documents, sizes, probability):
    pairs = NextSentencePairs(make_documents(sizes), tokenizer, random_next_probability=probability, max_length=48)
    for epoch in range(4):
        pairs.set_epoch(epoch)
        labels = [pair["next_sentence_label"] for pair in pairs]
        assert len(labels) == len(pairs)
        assert abs(sum(labels) - probability * len(labels)) <= 2
        assert pairs.random_next_share == np.mean(labels)


def test_random_b_is_uniform_over_the_other_documents_sentences(tokenizer, make_documents):
    sizes = [5, 10, 20, 40, 80]
    pairs = NextSentencePairs(
        make_documents(sizes, longest=6), tokenizer, random_next_probability=1.0, max_length=24, seed=9
    )
    first_word = tokenizer.convert_tokens_to_ids("w0")
    counts = np.zeros((5, 5))
    for epoch in range(150):
        pairs.set_epoch(epoch)
        begin, _, other, _ = pairs._cutter.segments(pairs._starts, pairs._random_next, epoch)
        tokens = pairs.documents.tokens
        at = pairs.documents.sentence_starts[pairs.documents.document_starts]
        owner = np.searchsorted(at, begin, side="right") - 1
        drawn = np.searchsorted(at, other, side="right") - 1
        np.add.at(counts, (owner, drawn), 1)
    assert first_word in tokens
    assert np.all(np.diag(counts) == 0)
    for row, own in zip(counts, range(5), strict=True):
        share = np.array(sizes, dtype=float)
        share[own] = 0
        expected = row.sum() * share / share.sum()
        chi2 = ((row - expected)[share > 0] ** 2 / expected[share > 0]).sum()
        assert chi2 < stats.chi2.ppf(1 - 1e-6, 3)


def test_sentences_after_a_are_put_back_when_b_is_random(tokenizer, make_documents):
    documents = make_documents(LONG)
    pairs = NextSentencePairs(documents, tokenizer, seed=5, max_length=100)
    begin, split, end = pairs._cutter.chunks(np.sort(pairs._starts), 0)
    order = np.argsort(pairs._starts)
    random_next = pairs._random_next[order]
    starts = pairs._starts[order]
    ends = pairs.documents.document_starts[1:]
    following = starts[1:]
    expected = np.where(random_next & (begin == starts), split, end)[:-1]
    # every walk goes on where the last pair stopped using the text, unless the walk itself begins there
    assert np.mean(following == expected) > 1 - 3 / len(starts)
    assert np.all((expected <= following) | np.isin(following, ends))


def test_every_sentence_is_used_in_every_epoch(tokenizer, make_documents):
    documents = make_documents([7, 2, 30, 11, 3])
    pairs = NextSentencePairs(documents, tokenizer, max_length=60, random_next_probability=0.0)
    begin, _, end = pairs._cutter.chunks(pairs._starts, 0)
    used = {s for b, e in zip(begin, end, strict=True) for s in range(b, e)}
    assert used == set(range(7 + 2 + 30 + 11 + 3))


def test_a_tenth_of_the_targets_is_short(tokenizer, make_documents):
    documents = make_documents([3000] * 3, longest=5)
    full = [NextSentencePairs(documents, tokenizer, max_length=64, seed=s).lengths() for s in range(3)]
    lengths = np.concatenate(full)
    # a short target is uniform over 2 … 61 and sentences have at most 6 tokens: most end below 58; 2,500 pairs
    assert 0.07 < np.mean(lengths < 58) < 0.11
    none = NextSentencePairs(documents, tokenizer, max_length=64, short_sequence_probability=0.0).lengths()
    assert np.mean(none == 64) > 0.95


def test_trimming_takes_the_longer_side_and_both_ends(tokenizer):
    documents = [[" ".join(f"w{i}" for i in range(100)), " ".join(f"w{i}" for i in range(100, 300))]] * 2
    pairs = NextSentencePairs(documents, tokenizer, max_length=83, random_next_probability=0.0)
    seen = set()
    w = tokenizer.convert_tokens_to_ids("w0")
    for epoch in range(20):
        pairs.set_epoch(epoch)
        for pair in pairs:
            a, b = halves(pair)
            assert len(a) == len(b) == 40
            assert a[0] - w in (0, 60) and b[0] - w in (100, 260)
            seen.add((a[0] - w, b[0] - w))
    assert len(seen) == 4


def test_example_depends_on_seed_epoch_and_index_alone(tokenizer, make_documents):
    documents = make_documents(LONG)
    one, other = (NextSentencePairs(documents, tokenizer, seed=1) for _ in range(2))
    one.set_epoch(3)
    _ = [one[i] for i in range(10)]
    one.set_epoch(1)
    other.set_epoch(1)
    whole = [dict(pair) for pair in one.__getitems__(range(len(one)))]
    for index in (len(one) - 1, 0, 17, -1):
        assert dict(other[index]) == whole[index]
    assert [dict(pair) for pair in pickle.loads(pickle.dumps(one))] == whole
    one.set_epoch(2)
    changed = sum(dict(pair) != before for pair, before in zip(one, whole, strict=True))
    assert changed > 0.95 * len(one)
    reseeded = NextSentencePairs(documents, tokenizer, seed=2)
    assert sum(dict(a) != dict(b) for a, b in zip(reseeded, other, strict=False)) > 0.95 * len(one)


def test_length_is_the_same_in_all_epochs_and_iteration_ends(tokenizer, make_documents):
    pairs = NextSentencePairs(make_documents([9, 4, 17, 30]), tokenizer, max_length=40)
    for epoch in range(30):
        pairs.set_epoch(epoch)
        assert len(list(pairs)) == len(pairs)
    with pytest.raises(IndexError, match="out of range"):
        pairs[len(pairs)]


def test_pairs_do_not_depend_on_how_many_are_planned_at_once(tokenizer, make_documents, monkeypatch):
    documents = make_documents([9, 4, 17, 1, 30])
    planned = {}
    for block in (6, 1 << 18):
        monkeypatch.setattr(sentence_pairs, "_BLOCK", block)
        pairs = NextSentencePairs(documents, tokenizer, max_length=40, random_next_probability=0.4, group_size=4)
        planned[block] = []
        for epoch in range(3):
            pairs.set_epoch(epoch)
            planned[block] += [dict(pair) for pair in pairs] + pairs.lengths().tolist()
    assert len(planned[6]) > 3 * 2 * 12 and planned[6] == planned[1 << 18]


def test_groups_have_nearly_equal_lengths(tokenizer, make_documents):
    documents = make_documents([50] * 60, longest=8)
    settings_ = {"max_length": 64, "short_sequence_probability": 0.5}
    plain = NextSentencePairs(documents, tokenizer, **settings_)
    grouped = NextSentencePairs(documents, tokenizer, group_size=16, **settings_)

    def padding(pairs):
        lengths = pairs.lengths()[: len(pairs) // 16 * 16].reshape(-1, 16)
        return 1 - lengths.sum() / (lengths.max(1) * 16).sum()

    assert padding(grouped) < 0.25 * padding(plain)
    assert sorted(map(str, map(dict, grouped))) == sorted(map(str, map(dict, plain)))


def test_takes_lists_datasets_and_corpora_on_disk(tokenizer, make_documents, tmp_path):
    documents = make_documents(LONG)
    expected = [dict(pair) for pair in NextSentencePairs(documents, tokenizer, seed=4)]
    rows = datasets.Dataset.from_dict({"sentences": documents})
    assert [dict(pair) for pair in NextSentencePairs(rows, tokenizer, seed=4)] == expected
    corpus = TokenizedDocuments.build(tmp_path / "corpus", documents, tokenizer, show_progress=False)
    on_disk = NextSentencePairs(corpus, tokenizer, seed=4)
    assert [dict(pair) for pair in on_disk] == expected
    pickled = pickle.dumps(on_disk.documents)
    assert len(pickled) < 2000, "a mapped corpus is opened again by a worker, not copied"
    assert np.array_equal(pickle.loads(pickled).tokens, corpus.tokens)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=12).filter(lambda sizes: max(sizes) > 1),
    max_length=st.integers(8, 90),
    epoch=st.integers(0, 5),
    longest=st.integers(2, 60),
)
def test_any_corpus_gives_valid_pairs(tokenizer, make_documents, sizes, max_length, epoch, longest):
    pairs = NextSentencePairs(make_documents(sizes, longest=longest), tokenizer, max_length=max_length)
    pairs.set_epoch(epoch)
    batch = pairs.__getitems__(range(len(pairs)))
    labels = [pair["next_sentence_label"] for pair in batch]
    assert abs(sum(labels) - len(labels) / 2) <= 2
    for pair, length in zip(batch, pairs.lengths(), strict=True):
        ids = pair["input_ids"]
        assert len(ids) == length <= max_length
        assert ids.count(tokenizer.sep_token_id) == 2 and ids.count(tokenizer.cls_token_id) == 1
        assert ids[-1] == tokenizer.sep_token_id
        assert tokenizer.pad_token_id not in ids


@pytest.mark.parametrize(
    ("documents", "changes", "message"),
    [
        ([], {}, "the corpus is empty: no document has a token"),
        ([["", " "]], {"random_next_probability": 0.0}, "the corpus is empty: no document has a token"),
        ([["w1 w2", "w3"]], {}, "at least 2 documents, got 1: .*--documents_split"),
        ([["w1"], ["w2"], ["w3"]], {}, "all 3 documents have one sentence"),
        ([["w1", "w2"]] * 2, {"max_length": 7}, "`max_length` must be at least 8 tokens .*got 7"),
        ([["w1", "w2"]] * 2, {"random_next_probability": 1.5}, r"`random_next_probability` must lie in \[0, 1\]"),
        ([["w1", "w2"]] * 2, {"short_sequence_probability": -1}, r"`short_sequence_probability` must lie in \[0, 1\]"),
        ([["w1", "w2"]] * 2, {"group_size": 0}, "`group_size` must be at least 1"),
        (["w1 w2. w3", "w4"], {}, "document 0 must be a list of sentences .*got one string"),
        ([["w1", 5], ["w2", "w3"]], {}, "document 0 must be a list of sentences"),
    ],
)
def test_bad_input_is_named(tokenizer, documents, changes, message):
    with pytest.raises(InputError, match=message):
        NextSentencePairs(documents, tokenizer, **changes)


def test_one_document_is_enough_where_no_b_is_random(tokenizer):
    pairs = NextSentencePairs([["w1 w2", "w3", "w4"]], tokenizer, random_next_probability=0.0)
    assert pairs[0]["next_sentence_label"] == 0


def test_one_sentence_is_enough_where_no_b_is_random(tokenizer):
    documents = [["w1 w2"], ["w3", "w4"], ["w5 " * 40]]
    pairs = NextSentencePairs(documents, tokenizer, random_next_probability=0.0, max_length=16)
    batch = DataCollatorForPreTraining(tokenizer)(pairs.__getitems__(range(len(pairs))))
    assert pairs.lengths().tolist() == batch["attention_mask"].sum(1).tolist()
    texts = {
        tokenizer.decode(pair["input_ids"]): (sum(pair["token_type_ids"]), pair["next_sentence_label"])
        for pair in pairs
    }
    expected = {"[CLS] w1 w2 [SEP]": (0, 0), "[CLS] w3 [SEP] w4 [SEP]": (2, 0)}
    assert texts == {**expected, f"[CLS] {' '.join(['w5'] * 13)} [SEP]": (0, 0)}


@pytest.mark.parametrize("missing", ["[SEP]", "[CLS]"])
def test_missing_special_token_is_named(missing):
    entries = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w1") if token != missing]
    bare = BertTokenizer(vocab={token: i for i, token in enumerate(entries)})
    name = {"[SEP]": "sep_token", "[CLS]": "cls_token"}[missing]
    setattr(bare, name, None)
    with pytest.raises(InputError, match=f"the tokenizer has no `{name}`"):
        NextSentencePairs([["w1", "w1"]] * 2, bare)


def test_corpus_of_another_tokenizer_is_refused(tokenizer):
    corpus = TokenizedDocuments.from_documents([["w1", "w2"]] * 2, tokenizer)
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w1"]
    other = BertTokenizer(vocab={token: i for i, token in enumerate(entries)})
    with pytest.raises(InputError, match="tokenized with another tokenizer"):
        NextSentencePairs(corpus, other)
