"""Corpora on disk: contents, processes, and what an interrupted run leaves."""

import errno
import json
import os
import pickle
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import psutil
import pytest

from bert_toolkit import InputError, TokenizedDocuments
from bert_toolkit.pretraining import sentence_encoder, tokenized_documents
from bert_toolkit.pretraining.sentence_encoder import tokenizer_fingerprint


def split_at_bars(text):
    return text.split("|")


def same(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "sentence_starts", "document_starts")
    )


def test_arrays_hold_the_tokenizers_ids(tokenizer, make_documents):
    documents = make_documents([3, 1, 5])
    corpus = TokenizedDocuments.from_documents(documents, tokenizer)
    sentences = [sentence for document in documents for sentence in document]
    expected = [tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in sentences]
    found = np.split(corpus.tokens, corpus.sentence_starts[1:-1])
    assert [ids.tolist() for ids in found] == expected
    assert corpus.document_starts.tolist() == [0, 3, 4, 9]
    assert len(corpus) == 3
    assert corpus.tokens.dtype == np.uint16


def test_empty_sentences_and_documents_are_left_out(tokenizer):
    corpus = TokenizedDocuments.from_documents([["w1", " ", "w2 w3"], [], [""], ["w4"]], tokenizer)
    assert corpus.document_starts.tolist() == [0, 2, 3]
    assert corpus.sentence_starts.tolist() == [0, 1, 3, 4]


def test_what_is_left_out_and_not_known_is_counted(tokenizer, tmp_path):
    documents = [["w1", " ", "w2 w3 nonsense"], [], [""], ["w4 ☃ ☃"]]
    corpus = TokenizedDocuments.from_documents(documents, tokenizer)
    assert corpus.losses == (2, 2, 3)  # documents and sentences without tokens, unknown tokens
    built = TokenizedDocuments.build(tmp_path / "corpus", documents, tokenizer, show_progress=False)
    assert built.losses == corpus.losses == pickle.loads(pickle.dumps(corpus)).losses
    description = tmp_path / "corpus" / "corpus.json"
    earlier = {key: value for key, value in json.loads(description.read_text()).items() if key != "losses"}
    description.write_text(json.dumps(earlier))
    assert TokenizedDocuments.open(tmp_path / "corpus").losses == (0, 0, 0)


def test_settings_left_in_the_tokenizer_do_not_cut_sentences(tokenizer):
    tokenizer(["w1 w2 w3 w4"], truncation=True, max_length=3, padding="max_length")
    corpus = TokenizedDocuments.from_documents([[" ".join(["w1"] * 50)]], tokenizer)
    assert len(corpus.tokens) == 50


@pytest.mark.parametrize("processes", [1, 3])
def test_disk_and_memory_hold_the_same(tokenizer, make_documents, tmp_path, monkeypatch, processes):
    monkeypatch.setattr(sentence_encoder, "_BATCH_CHARACTERS", 500)
    documents = make_documents([7] * 40)
    texts = ["|".join(document) for document in documents]
    corpus = TokenizedDocuments.build(
        tmp_path / "a" / "corpus", texts, tokenizer, split_at_bars, processes, show_progress=False
    )
    assert same(corpus, TokenizedDocuments.from_documents(documents, tokenizer))
    assert isinstance(corpus.tokens, np.memmap)
    assert same(corpus, TokenizedDocuments.open(corpus.directory))
    assert corpus.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["corpus"]


def test_memory_does_not_grow_with_the_corpus(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sentence_encoder, "_BATCH_CHARACTERS", 50_000)

    def peak(size):
        texts = ("w1 w2 w3|" * 1000 for _ in range(size))
        tracemalloc.start()
        TokenizedDocuments.build(tmp_path / str(size), texts, tokenizer, split_at_bars, show_progress=False)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(12), peak(60)
    assert many < 1.2 * few


class FullDisk:
    """A file on which the n-th write finds the disk full."""

    def __init__(self, file, writes):
        self.file, self.writes = file, writes

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, data):
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


def test_full_disk_leaves_nothing_that_is_reused(tokenizer, make_documents, tmp_path, monkeypatch):
    monkeypatch.setattr(sentence_encoder, "_BATCH_CHARACTERS", 500)
    documents, target = make_documents([5] * 30), tmp_path / "corpus"
    real_open = tokenized_documents.Path.open

    def open_full(path, mode="r", *args, **kwargs):
        file = real_open(path, mode, *args, **kwargs)
        return FullDisk(file, 3) if path.name == "tokens.bin" else file

    with monkeypatch.context() as patch:
        patch.setattr(tokenized_documents.Path, "open", open_full)
        with pytest.raises(InputError, match="could not write .*corpus: No space left on device; nothing of it"):
            TokenizedDocuments.build(target, documents, tokenizer, show_progress=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no tokenized corpus in"):
        TokenizedDocuments.open(target)
    corpus = TokenizedDocuments.build(target, documents, tokenizer, show_progress=False)
    assert same(corpus, TokenizedDocuments.from_documents(documents, tokenizer))


BUILD = """
import sys, time
from transformers import AutoTokenizer
from bert_toolkit import TokenizedDocuments
def documents():
    while True:
        yield ["w1 w2 w3"] * 20_000
TokenizedDocuments.build(sys.argv[2], documents(), AutoTokenizer.from_pretrained(sys.argv[1]), processes=2)
"""


def test_kill_leaves_no_process_and_the_next_build_removes_what_it_wrote(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    target = tmp_path / "cache" / "corpus"
    command = [sys.executable, "-c", BUILD, str(tmp_path / "tokenizer"), str(target)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(file.stat().st_size for file in tmp_path.glob("cache/.corpus.unfinished.*/tokens.bin")))
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        (folder,) = target.parent.iterdir()
        old = time.time() - 3600
        os.utime(folder, (old, old))
        TokenizedDocuments.build(target, [["w1"]], tokenizer, show_progress=False)
        assert folder.exists(), "another process is still at it"
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
    os.utime(folder, (old, old))
    TokenizedDocuments.build(target, [["w1"]], tokenizer, show_progress=False)
    assert list(target.parent.iterdir()) == [target]


def wait_for(condition, patience=120):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_error_in_the_documents_leaves_the_old_corpus(tokenizer, make_documents, tmp_path):
    old = TokenizedDocuments.build(tmp_path / "corpus", make_documents([4] * 3), tokenizer, show_progress=False)
    before = np.array(old.tokens)

    def broken():
        yield ["w1", "w2"]
        raise InputError("page 7 is missing")

    with pytest.raises(InputError, match="page 7 is missing"):
        TokenizedDocuments.build(tmp_path / "corpus", broken(), tokenizer, show_progress=False)
    assert np.array_equal(TokenizedDocuments.open(tmp_path / "corpus").tokens, before)


def test_a_folder_that_is_no_corpus_is_not_replaced(tokenizer, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="no tokenized corpus in"):
        TokenizedDocuments.build(tmp_path / "thesis", [["w1", "w2"]], tokenizer, show_progress=False)
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_empty_corpus_is_named(tokenizer, tmp_path):
    for documents in ([], [[]], [[" "]]):
        with pytest.raises(InputError, match="the corpus is empty"):
            TokenizedDocuments.build(tmp_path / "corpus", documents, tokenizer, show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_other_format_is_named(tokenizer, make_documents, tmp_path):
    TokenizedDocuments.build(tmp_path / "corpus", make_documents([4] * 3), tokenizer, show_progress=False)
    description = tmp_path / "corpus" / "corpus.json"
    description.write_text(description.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(InputError, match="format 99, this version reads format 1"):
        TokenizedDocuments.open(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("corpus.json", lambda content: content[:20], "corpus.json cannot be read"),
        ("corpus.json", lambda content: b"[]", "corpus.json does not describe a corpus"),
        ("corpus.json", lambda content: content.replace(b"int64", b"O"), "names other types of numbers"),
        ("corpus.json", lambda content: content.replace(b'": 0', b'": "0"'), "counts losses in something other"),
        ("tokens.bin", lambda content: content[:-2], "sentence_starts.bin does not fit"),
        ("sentence_starts.bin", lambda content: content[:-3], "multiple of the data-type size"),
        ("sentence_starts.bin", lambda content: content[:-8], "document_starts.bin does not fit"),
        ("document_starts.bin", lambda content: b"", "cannot mmap an empty file"),
    ],
    ids=["cut-json", "other-json", "types", "losses", "tokens-cut", "half-an-offset", "sentences-cut", "empty"],
)
def test_damaged_corpus_is_named(tokenizer, make_documents, tmp_path, name, damage, message):
    TokenizedDocuments.build(tmp_path / "corpus", make_documents([4] * 3), tokenizer, show_progress=False)
    file = tmp_path / "corpus" / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=f"is damaged: .*{message}.*delete the folder"):
        TokenizedDocuments.open(tmp_path / "corpus")
