"""Encoders of other architectures are trained, saved and used, or refused before training in one line."""

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import any_encoder
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bert_toolkit import InputError
from bert_toolkit.predict import main as predict_main

classify_main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "classify.py"))["main"]
TEXTS = ["the dog sleeps", "a cat runs today .", "my friend laughs", "every child sings " * 9, "the old king waits"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    rows = [("text", "label"), *((text, "ab"[i % 2]) for i, text in enumerate(TEXTS * 6))]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    def run_with(model, **changes):
        values = {
            "train_data": tmp_path / "data.csv", "model_name_or_path": model, "output_dir": tmp_path / "run",
            "max_steps": 3, "per_device_train_batch_size": 8, "max_length": 24, "cpu_threads": 1, "report_to": "none",
            **changes,
        }  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["classify.py", *(str(w) for k, v in values.items() for w in (f"--{k}", v))])
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        classify_main()
        return tmp_path / "run"

    return run_with


RARE = ("esm", "ibert", "perceiver")


@pytest.mark.parametrize(
    "name",
    ["roberta", "canine", "xlnet", "t5", "deberta", *(pytest.param(name, marks=pytest.mark.slow) for name in RARE)],
)
def test_is_trained_saved_and_used(name, run, tmp_path, monkeypatch, capsys):
    output_dir = run(any_encoder.save(getattr(any_encoder, name), tmp_path / "model"))
    with (output_dir / "predictions.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    answers = pipeline("text-classification", model=str(output_dir))([row["text"] for row in rows], truncation=True)
    assert [answer["label"] for answer in answers] == [row["prediction"] for row in rows]
    expected = [float(row["probability"]) for row in rows]
    assert [answer["score"] for answer in answers] == pytest.approx(expected, abs=2e-5)
    with (tmp_path / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text",), *((row["text"],) for row in rows)])
    arguments = ["--model_name_or_path", output_dir, "--data", tmp_path / "new.csv", "--output", tmp_path / "o.jsonl"]
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    predict_main()
    labeled = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in labeled] == [row["prediction"] for row in rows]
    assert [row["probability"] for row in labeled] == pytest.approx(expected, abs=2e-5)
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    cut = sum(len(ids) > 24 for ids in tokenizer([row["text"] for row in rows])["input_ids"])
    said = capsys.readouterr().out
    assert f"{cut} were longer than 24 tokens and cut" in said if cut else "cut" not in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "max_length", "message"),
    [
        ("roberta", 65, r"`max_length` must lie in 5 to 64 for .*/model, got 65"),
        ("roberta", 4, r"`max_length` must lie in 5 to 64 for"),
        ("canine", 129, r"`max_length` must lie in 5 to 128 for"),
        ("xlnet", 4, r"`max_length` must be at least 5 for"),
        ("t5", 1, r"`max_length` must be at least 5 for"),
        (
            "nystromformer",
            24,
            r"NystromformerForSequenceClassification\) cannot classify texts of 24 tokens: .*choose",
        ),
        ("reformer", 24, r"ReformerForSequenceClassification\) cannot classify texts of 24 tokens: If training"),
        ("reformer", 64, r"ReformerForSequenceClassification\) cannot classify texts of 64 tokens: If training"),
        ("ibert", 65, r"`max_length` must lie in 5 to 64 for .*/model, got 65"),
        ("gpt2", 24, r"has no padding token, so texts cannot form a batch: choose an encoder"),
    ],
)
def test_is_refused_before_training(name, max_length, message, run, tmp_path):
    model = any_encoder.save(getattr(any_encoder, name), tmp_path / "model")
    with pytest.raises(InputError, match=message) as error:
        run(model, max_length=max_length)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("name", ["roberta", "canine"])
def test_longest_texts_are_trained(name, run, tmp_path):
    model = any_encoder.save(getattr(any_encoder, name), tmp_path / "model")
    longest = {"roberta": 64, "canine": 128}[name]
    output_dir = run(model, max_length=longest, train_data=write_long(tmp_path))
    assert AutoModelForSequenceClassification.from_pretrained(output_dir).config.num_labels == 2


def write_long(folder: Path) -> Path:
    rows = [{"text": "the dog sleeps " * 60 + "today", "label": i % 2} for i in range(20)]
    (folder / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "long.jsonl"


def test_checkpoints_have_the_names_of_the_parameters(run, tmp_path):
    """Otherwise the best checkpoint comes back without some of its weights, and so does one to resume from."""
    output_dir = run(any_encoder.save(any_encoder.esm, tmp_path / "model"))
    names = set(AutoModelForSequenceClassification.from_pretrained(output_dir).state_dict())
    for folder in (output_dir, *output_dir.glob("checkpoint-*")):
        saved = set(load_file(folder / "model.safetensors"))
        assert saved <= names and any(name.endswith("LayerNorm.weight") for name in saved)


@pytest.mark.parametrize("implementation", ["toolkit", "transformers"])
class TestFolders:
    """What people have in the folder of a model."""

    def test_without_a_tokenizer(self, implementation, run, tiny_bert_dir, tmp_path):
        """transformers makes one that knows no word, so that all texts would be the same."""
        model = tmp_path / "model"
        model.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(Path(tiny_bert_dir) / name, model)
        with pytest.raises(InputError, match="model holds no tokenizer, or one without words: save it there with"):
            run(model, implementation=implementation)

    def test_with_a_tokenizer_that_has_grown(self, implementation, run, tiny_bert_dir, tmp_path):
        model = shutil.copytree(tiny_bert_dir, tmp_path / "model")
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_tokens(["laughs-out-loud", "dog sleeps"])
        tokenizer.save_pretrained(model)
        with pytest.raises(InputError, match=r"gives `input_ids` up to \d+, .*model has a `vocab_size` of \d+: take"):
            run(model, implementation=implementation)
        assert not list((tmp_path / "run").glob("checkpoint-*"))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_saved_in_half_precision(self, dtype, implementation, run, tiny_bert_dir, tmp_path, capsys):
        """Trained as it was saved, most updates would be rounded away."""
        model = shutil.copytree(tiny_bert_dir, tmp_path / "model")
        AutoModel.from_pretrained(model, dtype=dtype).save_pretrained(model)
        output_dir = run(model, implementation=implementation)
        assert {tensor.dtype for tensor in load_file(output_dir / "model.safetensors").values()} == {torch.float32}
        assert json.loads((output_dir / "config.json").read_text())["dtype"] == "float32"
        assert (
            f"saved in {str(dtype).removeprefix('torch.')}, trained and saved in float32: " in capsys.readouterr().out
        )


@pytest.mark.parametrize("recipe", ["token_classification", "question_answering"])
def test_other_heads_are_tried_too(recipe, tiny_bert_dir, tmp_path, monkeypatch):
    if recipe == "token_classification":
        (tmp_path / "data.conll").write_text(
            "\n\n".join("\n".join(f"{w} {w[0]}" for w in t.split()) for t in TEXTS * 3)
        )
        values = {"train_data": tmp_path / "data.conll"}
    else:
        paragraphs = [
            {"context": text, "qas": [{"question": "today", "answers": [{"text": text, "answer_start": 0}]}]}
            for text in TEXTS
        ]
        (tmp_path / "data.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
        values = {"train_data": tmp_path / "data.json", "doc_stride": 4}
    main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / f"{recipe}.py"))["main"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    grown = shutil.copytree(tiny_bert_dir, tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(grown)
    tokenizer.add_tokens(["ee", "dog sleeps"])
    tokenizer.save_pretrained(grown)
    for model, message in (
        (any_encoder.save(any_encoder.nystromformer, tmp_path / "model"), r"cannot take texts of \d+ to \d+ tokens: "),
        (grown, r"gives `input_ids` up to \d+, .*grown has a `vocab_size` of \d+"),
    ):
        values |= {"model_name_or_path": model, "output_dir": tmp_path / "run", "max_length": 24, "cpu_threads": 1}
        monkeypatch.setattr(sys, "argv", ["x", *(str(w) for k, v in values.items() for w in (f"--{k}", v))])
        with pytest.raises(InputError, match=message):
            main()
        assert not list((tmp_path / "run").glob("*"))
