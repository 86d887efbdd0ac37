"""The pre-training recipe as people run it: on small documents, with a tiny model."""

import json
import re
import runpy
import sys
from pathlib import Path

import any_encoder
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForPreTraining, AutoTokenizer, BertConfig, BertModel, BertTokenizer, pipeline

from bert_toolkit import InputError

RECIPE = Path(__file__).parents[2] / "recipes" / "pretrain.py"
pretrain_main = runpy.run_path(str(RECIPE))["main"]
TOPICS = 8
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """40 documents, each with words of one of eight topics, so that the words around a mask tell something of it."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    for number in range(40):
        words = [f"{'abcdefgh'[number % TOPICS]}{chr(97 + i)}" for i in range(12)] + ["the", "of"] * 3
        lines = [" ".join(generator.choice(words, generator.integers(4, 9))).capitalize() + "." for _ in range(30)]
        (folder / f"{number:02}.txt").write_text(" ".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def settings(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    (folder / "tiny.json").write_text(json.dumps(TINY))

    def make(output_dir, **changes):
        return {
            "train_file": corpus,
            "config_file": folder / "tiny.json",
            "cache_dir": folder / "cache",
            "output_dir": output_dir,
            "vocab_size": 150,
            "max_length": 32,
            "held_out_share": 0.1,
            "held_out_pairs": 40,
            "processes": 1,
            "per_device_train_batch_size": 16,
            "max_steps": 12,
            "eval_steps": 6,
            "save_steps": 6,
            "logging_steps": 2,
            "learning_rate": 3e-3,
            "monitor_every": 4,
            "cpu_threads": 1,
            **changes,
        }

    return make


def run(monkeypatch, values):
    arguments = [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments])
    pretrain_main()
    return json.loads((Path(values["output_dir"]) / "results.json").read_text())


def training_losses(results, key):
    return [entry[key] for entry in results["log_history"] if key in entry]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, launch, settings):
    output_dir = tmp_path_factory.mktemp("run") / "pretrain"
    process = launch("pretrain", settings(output_dir))
    assert process.returncode == 0, process.stderr[-3000:]
    return output_dir, process.stdout


@pytest.mark.launch
def test_everything_promised_is_written(finished):
    output_dir, printed = finished
    for name in ("model.safetensors", "config.json", "tokenizer.json", "modeling_toolkit_bert.py", "README.md"):
        assert (output_dir / name).is_file()
    assert (output_dir / "figures" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert (output_dir / "monitoring").is_dir()
    results = json.loads((output_dir / "results.json").read_text())
    for key in (
        "mlm_loss",
        "mlm_accuracy",
        "unigram_accuracy",
        "nsp_loss",
        "nsp_accuracy",
        "tokens per second",
        "MFU",
    ):
        assert results[key] > 0, key
    for key in ("versions", "command", "data", "model", "pairs", "examples"):
        assert results[key], key
    assert results["perplexity"] == pytest.approx(np.exp(results["mlm_loss"]))
    assert "36 documents to train on, 4 held out" in results["data"]
    logged = [entry for entry in results["log_history"] if "mlm_loss" in entry and "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6, 8, 10, 12]
    for entry in logged:
        assert {"mlm_accuracy", "perplexity", "nsp_loss", "nsp_accuracy", "padding_share", "mfu"} <= entry.keys()
        # Trainer logs the mean of the steps' losses, the scores are means over tokens
        assert entry["loss"] == pytest.approx(entry["mlm_loss"] + entry["nsp_loss"], rel=1e-2)
        assert 10 < entry["tokens_per_second"] < 1e7
        assert 0 <= entry["padding_share"] < 0.5
    for words in ("Pre-training", "peak for MFU", "five guesses", "Held-out pairs", "Saved and reloaded"):
        assert words in printed


@pytest.mark.launch
def test_tensorboard_has_both_tasks_and_the_monitoring(finished):
    output_dir, _ = finished
    tags = set()
    for folder in {path.parent for path in (output_dir / "runs").rglob("events*")}:
        tags |= set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])
    assert {"train/mlm_loss", "train/nsp_accuracy", "train/mfu", "eval/mlm_accuracy", "eval/nsp_loss"} <= tags
    assert any(tag.startswith("gradient_flow") for tag in tags)
    assert any(tag.startswith("update_ratio") for tag in tags)


@pytest.mark.launch
def test_checkpoint_loads_and_fills_masks(finished):
    output_dir, _ = finished
    model = AutoModelForPreTraining.from_pretrained(output_dir)
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    output = model(**tokenizer("Aa ab.", "Ac ad.", return_tensors="pt"))
    assert output.seq_relationship_logits.shape == (1, 2)
    filled = pipeline("fill-mask", model=str(output_dir), tokenizer=tokenizer)("Aa [MASK] ab.")
    assert len(filled) == 5


@pytest.mark.launch
def test_two_processes_train_as_one(finished, tmp_path, launch, settings):
    values = settings(tmp_path / "two", per_device_train_batch_size=8)
    process = launch("pretrain", values, config="cpu_2_processes")
    assert process.returncode == 0, process.stderr[-3000:]
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (finished[0], tmp_path / "two"))
    assert "2 processes" in two["device"]
    for key in ("mlm_loss", "nsp_loss", "mlm_accuracy"):
        assert training_losses(two, key) == pytest.approx(training_losses(one, key), rel=2e-3, abs=2e-3)
    assert two["mlm_loss"] == pytest.approx(one["mlm_loss"], rel=2e-3)


def test_learns_masked_words(monkeypatch, tmp_path, settings):
    results = run(monkeypatch, settings(tmp_path / "run", max_steps=300, eval_strategy="no", save_strategy="no"))
    assert results["mlm_accuracy"] > 1.3 * results["unigram_accuracy"]
    pairs = results["examples"]["next sentence"]
    assert [pair["follows"] for pair in sorted(pairs, key=lambda pair: pair["follows"])] == [False, True]
    for word in results["examples"]["masked words"]:
        assert "[MASK]" in word["text"] and len(word["top 5"]) == 5


def test_resume_in_mid_epoch_equals_the_uninterrupted_run(monkeypatch, tmp_path, settings):
    whole = run(monkeypatch, settings(tmp_path / "whole", max_steps=None, num_train_epochs=2, save_steps=7))
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(
            "bert_toolkit.training.checkpoints.CheckpointMarkerCallback.on_step_end",
            interrupt_after(33),
            raising=False,
        )
        run(monkeypatch, settings(tmp_path / "cut", max_steps=None, num_train_epochs=2, save_steps=7))
    steps = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "cut").glob("checkpoint-*"))
    assert steps[-1] == 28
    cut = run(
        monkeypatch,
        settings(tmp_path / "cut", max_steps=None, num_train_epochs=2, save_steps=7, resume_from_checkpoint="last"),
    )
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert cut["mlm_loss"] == whole["mlm_loss"]


def interrupt_after(step):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt

    return on_step_end


def test_accumulation_changes_neither_loss(monkeypatch, tmp_path, settings):
    bare = {"eval_strategy": "no", "save_strategy": "no", "monitor_every": 0}
    one = run(monkeypatch, settings(tmp_path / "one", **bare))
    four = run(
        monkeypatch,
        settings(tmp_path / "four", **bare, per_device_train_batch_size=4, gradient_accumulation_steps=4),
    )
    for key in ("mlm_loss", "nsp_loss", "loss", "grad_norm"):
        assert training_losses(four, key) == pytest.approx(training_losses(one, key), rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "mlm", "layer_norm_placement": "pre", "whole_word_mask": True},
        {"documents_split": "10", "one_file": True, "next_sentence_weight": 4, "dropout": 0.2},
    ],
    ids=["masked words only, pre-LN, whole words", "one document cut into parts"],
)
def test_other_forms(monkeypatch, tmp_path, corpus, settings, changes):
    changes = dict(changes)
    if changes.pop("one_file", False):
        text = " ".join(path.read_text() for path in sorted(corpus.glob("*.txt"))[:4])
        (tmp_path / "book.txt").write_text(text)
        changes["train_file"] = tmp_path / "book.txt"
    results = run(monkeypatch, settings(tmp_path / "run", max_steps=4, eval_steps=4, save_steps=4, **changes))
    assert ("nsp_accuracy" in results) == (changes.get("objective") != "mlm")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["layer_norm_placement"] == changes.get("layer_norm_placement", "post")
    assert config["hidden_dropout_prob"] == changes.get("dropout", 0.0)


def test_continues_from_a_checkpoint_with_its_tokenizer(monkeypatch, tmp_path, settings):
    few = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
    run(monkeypatch, settings(tmp_path / "first", **few))
    results = run(
        monkeypatch, settings(tmp_path / "second", **few, model_name_or_path=tmp_path / "first", learning_rate=1e-9)
    )
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    assert str(tmp_path / "first") in results["model"]


@pytest.fixture
def bad(tmp_path):
    """Files and folders that the recipe must refuse."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").write_text("Only one document. With two sentences.")
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes("Größe\n\nGröße\n\nA\n\nB".encode("latin-1"))
    (tmp_path / "short.txt").write_text("\n\n".join(["One sentence here."] * 9))
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "aa", "ab", "."])}
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path / "tokenizer")
    any_encoder.save(any_encoder.roberta, tmp_path / "roberta")
    BertModel(BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "weights"
    )
    return tmp_path


ODD_SETTINGS = {
    "one-segment": {"type_vocab_size": 1},
    "typo": {"num_hiden_layers": 2},
    "no-layer": {"num_hidden_layers": 0},
    "no-head": {"num_attention_heads": 0},
    "text": {"layer_norm_eps": "small"},
    "truth": {"attention_bias": "no"},
    "rate": {"hidden_dropout_prob": 3},
    "pad": {"pad_token_id": 99999},
}


def test_settings_of_a_checkpoint_make_a_model_of_its_size(monkeypatch, tmp_path, settings):
    """The configuration that a run leaves is a file of settings for the next."""
    few = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
    run(monkeypatch, settings(tmp_path / "first", **few))
    run(monkeypatch, settings(tmp_path / "second", **few, config_file=tmp_path / "first" / "config.json"))
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert first == second


def test_home_that_cannot_be_written_is_one_line(monkeypatch, tmp_path, settings):
    """The cache is in the home directory unless another is named; on clusters that is often not there."""
    monkeypatch.setenv("HOME", "/proc/self/fdinfo")
    with pytest.raises(InputError, match="`cache_dir` ~/.cache/bert_toolkit/corpora is not writable") as error:
        run(monkeypatch, settings(tmp_path / "run", cache_dir=None))
    assert "pass another with --cache_dir" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_file": "{bad}/absent"}, "there is no"),
        ({"train_file": "{bad}/empty"}, "holds no file"),
        ({"train_file": "{bad}/blank.txt"}, "holds 0 documents"),
        ({"train_file": "{bad}/one.txt"}, "holds 1 document; next-sentence pairs need at least 4"),
        ({"train_file": "{bad}/one.txt"}, "--documents_split"),
        ({"train_file": "{bad}/latin.txt"}, "latin.txt:1 is not utf-8 (byte 0xf6 at column 3"),
        (
            {"train_file": "{bad}/short.txt", "tokenizer_name_or_path": "{bad}/tokenizer"},
            "documents have one sentence",
        ),
        ({"max_length": 7, "tokenizer_name_or_path": "{bad}/tokenizer"}, "`max_length` must be at least 8"),
        ({"max_length": 600, "tokenizer_name_or_path": "{bad}/tokenizer", "config_file": "{bad}/c.json"}, "600"),
        ({"objective": "nsp"}, "`objective` must be one of mlm+nsp, mlm, got nsp"),
        ({"config_file": None, "size": "huge"}, "`size` must be one of tiny, mini, small, medium, base, got huge"),
        ({"mlm_probability": 1.5}, "`mlm_probability` must lie in (0, 1), got 1.5"),
        ({"vocab_size": 50}, "`vocab_size` must be at least 100, got 50"),
        ({"config_file": "{bad}/v.json"}, "the tokenizer has"),
        ({"config_file": "{bad}/absent.json"}, "`config_file` must be a JSON file"),
        ({"config_file": "{bad}/one.txt"}, "`config_file` must be a JSON file"),
        ({"next_sentence_weight": 0}, "`next_sentence_weight`"),
        ({"cache_dir": "/proc/self/fdinfo/cache"}, "`cache_dir` /proc/self/fdinfo/cache is not writable"),
        ({"cache_dir": "{bad}/one.txt/cache"}, "one.txt/cache is not writable (Not a directory): pass another"),
        ({"tokenizer_name_or_path": "{bad}/absent"}, "`tokenizer_name_or_path` {bad}/absent: no such folder"),
        ({"tokenizer_name_or_path": "{bad}/one.txt"}, "`tokenizer_name_or_path` {bad}/one.txt: no such folder"),
        ({"tokenizer_name_or_path": "{bad}/weights"}, "weights holds no tokenizer, or one without words"),
        ({"held_out_pairs": 0}, "`held_out_pairs` must be at least 1, got 0"),
        ({"processes": 0}, "`processes` must be at least 1, got 0"),
        ({"dropout": 2}, "`dropout` must be at least 0 and less than 1, got 2.0"),
        ({"dropout": "nan"}, "`dropout` must be at least 0 and less than 1, got nan"),
        ({"config_file": "{bad}/one-segment.json"}, "must tell two segments apart (`type_vocab_size` 2), got 1"),
        ({"config_file": "{bad}/typo.json"}, "unknown setting num_hiden_layers; did you mean num_hidden_layers?"),
        ({"config_file": "{bad}/no-layer.json"}, "num_hidden_layers must be a whole number from 1 on, got 0"),
        ({"config_file": "{bad}/no-head.json"}, "num_attention_heads must be a whole number from 1 on, got 0"),
        ({"config_file": "{bad}/text.json"}, "layer_norm_eps must be a number from 0 on, got 'small'"),
        ({"config_file": "{bad}/truth.json"}, "attention_bias must be true or false, got 'no'"),
        ({"config_file": "{bad}/rate.json"}, "no model can be made of these settings: dropout probability"),
        ({"config_file": "{bad}/pad.json"}, "no model can be made of these settings: Padding_idx"),
        ({"tokenizer_name_or_path": "{bad}/empty"}, "empty cannot be loaded as AutoTokenizer: "),
        ({"model_name_or_path": "{bad}/absent"}, "absent: no such folder"),
        ({"model_name_or_path": "{bad}/roberta"}, "must be a BERT to be trained further, "),
        ({"model_name_or_path": "{bad}/roberta", "tokenizer_name_or_path": "{bad}/tokenizer"}, "is of type roberta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_and_trains_nothing(monkeypatch, tmp_path, settings, bad, changes, message):
    (bad / "c.json").write_text(json.dumps({**TINY, "max_position_embeddings": 512}))
    (bad / "v.json").write_text(json.dumps({**TINY, "vocab_size": 20}))
    for name, setting in ODD_SETTINGS.items():
        (bad / f"{name}.json").write_text(json.dumps({**TINY, **setting}))
    changes = {k: v.format(bad=bad) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(InputError, match=re.escape(message.replace("{bad}", str(bad)))) as error:
        run(monkeypatch, settings(tmp_path / "run", **changes))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
