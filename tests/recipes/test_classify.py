"""The recipe for anybody's texts: each kind of label, from data to labeled file, on small data with a tiny model."""

import csv
import json
import pickle
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef, precision_recall_fscore_support, r2_score
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bert_toolkit import InputError
from bert_toolkit.predict import main as predict_main

RECIPE = Path(__file__).parents[2] / "recipes" / "classify.py"
classify_main = runpy.run_path(str(RECIPE))["main"]

SUBJECTS = ["the dog", "a cat", "my friend", "the old king", "every child"]
VERBS = ["sleeps", "runs", "laughs", "sings", "waits"]
SENTENCES = [(subject, verb) for subject in SUBJECTS for verb in VERBS]


def flags(tiny_bert_dir, output_dir, **changes):
    return {
        "model_name_or_path": tiny_bert_dir,
        "output_dir": output_dir,
        "num_train_epochs": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "max_length": 24,
        "cpu_threads": 1,
        "monitor_every": 0,
        "report_to": "none",
        **changes,
    }


@pytest.fixture
def run(monkeypatch, tiny_bert_dir, tmp_path):
    """Runs the recipe in this process."""

    def run_with(**changes):
        values = flags(tiny_bert_dir, tmp_path / "run") | changes
        words = [
            word
            for name, value in values.items()
            for word in (f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)]))
        ]
        monkeypatch.setattr(sys, "argv", ["classify.py", *words])
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        classify_main()
        return tmp_path / "run"

    return run_with


def predictions_of(output_dir):
    with (output_dir / "predictions.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def results_of(output_dir):
    return json.loads((output_dir / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """One class a text: the order of subject and verb."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = [("text", "label")]
    for subject, verb in SENTENCES * 2:
        rows += [(f"{subject} {verb} today .", "plain"), (f"{verb} {subject} today .", "turned [around]")]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([(i, *row) if i else ("id", *row) for i, row in enumerate(rows)])
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, launch, tiny_bert_dir, reviews):
    output_dir = tmp_path_factory.mktemp("run") / "classify"
    changes = {"train_data": reviews, "test_fraction": 0.2, "report_to": "tensorboard", "monitor_every": 10}
    process = launch("classify", flags(tiny_bert_dir, output_dir, **changes))
    assert process.returncode == 0, process.stderr[-3000:]
    return output_dir, process.stdout


@pytest.mark.launch
class TestOneClassAText:
    def test_scores_are_those_of_scikit_learn_on_the_written_predictions(self, finished):
        output_dir, _ = finished
        results, rows = results_of(output_dir), predictions_of(output_dir)
        labels, predicted = [row["label"] for row in rows], [row["prediction"] for row in rows]
        assert len(rows) == 20
        assert results["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-12)
        assert results["matthews_correlation"] > 0.5, "the rule of the data must be learned"
        names = ["plain", "turned [around]"]
        expected = precision_recall_fscore_support(labels, predicted, labels=names, zero_division=0)
        for name, *values in zip(names, *expected, strict=True):
            found = results["classes"][name]
            assert [found[key] for key in ("precision", "recall", "f1", "rows")] == pytest.approx(values)

    def test_everything_promised_is_written(self, finished):
        output_dir, _ = finished
        written = {path.name for path in output_dir.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "results.json", "runs"} <= written
        figures = {path.stem for path in (output_dir / "figures").iterdir()}
        assert {"learning_curves", "training_loss_by_batch", "confusion_matrix", "class_scores"} <= figures
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in (output_dir / "figures").iterdir())

    def test_choices_are_said_aloud_once(self, finished, reviews):
        _, printed = finished
        flat = " ".join(printed.replace("│", " ").split())
        for words in (
            "text: 'text', label: 'label' (text and label guessed from the names), unused: 'id'",
            "2 classes",
            "The test rows are 20 of the training rows, stratified (seed 42).",
            "turned [around]",
            "truncated",
            "Test scores by class",
            "Saved and reloaded with identical predictions",
        ):
            assert words in flat, words
        assert printed.count("Tokens per row") == 1

    def test_checkpoint_knows_labels_columns_and_length(self, finished):
        output_dir, _ = finished
        config = AutoConfig.from_pretrained(output_dir)
        assert config.id2label == {0: "plain", 1: "turned [around]"}
        assert config.label2id == {"plain": 0, "turned [around]": 1}
        assert config.problem_type == "single_label_classification"
        assert config.text_columns == ["text"]
        assert AutoTokenizer.from_pretrained(output_dir).model_max_length == 24

    def test_pipeline_agrees_with_the_written_predictions(self, finished):
        output_dir, _ = finished
        rows = predictions_of(output_dir)
        answers = pipeline("text-classification", model=str(output_dir))(
            [row["text"] for row in rows], truncation=True
        )
        assert [answer["label"] for answer in answers] == [row["prediction"] for row in rows]
        np.testing.assert_allclose(
            [answer["score"] for answer in answers], [float(row["probability"]) for row in rows], atol=2e-5
        )

    def test_predict_labels_a_file(self, finished, tmp_path, monkeypatch, capsys):
        output_dir, _ = finished
        rows = predictions_of(output_dir)
        with (tmp_path / "new.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("n", "text"), *((i, row["text"]) for i, row in enumerate(rows))])
        arguments = ["--model_name_or_path", str(output_dir), "--data", str(tmp_path / "new.csv")]
        monkeypatch.setattr(sys, "argv", ["predict", *arguments, "--output", str(tmp_path / "labeled.jsonl")])
        predict_main()
        assert "20 rows of" in capsys.readouterr().out
        labeled = [json.loads(line) for line in (tmp_path / "labeled.jsonl").read_text().splitlines()]
        assert [row["n"] for row in labeled] == [str(i) for i in range(20)]
        assert [row["prediction"] for row in labeled] == [row["prediction"] for row in rows]
        expected = [float(row["probability"]) for row in rows]
        assert [row["probability"] for row in labeled] == pytest.approx(expected, abs=2e-5)

    def test_finished_run_is_not_overwritten(self, finished, run, reviews):
        output_dir, _ = finished
        before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")}
        with pytest.raises(InputError, match="holds a finished run"):
            run(train_data=reviews, output_dir=output_dir)
        assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")} == before

    def test_resuming_runs_no_pickle(self, finished, tmp_path, launch, tiny_bert_dir, reviews):
        """A checkpoint whose optimizer state was replaced by a pickle that would leave a file behind."""
        output_dir, _ = finished
        checkpoint = sorted(output_dir.glob("checkpoint-*"))[-1]
        trap, evil = tmp_path / "was-executed", tmp_path / "checkpoint-1"
        shutil.copytree(checkpoint, evil)
        (evil / "checkpoint_files.json").unlink()

        class Trap:
            def __reduce__(self):
                return open, (str(trap), "w")

        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"):
            (evil / name).write_bytes(pickle.dumps(Trap()))
        changes = {"train_data": reviews, "test_fraction": 0.2, "resume_from_checkpoint": evil}
        process = launch("classify", flags(tiny_bert_dir, tmp_path / "resumed", **changes))
        assert not trap.exists()
        assert process.returncode != 0

    def test_two_processes_score_as_one(self, finished, tmp_path, launch, run, reviews):
        output_dir, _ = finished
        changes = {
            "train_data": reviews,
            "test_fraction": 0.2,
            "num_train_epochs": 0.01,
            "learning_rate": 1e-9,
            "model_name_or_path": output_dir,
        }
        run(**changes)
        process = launch("classify", flags(None, tmp_path / "two", **changes), config="cpu_2_processes")
        assert process.returncode == 0, process.stderr[-3000:]
        assert "2 processes" in results_of(tmp_path / "two")["device"]
        assert predictions_of(tmp_path / "two") == predictions_of(tmp_path / "run")


class TestSeveralLabelsAtOnce:
    ROWS = [
        {
            "text": f"{subject} {verb} today .",
            "labels": ["animal"] * (subject in SUBJECTS[:2]) + ["sound"] * (verb in ("laughs", "sings")),
        }
        for subject, verb in SENTENCES * 4
    ]

    def check(self, output_dir, names=("animal", "sound"), learned=0.0):
        results, rows = results_of(output_dir), predictions_of(output_dir)
        labels, predicted = (
            np.array([[name in row[key].split("; ") for name in names] for row in rows])
            for key in ("label", "prediction")
        )
        assert results["f1_micro"] == pytest.approx(f1_score(labels, predicted, average="micro", zero_division=0))
        assert results["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
        assert results["exact_match"] == pytest.approx((labels == predicted).all(axis=1).mean())
        assert results["f1_micro"] >= learned
        for name, column in zip(names, predicted.T, strict=True):
            probabilities = np.array([float(row[f"probability of {name}"]) for row in rows])
            np.testing.assert_array_equal(probabilities >= 0.5, column)
        config = AutoConfig.from_pretrained(output_dir)
        assert config.problem_type == "multi_label_classification"
        assert list(config.label2id) == list(names)

    def test_lists(self, run, tmp_path):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, self.ROWS)))
        output_dir = run(train_data=tmp_path / "a.jsonl", validation_fraction=0.2, num_train_epochs=20)
        self.check(output_dir, learned=0.8)
        assert {"class_scores", "learning_curves"} <= {path.stem for path in (output_dir / "figures").iterdir()}

    def test_separated_in_a_cell(self, run, tmp_path):
        lines = ["text\tlabel", *(f"{row['text']}\t{' | '.join(row['labels'])}" for row in self.ROWS)]
        (tmp_path / "a.tsv").write_text("\n".join(lines))
        self.check(run(train_data=tmp_path / "a.tsv", label_separator="|", num_train_epochs=0.1))

    def test_columns_of_zero_and_one(self, run, tmp_path):
        lines = ["text,animal,sound"]
        lines += [f"{row['text']},{'animal' in row['labels']:d},{'sound' in row['labels']:d}" for row in self.ROWS]
        (tmp_path / "a.csv").write_text("\n".join(lines))
        self.check(run(train_data=tmp_path / "a.csv", label_columns=["animal", "sound"], num_train_epochs=0.1))


def test_numbers_of_pairs(run, tmp_path, capsys):
    """Pairs that share subject and verb score high: to be learned only across the two texts."""
    lines = ["sentence1\tsentence2\tscore"]
    for i, (subject, verb) in enumerate(SENTENCES * 20):
        other_subject, other_verb = SENTENCES[(i * 7 + i // 25) % 25]
        if i % 2:
            other_subject, other_verb = subject, verb
        score = 0.25 + (subject == other_subject) + (verb == other_verb)
        lines.append(f"{subject} {verb}\t{other_subject} {other_verb}\t{score}")
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    output_dir = run(train_data=tmp_path / "a.tsv", test_fraction=0.2, num_train_epochs=24, learning_rate=1e-3)
    results, rows = results_of(output_dir), predictions_of(output_dir)
    labels, predicted = ([float(row[key]) for row in rows] for key in ("label", "prediction"))
    assert results["r2"] == pytest.approx(r2_score(labels, predicted), abs=1e-4)
    assert results["spearman"] == pytest.approx(spearmanr(labels, predicted).statistic, abs=1e-4)
    assert results["pearson"] == pytest.approx(np.corrcoef(labels, predicted)[0, 1], abs=1e-4)
    assert results["mean_absolute_error"] == pytest.approx(np.abs(np.subtract(labels, predicted)).mean(), abs=1e-4)
    assert results["pearson"] > 0.4, "pairs must be told apart"  # chance: 0 ± 0.1
    config = AutoConfig.from_pretrained(output_dir)
    assert (config.problem_type, config.num_labels) == ("regression", 1)
    assert config.text_columns == ["sentence1", "sentence2"]
    answer = pipeline("text-classification", model=str(output_dir))(
        {"text": rows[0]["text"], "text_pair": rows[0]["text_pair"]}
    )
    assert answer["score"] == pytest.approx(predicted[0], abs=1e-4)
    assert "standard deviation" in capsys.readouterr().out
    assert (output_dir / "figures" / "predictions.png").exists()


def test_folder_of_classes_with_another_architecture(run, tmp_path):
    """A model that ToolkitBert does not cover is trained by transformers' own class."""
    from transformers import BertTokenizer, DistilBertConfig, DistilBertForMaskedLM

    for i, (subject, verb) in enumerate(SENTENCES * 2):
        for split, name, text in (("train", "plain", f"{subject} {verb}"), ("train", "turned", f"{verb} {subject}")):
            path = tmp_path / "data" / split / name / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    words = {word for phrase in [*SUBJECTS, *VERBS] for word in phrase.split()}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    folder = tmp_path / "distilbert"
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    config = DistilBertConfig(
        vocab_size=len(vocabulary), dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64
    )
    DistilBertForMaskedLM(config).save_pretrained(folder)
    output_dir = run(train_data=tmp_path / "data", model_name_or_path=folder, num_train_epochs=1)
    model = AutoModelForSequenceClassification.from_pretrained(output_dir)
    assert type(model).__name__ == "DistilBertForSequenceClassification"
    assert model.config.id2label == {0: "plain", 1: "turned"}


def test_balanced_weights_find_a_rare_class_and_training_ends_early(run, tmp_path):
    """One text in ten is of the rare class; after three evaluations without a better score nothing more is trained."""
    rows = [f"{subject} {verb} today .,plain" for subject, verb in SENTENCES * 4]
    rows += [f"{verb} {subject} today .,turned" for subject, verb in SENTENCES[::2]]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]))
    folder = run(
        train_data=tmp_path / "data.csv", class_weights="balanced", early_stopping_patience=3, num_train_epochs=60
    )
    results = results_of(folder)
    assert results["classes"]["turned"]["recall"] == 1.0
    assert results["epochs"] < 60
    scores = [entry["eval_matthews_correlation"] for entry in results["log_history"] if "eval_loss" in entry]
    assert scores.index(max(scores)) == len(scores) - 4


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("text,label\na,x\nb\n", {}, "data.csv:3 has 1 field, expected 2"),
        ("text,label\n" + "a,x\nb,y\n" * 9 + ",x\n", {}, "data.csv:20 has nothing in column 'text'"),
        ("text,label\n" + "a,x\n" * 9, {}, "only the label 'x'"),
        ("title,kind\na,x\nb,y\n", {}, "cannot tell which column of .* is the text: pass `text_columns`"),
        ("text,label\n" + "a,x\nb,y\n" * 9, {"max_length": 100}, "`max_length` must lie in 5 to 64"),
        ("text,label\n" + "a,x\nb,y\n" * 9, {"implementation": "mine"}, "`implementation` must be auto, toolkit"),
        (
            "text,label\n" + "a,x\nb,y\n" * 9,
            {"metric_for_best_model": "r2"},
            "`metric_for_best_model` must be loss, matt",
        ),
        ("text,label\n" + "a,x\nb,y\n" * 9, {"hub_dataset": "owner/name"}, "one of the two"),
        (
            "text,label\n" + "a,x\nb,y\n" * 9,
            {"early_stopping_patience": 2, "eval_strategy": "no", "load_best_model_at_end": "false"},
            "needs evaluations and the best checkpoint: .* got no and false",
        ),
        ("text,label\n" + "a,x\nb,y\n" * 9, {"early_stopping_patience": 0}, "`early_stopping_patience` must be at"),
        ("text,label\n" + "a,x\nb,y\n" * 9, {"model_name_or_path": "/absent"}, "/absent"),
        ("text,label\n" + "a,x\nb,y\n" * 9, {"lerning_rate": 1}, "did you mean `--learning_rate`"),
    ],
    ids=[
        "ragged",
        "empty",
        "one-class",
        "columns",
        "length",
        "code",
        "metric",
        "sources",
        "evaluation",
        "patience",
        "model",
        "flag",
    ],
)
def test_bad_input_is_refused_before_training(run, tmp_path, content, changes, message):
    (tmp_path / "data.csv").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        run(train_data=tmp_path / "data.csv", **changes)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("*")), "nothing is left behind"


def test_refusal_is_one_line_and_status_two(tmp_path, tiny_bert_dir):
    (tmp_path / "data.csv").write_text("text,label\nthe dog sleeps,a\n\xff,b\n", encoding="latin-1")
    values = flags(tiny_bert_dir, tmp_path / "run", train_data=tmp_path / "data.csv")
    words = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    process = subprocess.run([sys.executable, str(RECIPE), *words], capture_output=True, text=True)
    assert process.returncode == 2
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "data.csv:3 is not utf-8" in errors[0]
    assert "Traceback" not in process.stderr


def test_where_nothing_but_the_loss_is_evaluated_the_least_loss_is_kept(run, reviews):
    results = results_of(run(train_data=reviews, prediction_loss_only="true", num_train_epochs=8))
    losses = [entry["eval_loss"] for entry in results["log_history"] if "eval_loss" in entry]
    (kept,) = (entry["validation_loss"] for entry in results["log_history"] if "validation_loss" in entry)
    assert len(losses) == 8 and max(losses) - min(losses) > 0.01
    assert kept == pytest.approx(min(losses), rel=1e-4)
