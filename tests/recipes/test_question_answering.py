"""The recipe for questions on texts, from file to answer, on small data with a tiny model."""

import csv
import json
import runpy
import sys
from pathlib import Path

import any_encoder
import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from bert_toolkit import InputError
from bert_toolkit.training.question_windows import answers_of, windows_of

RECIPE = Path(__file__).parents[2] / "recipes" / "question_answering.py"
main = runpy.run_path(str(RECIPE))["main"]

PEOPLE, VERBS = ["my friend", "the old king", "every child"], ["sleeps", "runs", "laughs", "sings", "waits"]


def squad(unanswerable: bool = False) -> dict:
    """Who does it? The one before the verb, and in some texts nobody does."""
    paragraphs = []
    for number, person in enumerate(PEOPLE * 10):
        verb, other = VERBS[number % 5], VERBS[(number + 2) % 5]
        context = f"today . {person} {verb} today . . today ."[number % 8 :].lstrip() if number % 8 < 7 else person
        begin = context.find(person)
        if begin < 0:
            continue
        answer = {"text": person, "answer_start": begin}
        questions = [{"id": "a", "question": f"{verb} today", "answers": [answer]}]
        if unanswerable:
            questions.append({"id": "b", "question": other, "answers": [], "is_impossible": True})
        paragraphs.append({"context": context, "qas": questions})
    return {"version": "v2.0", "data": [{"title": "people", "paragraphs": paragraphs}]}


@pytest.fixture
def run(monkeypatch, tiny_bert_dir, tmp_path):
    """Runs the recipe in this process."""

    def run_with(data, **changes):
        (tmp_path / "train.json").write_text(json.dumps(data))
        values = {
            "model_name_or_path": tiny_bert_dir,
            "train_data": tmp_path / "train.json",
            "output_dir": tmp_path / "run",
            "num_train_epochs": 12,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "max_length": 16,
            "doc_stride": 4,
            "validation_fraction": 0.2,
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


def test_answers_are_learned_and_everything_is_left(run, capsys):
    folder = run(squad(), monitor_every=10)
    results = json.loads((folder / "results.json").read_text())
    with (folder / "predictions.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert results["exact_match"] == np.mean([int(row["exact_match"]) for row in rows]) > 0.7
    assert all((row["label"] == row["prediction"]) <= int(row["exact_match"]) for row in rows)
    assert {p.name for p in folder.iterdir()} >= {"model.safetensors", "README.md", "report.html", "figures"}
    assert "README.md shows how" in capsys.readouterr().out.strip().splitlines()[-1]
    code = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    code = code.replace("path/to/this/folder", str(folder)).replace("a question", "runs today")
    exec(
        code.replace("the text that answers it", "today . every child runs today . . today ."), {}
    )  # as its reader would
    assert capsys.readouterr().out.strip() == "every child"


def test_questions_without_answer_by_another_encoder(run, tmp_path):
    any_encoder.save(any_encoder.roberta, tmp_path / "roberta")
    folder = run(squad(unanswerable=True), model_name_or_path=tmp_path / "roberta", num_train_epochs=2)
    results = json.loads((folder / "results.json").read_text())
    parts = {"has_answer_f1", "has_answer_exact_match", "no_answer_accuracy"}
    assert parts <= set(results)
    assert results["exact_match"] == pytest.approx(
        (results["has_answer_exact_match"] + results["no_answer_accuracy"]) / 2
    )


def test_a_model_that_knows_finds_the_answer_in_whichever_window(tiny_bert_dir):
    """Logits made from the labels give every answer back; no label outside its answer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    context = "today . " * 12 + "the old king runs today . " + "waits . " * 9
    rows = {"question": ["runs", "sings"], "context": [context] * 2, "answers": [["old king"], []]}
    encoded = windows_of({**rows, "begins": [[context.index("old king")], []]}, [0, 1], tokenizer, 16, 6)
    labeled = [i for i, start in enumerate(encoded["start_positions"]) if start]
    assert len(encoded["row"]) > 6 and len(labeled) >= 1
    for i in labeled:
        ids = encoded["input_ids"][i][encoded["start_positions"][i] : encoded["end_positions"][i] + 1]
        assert tokenizer.decode(ids) == "old king"
    start, end = (np.full((len(encoded["row"]), 16), -9.0) for _ in range(2))
    for i in range(len(start)):
        start[i, encoded["start_positions"][i]] = end[i, encoded["end_positions"][i]] = 5.0
    windows = Dataset.from_dict({"row": encoded["row"], "offsets": encoded["offsets"]})
    answers = answers_of(start, end, windows, [context] * 2, 30, 0.0)
    assert [answer.text for answer in answers] == ["old king", ""]
    assert all(answer.probability > 0.9 for answer in answers)
    always = answers_of(start, end, windows, [context] * 2, 30, None)
    assert always[0].text == "old king" and always[1].text, "where every question has an answer, one is given"
    assert len(answers_of(start, end, windows, [context] * 2, 1, None)[0].text.split()) == 1


def changed(**changes) -> dict:
    data = squad()
    data["data"][0]["paragraphs"][0]["qas"][0].update(changes)
    return data


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (changed(answers=[{"text": "queen", "answer_start": 0}]), {}, "the answer 'queen' is not in its context"),
        (changed(answers=[]), {}, "has no answer: where there is none, write `is_impossible`"),
        (changed(answers="x"), {}, "`answers` must be a list, got"),
        ([], {}, "must be one JSON object with a list `data`"),
        ({"data": []}, {}, "holds no question"),
        (changed(question="dog " * 20), {}, "leave no room for its text in `max_length` 16"),
        (squad(), {"doc_stride": 14}, "leave no room for its text"),
        (squad(), {"max_length": 100}, "`max_length` must lie in 5 to 64"),
        (squad(), {"metric_for_best_model": "r2"}, "must be loss, answer_f1 or exact_match for answers, got r2"),
        (squad(), {"dataloader_drop_last": "true"}, "`dataloader_drop_last` must be false"),
        (squad(), {"max_answer_length": 0}, "`max_answer_length` must be at least 1"),
        (squad(), {"train_data": "/absent"}, "/absent is no file"),
    ],
)
def test_bad_input_is_refused_before_training(run, tmp_path, data, changes, message):
    with pytest.raises(InputError, match=message):
        run(data, **changes)
    assert not list((tmp_path / "run").glob("*")), "nothing is left behind"


def test_a_tokenizer_without_characters_is_refused(run, tmp_path):
    any_encoder.save(any_encoder.canine, tmp_path / "canine")
    with pytest.raises(InputError, match="does not tell from which characters a token comes"):
        run(squad(), model_name_or_path=tmp_path / "canine")
