"""Every boolean and numeric flag of Trainer on a run of two steps of each recipe: it works, or one line refuses it."""

import json
import runpy
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from transformers import AutoModel, TrainerCallback, TrainingArguments

from bert_toolkit import InputError
from bert_toolkit.training.arguments import RECIPE_DEFAULTS

RECIPES = Path(__file__).parents[2] / "recipes"

FLAGS = {
    name: kinds
    for name, hint in get_type_hints(TrainingArguments).items()
    if (kinds := {bool, int, float} & {hint, *get_args(hint)})
    and name in {item.name for item in fields(TrainingArguments) if item.init}
}

USUAL = {
    "per_device_train_batch_size": 3,
    "num_train_epochs": 0.5,
    "max_steps": 1,
    "learning_rate": 1e-4,
    "warmup_steps": 1,
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-6,
    "gradient_accumulation_steps": 3,
    "max_grad_norm": 0.1,
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "torch_empty_cache_steps": 1,
    "logging_steps": 1,
    "eval_steps": 1,
    "eval_delay": 1,
    "per_device_eval_batch_size": 1,
    "eval_accumulation_steps": 1,
    "save_steps": 1,
    "save_total_limit": 1,
    "seed": 7,
    "data_seed": 7,
    "dataloader_num_workers": 1,
    "dataloader_prefetch_factor": 2,
    "ddp_bucket_cap_mb": 5,
    "ddp_timeout": 60,
    "local_rank": 0,
}
"""A value of each numeric flag that somebody may well give; 0 and -1 are tried besides."""

NEEDS = {
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "dataloader_persistent_workers": {"dataloader_num_workers": 1},
    "dataloader_in_order": {"dataloader_num_workers": 1},
    "eval_steps": {"eval_strategy": "steps", "save_strategy": "steps"},
    "save_steps": {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"},
    "save_total_limit": {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
    "load_best_model_at_end": {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1},
    "num_train_epochs": {"max_steps": -1},
}
"""Flags that only count together with others; they are tried with and without."""

HOSTILE = [0, -1]
TROUBLESOME = {
    "label_smoothing_factor",
    "prediction_loss_only",
    "batch_eval_metrics",
    "eval_do_concat_batches",
    "remove_unused_columns",
    "use_liger_kernel",
    "dataloader_drop_last",
    "push_to_hub",
    "per_device_eval_batch_size",
}
"""What once ended in a traceback: tried with three recipes in the fast tier, all else in the slow one."""

LABELS = {"single": ["plain", "turned"], "number": ["0.5", "2.5"]}


def values_of(name):
    """Values to try; of a boolean flag that which is not the default, or both where there is no default."""
    if bool not in FLAGS[name]:
        return [USUAL[name]]
    default = RECIPE_DEFAULTS.get(name, TrainingArguments.__dataclass_fields__[name].default)
    return ["true", "false"] if default is None else [str(not default).lower()]


def cases():
    for recipe in (
        "classify",
        "regression",
        "cola",
        "newsgroups",
        "pretrain",
        "token_classification",
        "question_answering",
    ):
        for name in FLAGS:
            # recipes share the check of numbers, so one of them is enough
            hostile = HOSTILE if recipe == "classify" and name in USUAL else []
            # the others share the code of one of these for what these flags touch
            quick = name in TROUBLESOME and recipe in ("classify", "pretrain", "question_answering")
            marks = [] if quick else [pytest.mark.slow]
            for value in [*values_of(name), *hostile]:
                yield pytest.param(recipe, name, value, {}, marks=marks, id=f"{recipe}-{name}={value}")
                if name in NEEDS:
                    case = f"{recipe}-{name}={value}-with-others"
                    yield pytest.param(recipe, name, value, NEEDS[name], marks=marks, id=case)


@pytest.fixture(scope="module")
def data(tmp_path_factory, cola_dir, newsgroups_archive, tiny_bert_dir):
    """Recipe -> flags that make it small."""
    folder = tmp_path_factory.mktemp("flags")
    few = {"max_steps": 2, "cpu_threads": 1, "per_device_train_batch_size": 4, "monitor_every": 1}
    few |= {"model_name_or_path": tiny_bert_dir}
    sentences = [
        f"{subject} {verb} today ." for subject in ("the dog", "a cat") for verb in ("sleeps", "runs", "sings")
    ]
    for kind, labels in LABELS.items():
        rows = [f"{text}\t{labels[i % 2]}" for i, text in enumerate(sentences * 4)]
        (folder / f"{kind}.tsv").write_text("\n".join(["text\tlabel", *rows]))
    tagged = "\n\n".join("\n".join(f"{word} {word[0]}" for word in text.split()) for text in sentences * 4)
    (folder / "words.conll").write_text(tagged)
    (folder / "texts.txt").write_text("\n\n".join(["The dog sleeps. A cat runs. My friend laughs."] * 20))
    paragraphs = [
        {"context": text, "qas": [{"question": "today", "answers": [{"text": text, "answer_start": 0}]}]}
        for text in [f"{start}{text}" for start in (". ", "") for text in sentences]
    ]
    (folder / "questions.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return {
        "question_answering": {**few, "train_data": folder / "questions.json", "max_length": 16, "doc_stride": 4},
        "classify": {**few, "train_data": folder / "single.tsv", "max_length": 16},
        "regression": {**few, "train_data": folder / "number.tsv", "max_length": 16, "problem_type": "regression"},
        "token_classification": {**few, "train_data": folder / "words.conll", "max_length": 16},
        "cola": {**few, "data_dir": cola_dir, "max_length": 16, "max_train_samples": 12},
        "newsgroups": {**few, "data_dir": newsgroups_archive, "max_length": 16, "max_train_samples": 12},
        "pretrain": {
            **few,
            "train_file": folder / "texts.txt",
            "max_length": 32,
            "cache_dir": folder / "cache",
            "processes": 1,
            "held_out_pairs": 8,
        },
    }


@pytest.mark.parametrize(("recipe", "name", "value", "others"), list(cases()))
def test_flag_works_or_is_refused_before_the_first_step(recipe, name, value, others, data, monkeypatch, tmp_path):
    steps = []
    monkeypatch.setattr(
        TrainerCallback, "on_step_begin", lambda self, args, state, control, **more: steps.append(state.global_step)
    )
    flags = {"output_dir": tmp_path / "run", "report_to": "none"} | data[recipe] | others | {name: value}
    words = [str(word) for flag, given in flags.items() for word in (f"--{flag}", given)]
    program = "classify" if recipe == "regression" else recipe
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *words])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    before = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    try:
        runpy.run_path(str(RECIPES / f"{program}.py"))["main"]()
    except InputError as error:
        assert steps == [], "refused only after training had begun"
        assert "\n" not in str(error)
        names = {
            name,
            name.replace("_", " "),
            name.replace("save_steps", "saving steps"),
        }  # the last are Trainer's words
        assert any(each in str(error) for each in names), error
        return
    finally:
        assert torch.get_default_dtype() == before[0]
        torch.use_deterministic_algorithms(before[1])
    assert steps
    assert json.loads((tmp_path / "run" / "results.json").read_text())
    AutoModel.from_pretrained(tmp_path / "run")
