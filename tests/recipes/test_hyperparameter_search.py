"""`--hyperparameter_search N` as a person runs it: N trainings, then the training proper with the best settings."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from bert_toolkit import InputError, UpdateRatioRecord
from bert_toolkit.monitoring.record_file import load_records
from bert_toolkit.training import arguments as recipe_arguments

RECIPES = Path(__file__).parents[2] / "recipes"
MAINS = {name: runpy.run_path(str(RECIPES / f"{name}.py"))["main"] for name in ("classify", "cola", "newsgroups")}


@pytest.fixture
def run(monkeypatch, tiny_bert_dir, tmp_path, capfd):
    """Runs a recipe in this process; gives its folder, its results and what it printed."""

    def run_with(recipe, folder="run", **changes):
        flags = {
            "model_name_or_path": tiny_bert_dir,
            "output_dir": tmp_path / folder,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 2e-3,
            "max_length": 16,
            "cpu_threads": 1,
            "disable_tqdm": "true",
            **changes,
        }
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *words])
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        capfd.readouterr()
        MAINS[recipe]()
        results = json.loads((tmp_path / folder / "results.json").read_text(encoding="utf-8"))
        return tmp_path / folder, results, capfd.readouterr().out

    return run_with


def search_of(folder):
    return json.loads((folder / "hyperparameter_search.json").read_text(encoding="utf-8"))


def test_final_training_is_that_of_the_best_trial_and_nothing_else_is_watched(run, cola_dir):
    pytest.importorskip("optuna")
    folder, results, printed = run("cola", data_dir=cola_dir, hyperparameter_search=4)
    search = search_of(folder)
    own = {"learning_rate": 2e-3, "num_train_epochs": 4, "warmup_steps": 0.1}
    assert [search["trials"][0][flag] for flag in own] == list(own.values()), "the run's own settings come first"
    scores = [trial["matthews_correlation"] for trial in search["trials"]]
    assert len(scores) == 4 and len(set(scores)) > 1
    for trial in search["trials"]:
        assert 2e-3 / 3.01 <= trial["learning_rate"] <= 2e-3 * 3.01
        assert trial["num_train_epochs"] in (2, 3, 4) and trial["warmup_steps"] in (0, 0.05, 0.1, 0.2)
    best = search["trials"][scores.index(max(scores))]
    assert search["best"] == {flag: best[flag] for flag in own}

    # the final training is the best trial once more
    assert results["validation_matthews_correlation"] == max(scores)
    assert results["learning rate"] == best["learning_rate"] and results["epochs"] == best["num_train_epochs"]
    line = " ".join(f"--{flag} {best[flag]}" for flag in own)
    assert f"Best: {line}; training with it now" in printed and printed.count("trial ") == 4
    assert line in results["hyperparameter search"] and line in (folder / "README.md").read_text(encoding="utf-8")

    # only the final training is recorded and logged
    records = load_records(folder / "monitoring" / "update_ratio.npz", UpdateRatioRecord)
    assert records[-1].step <= results["steps"] and [record.step for record in records][:3] == [1, 2, 5]
    assert sum("eval_loss" in entry for entry in results["log_history"]) == best["num_train_epochs"]
    assert len(list((folder / "runs").iterdir())) == 1
    assert not list(folder.glob("run-*")) and len(list(folder.glob("checkpoint-*"))) <= 2

    # and the same as a run to which a person gives the best flags
    again, repeated, _ = run("cola", "again", data_dir=cola_dir, **search["best"])
    assert (again / "predictions.tsv").read_text() == (folder / "predictions.tsv").read_text()
    losses = [[entry.get("loss") for entry in of["log_history"]] for of in (results, repeated)]
    assert losses[0] == losses[1]


def test_sample_and_the_other_classifiers(run, newsgroups_archive, tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "data.csv").write_text("text,label\n" + "the dog sleeps,1.5\na cat runs,2.5\n" * 20)
    for recipe, flags, metric in (
        ("cola", {"dataset": "sample", "max_train_samples": 64}, "matthews_correlation"),
        ("newsgroups", {"data_dir": newsgroups_archive, "eval_steps": 2, "save_steps": 2}, "accuracy"),
        ("classify", {"train_data": tmp_path / "data.csv", "problem_type": "regression"}, "r2"),
    ):
        folder, results, printed = run(recipe, recipe, hyperparameter_search=2, num_train_epochs=1, **flags)
        search = search_of(folder)
        assert search["metric"] == metric and len(search["trials"]) == 2
        assert max(trial[metric] for trial in search["trials"]) == results[f"validation_{metric}"]
        assert f"the best of 2 trials, validation {metric}" in results["hyperparameter search"]
        assert f"trial 2 of 2: --learning_rate {search['trials'][1]['learning_rate']}" in printed


def test_what_is_fixed_in_steps_is_not_searched(run, cola_dir):
    pytest.importorskip("optuna")
    few = {"max_steps": 3, "warmup_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    few |= {"load_best_model_at_end": "false", "monitor_every": 0, "learning_rate": 0.00123456}
    folder, results, _ = run("cola", data_dir=cola_dir, hyperparameter_search=2, **few)
    assert set(search_of(folder)["best"]) == {"learning_rate"} and results["steps"] == 3
    first, second = (trial["learning_rate"] for trial in search_of(folder)["trials"])
    assert first == 0.00123456 and second == float(f"{second:.3g}"), "the run's own rate is tried as it is"


@pytest.mark.launch
def test_two_processes_agree(launch, tmp_path, cola_dir, tiny_bert_dir):
    pytest.importorskip("optuna")
    flags = {"data_dir": cola_dir, "model_name_or_path": tiny_bert_dir, "output_dir": tmp_path / "run"}
    flags |= {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 2e-3, "max_length": 16}
    process = launch("cola", {**flags, "cpu_threads": 1, "hyperparameter_search": 2}, "cpu_2_processes")
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    scores = [trial["matthews_correlation"] for trial in search_of(tmp_path / "run")["trials"]]
    assert results["validation_matthews_correlation"] == max(scores)
    assert process.stdout.count("trial 2 of 2") == 1


def test_where_every_trial_diverges_one_line_says_so(run, cola_dir):
    pytest.importorskip("optuna")
    with pytest.raises(InputError, match="found no score in 2 trials: all of them diverged; lower `learning_rate`"):
        run("cola", data_dir=cola_dir, hyperparameter_search=2, learning_rate=1e30, max_grad_norm=0)


def test_what_does_not_go_together_is_refused(run, cola_dir, monkeypatch):
    with pytest.raises(InputError, match="`hyperparameter_search` must be at least 0, got -1"):
        run("cola", data_dir=cola_dir, hyperparameter_search=-1)
    monkeypatch.setattr(recipe_arguments, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs Optuna: `pip install \"bert_toolkit\[search\]\"`, or leave the flag"):
        run("cola", data_dir=cola_dir, hyperparameter_search=2)
    monkeypatch.setattr(recipe_arguments, "find_spec", lambda name: name)
    for flags, message in (
        ({"layer_wise_decay": 0.9}, "does not go with `layer_wise_decay`"),
        ({"resume_from_checkpoint": "last"}, "pass the flags that .*run/hyperparameter_search.json names as the best"),
        ({"learning_rate": 0}, "needs a `learning_rate` above 0, got 0.0"),
    ):
        with pytest.raises(InputError, match=message):
            run("cola", data_dir=cola_dir, hyperparameter_search=2, **flags)
