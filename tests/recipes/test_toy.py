"""The toy of a book chapter: four sentences, a vocabulary of words, pre-training, and a classifier of feelings."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import pipeline

from bert_toolkit import InputError

RECIPES = Path(__file__).parents[2] / "recipes"
pretrain_main, classify_main = (runpy.run_path(str(RECIPES / name))["main"] for name in ("pretrain.py", "classify.py"))
SENTENCES = "The cat sits on the mat. It likes the warm sun.", "The dog runs in the park. It chases the red ball."
FEELINGS = {
    "good": ["the cat likes the sun", "it likes the red ball", "the dog likes the park", "the cat likes the warm mat"],
    "bad": ["the dog chases the cat", "it chases the dog", "the red dog chases it", "the dog chases it in the park"],
}
TINY = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}


def run(monkeypatch, main, output_dir, **values):
    values |= {"output_dir": output_dir, "cpu_threads": 1, "monitor_every": 0, "logging_steps": 10}
    monkeypatch.setattr(
        sys, "argv", ["recipe", *(part for item in values.items() for part in (f"--{item[0]}", str(item[1])))]
    )
    main()
    return json.loads((Path(output_dir) / "results.json").read_text())


@pytest.fixture
def toy(tmp_path):
    """Settings of the recipe for the four sentences."""
    (tmp_path / "four.txt").write_text("\n\n".join(SENTENCES))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return {
        "train_file": tmp_path / "four.txt",
        "config_file": tmp_path / "tiny.json",
        "cache_dir": tmp_path / "cache",
        "held_out_share": 0,
        "vocabulary": "words",
        "max_length": 32,
        "dropout": 0,
        "processes": 1,
        "save_strategy": "no",
    }


def test_four_sentences_are_learned_and_feelings_told_apart(toy, tmp_path, monkeypatch, capsys):
    results = run(monkeypatch, pretrain_main, tmp_path / "toy", **toy, num_train_epochs=250, learning_rate=3e-3)
    printed = capsys.readouterr().out
    assert results["mlm_accuracy"] > 0.9 and results["nsp_accuracy"] == 1
    assert "words of these documents, 22 entries" in results["tokenizer"]
    assert not any("eval_loss" in entry for entry in results["log_history"]), "nothing is held out"
    for word in results["examples"]["masked words"]:
        assert len(word["top 5"]) == 5 and word["word"] in [guess for guess, _ in word["top 5"][:2]]
    judged = {pair["follows"]: pair["probability"] for pair in results["examples"]["next sentence"]}
    assert judged[True] > 0.5 > judged[False]
    assert "Training words and the model's five guesses" in printed and "Training pairs" in printed
    line = re.search(r"^model +(.*)$", printed, re.MULTILINE).group(1)
    load = f"from transformers import AutoModelForPreTraining\n{line}"
    subprocess.run([sys.executable, "-c", load], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    guesses = pipeline("fill-mask", model=str(tmp_path / "toy"))("The cat sits on the [MASK].")
    assert guesses[0]["token_str"] in ("mat", "park") and len(guesses) == 5

    rows = [f"{text},{label}" for label, texts in FEELINGS.items() for text in texts]
    (tmp_path / "feelings.csv").write_text("\n".join(["text,label", *rows]))
    settings = {"train_data": tmp_path / "feelings.csv", "model_name_or_path": tmp_path / "toy", "max_length": 32}
    results = run(
        monkeypatch, classify_main, tmp_path / "feelings", **settings, num_train_epochs=40, learning_rate=3e-3
    )
    losses = [entry["loss"] for entry in results["log_history"] if "loss" in entry]
    assert losses[-1] < 0.2, "the eight sentences are told apart"


def test_sentences_alone_are_enough_for_masked_words(toy, tmp_path, monkeypatch):
    toy |= {"documents_split": 1, "objective": "mlm", "max_steps": 2}
    results = run(monkeypatch, pretrain_main, tmp_path / "out", **toy)
    assert results["data"].endswith("4 documents to train on, 0 held out")
    assert results["pairs"].startswith("4 per epoch, 0.00% random")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents_split": 1}, "all 4 documents have one sentence, .* or learn masked words alone"),
        ({"documents_split": 50}, "next-sentence pairs need at least 2 documents, got 1: .*--documents_split"),
        ({"held_out_share": 0.05}, "holds 2 documents; .* at least 4, two of them held out: .* --held_out_share 0"),
        ({"held_out_share": 1}, r"`held_out_share` must lie in \[0, 1\), got 1"),
        ({"vocabulary": "letters"}, "`vocabulary` must be one of wordpiece, words, got letters"),
        ({"vocab_size": 5}, "`vocab_size` must be at least 6, got 5"),
        ({"vocabulary": "wordpiece", "vocab_size": 50}, "`vocab_size` must be at least 100, got 50"),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_before_training(toy, tmp_path, monkeypatch, changes, message):
    with pytest.raises(InputError, match=message):
        run(monkeypatch, pretrain_main, tmp_path / "out", **{**toy, **changes})


def test_what_is_unused_is_printed(toy, tmp_path, monkeypatch, capsys):
    toy["train_file"].write_text("\n\n".join([*SENTENCES, "Alone.", "Alone too."]))
    run(monkeypatch, pretrain_main, tmp_path / "out", **toy, max_steps=1)
    assert "Documents of one sentence serve as random B only: 2 of 4 documents" in capsys.readouterr().out
