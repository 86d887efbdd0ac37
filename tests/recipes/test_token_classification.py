"""The recipe for tags of words, from file to tagged text, on small data with a tiny model."""

import csv
import json
import runpy
import sys
from pathlib import Path

import any_encoder
import pytest
from transformers import AutoTokenizer, pipeline

from bert_toolkit import InputError
from bert_toolkit.metrics.entity_scores import entity_scores
from bert_toolkit.training.tokenized_words import tokenize_words

RECIPE = Path(__file__).parents[2] / "recipes" / "token_classification.py"
main = runpy.run_path(str(RECIPE))["main"]

PEOPLE, VERBS = ["my friend", "the old king", "every child"], ["sleeps", "runs", "laughs", "sings", "waits"]


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Sentences in which a person is an entity of two or three words."""
    path = tmp_path_factory.mktemp("data") / "train.conll"
    sentences = []
    for person in PEOPLE:
        for verb in VERBS:
            words = [(word, "I-PER" if i else "B-PER") for i, word in enumerate(person.split())]
            end = [("today", "O"), (".", "O")]
            sentences += [[*words, (verb, "O"), *end], [(verb, "O"), *words, *end]]
    path.write_text("\n\n".join("\n".join(f"{w} {t}" for w, t in sentence) for sentence in sentences * 2))
    return path


@pytest.fixture
def run(monkeypatch, tiny_bert_dir, tmp_path):
    """Runs the recipe in this process."""

    def run_with(**changes):
        values = {
            "model_name_or_path": tiny_bert_dir,
            "output_dir": tmp_path / "run",
            "num_train_epochs": 8,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "max_length": 16,
            "cpu_threads": 1,
            "monitor_every": 0,
            "report_to": "none",
            **changes,
        }
        monkeypatch.setattr(
            sys, "argv", ["x", *(str(w) for name, value in values.items() for w in (f"--{name}", value))]
        )
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        main()
        return tmp_path / "run"

    return run_with


def test_entities_are_learned_and_everything_is_left(run, tagged, capsys):
    folder = run(train_data=tagged, monitor_every=10, validation_fraction=0.2)
    results = json.loads((folder / "results.json").read_text())
    with (folder / "predictions.tsv").open(newline="") as file:
        words = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sentences = {}
    for word in words:
        sentences.setdefault(word["place"].split()[0], []).append(word)
    columns = [
        [[word[name] for word in sentence] for sentence in sentences.values()] for name in ("label", "prediction")
    ]
    assert results["entity_f1"] == pytest.approx(entity_scores(*columns)[0]["entity_f1"])
    assert results["entity_f1"] > 0.9
    assert results["classes"]["PER"]["rows"] == 12
    assert {p.name for p in folder.iterdir()} >= {"model.safetensors", "README.md", "report.html", "figures"}
    assert "confusion_matrix.png" in {p.name for p in (folder / "figures").iterdir()}
    assert "token-classification" in (folder / "README.md").read_text()
    load = capsys.readouterr().out.strip().splitlines()[-1]
    assert "pipeline('token-classification'" in load
    tagger = pipeline("token-classification", str(folder), aggregation_strategy="simple")
    assert [(e["entity_group"], e["word"]) for e in tagger("the old king sleeps today .")] == [("PER", "the old king")]


def test_parts_of_speech_by_another_encoder_are_scored_by_words(run, tmp_path):
    """RoBERTa's tokenizer needs a space before each word; tags without a scheme are scored one by one."""
    any_encoder.save(any_encoder.roberta, tmp_path / "roberta")
    rows = [{"tokens": ["the", "dog", verb], "tags": ["DT", "NN", "VB"]} for verb in VERBS * 8]
    (tmp_path / "pos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = run(train_data=tmp_path / "pos.jsonl", model_name_or_path=tmp_path / "roberta", num_train_epochs=6)
    results = json.loads((folder / "results.json").read_text())
    assert results["accuracy"] > 0.9 and "entity_f1" not in results
    assert set(results["classes"]) == {"DT", "NN", "VB"}


def test_first_token_of_a_word_has_its_tag(tiny_bert_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    encoded = tokenize_words({"words": [["dog-dog", "runs"]], "tags": [[2, 1]]}, tokenizer, 16)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    assert tokens[1] != "dog-dog" and len(tokens) > 4, "the word has several tokens"
    assert encoded["labels"][0][:2] == [-100, 2] and encoded["labels"][0][-2:] == [1, -100]
    assert set(encoded["labels"][0][2:-2]) == {-100}
    cut = tokenize_words({"words": [["dog"] * 9], "tags": [[1] * 9]}, tokenizer, 6)
    assert cut["truncated"] == [True] and cut["labels"][0] == [-100, 1, 1, 1, 1, -100]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metric_for_best_model": "r2"},
            "`metric_for_best_model` must be loss, entity_f1, .* for these tags, got r2",
        ),
        ({"max_length": 100}, "`max_length` must lie in 5 to 64"),
        ({"train_data": "/absent"}, "/absent is no file"),
        ({"eval_do_concat_batches": "false"}, "`eval_do_concat_batches` must be true"),
        ({"validation_fraction": 2}, "`validation_fraction` must lie in"),
    ],
)
def test_bad_input_is_refused_before_training(run, tagged, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(**{"train_data": tagged, **changes})
    assert not list((tmp_path / "run").glob("*")), "nothing is left behind"
