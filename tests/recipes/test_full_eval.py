"""Evaluating in half precision changes what is evaluated, not what was trained and is saved."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECIPES = Path(__file__).parents[2] / "recipes"


def run(monkeypatch, recipe, **values):
    words = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *words])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    runpy.run_path(str(RECIPES / f"{recipe}.py"))["main"]()
    return load_file(Path(values["output_dir"]) / "model.safetensors")


@pytest.mark.parametrize("recipe", ["cola", "pretrain"])
@pytest.mark.parametrize("flag", ["bf16_full_eval", "fp16_full_eval"])
def test_saves_what_was_trained(recipe, flag, monkeypatch, tmp_path, cola_dir, tiny_bert_dir):
    few = {"max_steps": 3, "monitor_every": 0, "cpu_threads": 1, "report_to": "none", "per_device_train_batch_size": 4}
    if recipe == "cola":
        few |= {"data_dir": cola_dir, "model_name_or_path": tiny_bert_dir, "max_length": 16}
    else:
        (tmp_path / "texts.txt").write_text("\n\n".join(["The dog sleeps. A cat runs. My friend laughs."] * 20))
        few |= {"train_file": tmp_path / "texts.txt", "model_name_or_path": tiny_bert_dir, "max_length": 32}
        few |= {"cache_dir": tmp_path / "cache", "processes": 1, "held_out_pairs": 8}
    plain = run(monkeypatch, recipe, **few, output_dir=tmp_path / "plain")
    half = run(monkeypatch, recipe, **few, output_dir=tmp_path / "half", **{flag: "true"})
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert all(torch.equal(half[name], plain[name]) for name in plain)
    found = [json.loads((tmp_path / name / "config.json").read_text())["dtype"] for name in ("plain", "half")]
    assert found == ["float32", "float32"]
    for checkpoint in (tmp_path / "half").glob("checkpoint-*"):
        assert {tensor.dtype for tensor in load_file(checkpoint / "model.safetensors").values()} == {torch.float32}
