"""Labeling a file: the same answers as the model row by row, and nothing written where something is wrong."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CanineConfig,
    CanineTokenizer,
    RobertaConfig,
    XLNetConfig,
)

import bert_toolkit
from bert_toolkit.data.tables import read_table
from bert_toolkit.errors import InputError
from bert_toolkit.predict import main, predict_logits

TEXTS = ["the dog sleeps today .", "a cat", "my friend laughs", "every child runs " * 12, "the old king sings ."] * 5


def save(folder, tiny_bert_dir, **settings):
    torch.manual_seed(1)
    model = bert_toolkit.ToolkitBertForSequenceClassification.from_pretrained(tiny_bert_dir, **settings)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.config.text_columns = ["text"]
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_bert_dir):
    folder = tmp_path_factory.mktemp("classifier")
    names = {"id2label": {0: "good", 1: "bad", 2: "ugly"}, "label2id": {"good": 0, "bad": 1, "ugly": 2}}
    return save(folder, tiny_bert_dir, num_labels=3, problem_type="single_label_classification", **names)


@pytest.fixture
def predict(monkeypatch, tmp_path):
    def run(model, data, output="out.tsv", **options):
        values = {"model_name_or_path": model, "data": data, "output": tmp_path / output, **options}
        words = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", ["predict", *words])
        main()
        return read_table(tmp_path / output)

    return run


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("n,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS)))
    return path


def test_logits_equal_those_of_single_rows(classifier):
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    logits, cut = predict_logits(model, tokenizer, [TEXTS], batch_size=4)
    with torch.no_grad():
        alone = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0].numpy() for text in TEXTS]
    np.testing.assert_allclose(logits, alone, atol=1e-5)
    assert cut == 5


def test_rows_of_several_sorted_parts_keep_their_order(classifier, monkeypatch):
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    pairs = [TEXTS, TEXTS[::-1]]
    whole, _ = predict_logits(model, tokenizer, pairs, batch_size=100)
    monkeypatch.setattr("bert_toolkit.predict.ROWS_SORTED", 7)
    parts, _ = predict_logits(model, tokenizer, pairs, batch_size=2)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize("output", ["out.tsv", "out.csv", "out.jsonl", "out.parquet"])
def test_every_format(predict, classifier, data, output, tmp_path, capsys):
    table = predict(classifier, data, output)
    assert list(table.columns) == ["n", "text", "prediction", "probability"]
    assert [text.strip() for text in table.columns["text"]] == [text.strip() for text in TEXTS]
    assert set(table.columns["prediction"]) <= {"good", "bad", "ugly"}
    assert all(1 / 3 <= float(probability) <= 1 for probability in table.columns["probability"])
    assert "25 rows of" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", output]


def test_several_labels_at_once_with_a_threshold(predict, tmp_path, tiny_bert_dir, data):
    names = {"id2label": {0: "x", 1: "y"}, "label2id": {"x": 0, "y": 1}}
    model = save(tmp_path / "m", tiny_bert_dir, num_labels=2, problem_type="multi_label_classification", **names)
    for threshold in (0.3, 0.5, 0.7):
        table = predict(model, data, f"{threshold}.jsonl", threshold=threshold)
        for row, labels in enumerate(table.columns["prediction"]):
            held = [name for name in "xy" if table.columns[f"probability of {name}"][row] >= threshold]
            assert labels == "; ".join(held)


def test_regression_and_pairs(predict, tmp_path, tiny_bert_dir, data):
    model = save(tmp_path / "m", tiny_bert_dir, num_labels=1, problem_type="regression")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps({"a": text, "b": "a cat"}) for text in TEXTS))
    settings = tmp_path / "settings.yaml"
    settings.write_text("text_columns: [a, b]\n")
    words = ["predict", str(settings), "--model_name_or_path", str(model), "--data", str(tmp_path / "pairs.jsonl")]
    sys_argv, sys.argv = sys.argv, [*words, "--output", str(tmp_path / "out.jsonl")]
    try:
        main()
    finally:
        sys.argv = sys_argv
    loaded, tokenizer = AutoModelForSequenceClassification.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        expected = loaded(**tokenizer(TEXTS[0], "a cat", truncation=True, return_tensors="pt")).logits.item()
    assert read_table(tmp_path / "out.jsonl").columns["prediction"][0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("n,text\n1,a\n2,\n", {}, "data.csv:3 has nothing in column 'text'"),
        ("n,txt\n1,a\n", {}, "data.csv:2 has no column 'text': there are 'n', 'txt'"),
        ("text,prediction\na,b\n", {}, "has a column 'prediction' already"),
        ("text\na\n", {"output": "out.xlsx"}, "the ending of .* must be one of"),
        ("text\na\n", {"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ("text\na\n", {"threshold": 1}, r"`threshold` must lie in \(0, 1\), got 1.0"),
        ("text\na\n", {"model": "/absent"}, "/absent"),
    ],
)
def test_refused_and_nothing_written(predict, classifier, tmp_path, content, options, message):
    path = tmp_path / "data.csv"
    path.write_text(content)
    options = dict(options)
    with pytest.raises(InputError, match=message) as caught:
        predict(options.pop("model", classifier), path, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_model_without_a_classifier(predict, tiny_bert_dir, data):
    with pytest.raises(InputError, match="holds no classifier, 'classifier.bias', 'classifier.weight' are missing"):
        predict(tiny_bert_dir, data)


def test_model_that_does_not_name_its_columns(predict, tmp_path, tiny_bert_dir, data):
    model = save(tmp_path / "m", tiny_bert_dir, num_labels=2)
    settings = json.loads((model / "config.json").read_text())
    del settings["text_columns"]
    (model / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="name one or two `text_columns` of .*data.csv: there are 'n', 'text'"):
        predict(model, data)
    assert len(predict(model, data, text_columns="text")) == 25


@pytest.mark.parametrize("kind", ["roberta", "xlnet", "canine"])
def test_other_architectures(predict, tmp_path, tiny_bert_dir, kind):
    """Positions that begin after the padding, no table of them, a tokenizer that does not say what it cuts."""
    torch.manual_seed(1)
    folder = tmp_path / kind
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    tokenizer.model_max_length = 10**30
    small = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_attention_heads": 2, "num_labels": 2}
    if kind == "roberta":
        settings = RobertaConfig(
            num_hidden_layers=1,
            intermediate_size=32,
            max_position_embeddings=18,
            pad_token_id=1,
            type_vocab_size=2,
            **small,
        )
    elif kind == "xlnet":
        settings = XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=1, n_head=2, d_inner=32, num_labels=2)
    else:
        tokenizer = CanineTokenizer(model_max_length=16)
        settings = CanineConfig(
            num_hidden_layers=1,
            intermediate_size=32,
            num_hash_buckets=64,
            max_position_embeddings=16,
            downsampling_rate=4,
            local_transformer_stride=8,
            **{k: v for k, v in small.items() if k != "vocab_size"},
        )
    settings.text_columns = ["text"]
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = tmp_path / "data.csv"
    data.write_text(
        "text\n" + "".join(f"{text}\n" for text in ["the dog", "every child runs " * 12]), encoding="utf-8"
    )
    table = predict(folder, data, "out.jsonl")
    assert len(table) == 2 and all(0.5 <= probability <= 1 for probability in table.columns["probability"])


def test_diverged_model(predict, tmp_path, tiny_bert_dir, data):
    model = save(tmp_path / "m", tiny_bert_dir, num_labels=2)
    broken = AutoModelForSequenceClassification.from_pretrained(model)
    torch.nn.init.constant_(broken.classifier.bias, float("nan"))
    broken.save_pretrained(model)
    with pytest.raises(InputError, match="gives NaN or infinite logits"):
        predict(model, data)
    assert not (tmp_path / "out.tsv").exists()


def test_existing_output_needs_permission(predict, classifier, data, tmp_path):
    (tmp_path / "out.tsv").write_text("precious")
    with pytest.raises(InputError, match="out.tsv exists: choose another name or pass `overwrite true`"):
        predict(classifier, data)
    assert (tmp_path / "out.tsv").read_text() == "precious"
    assert len(predict(classifier, data, overwrite=True)) == 25
