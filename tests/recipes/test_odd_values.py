"""Values of Trainer's flags that its own parts would refuse in a traceback, some of them after training."""

import runpy
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback

from bert_toolkit import InputError

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def refused(monkeypatch, tiny_bert_dir, tmp_path):
    """Runs a recipe in this process, which must refuse its flags before the first step."""
    (tmp_path / "data.tsv").write_text("text\tlabel\n" + "the dog sleeps\ta\na cat runs\tb\n" * 10)
    (tmp_path / "words.conll").write_text("\n\n".join(["the D\ndog N\nsleeps V"] * 10))
    (tmp_path / "texts.txt").write_text("\n\n".join(["The dog sleeps. A cat runs. My friend laughs."] * 8))
    data = {
        "classify": {"train_data": tmp_path / "data.tsv", "max_length": 16},
        "token_classification": {"train_data": tmp_path / "words.conll", "max_length": 16},
        "pretrain": {"train_file": tmp_path / "texts.txt", "max_length": 32, "cache_dir": tmp_path / "cache"},
    }

    def run(message, recipe="classify", **flags):
        steps = []
        monkeypatch.setattr(TrainerCallback, "on_step_begin", lambda *arguments, **more: steps.append(1))
        values = {"model_name_or_path": tiny_bert_dir, "output_dir": tmp_path / "run", "report_to": "none"}
        values |= {"max_steps": 2, "cpu_threads": 1, "monitor_every": 0, **data[recipe], **flags}
        words = [str(word) for flag, value in values.items() for word in (f"--{flag}", value)]
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *words])
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        with pytest.raises(InputError, match=message) as error:
            runpy.run_path(str(RECIPES / f"{recipe}.py"))["main"]()
        assert not steps and "\n" not in str(error.value)
        assert not list((tmp_path / "run").glob("checkpoint-*"))

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "cannot begin with `lr_scheduler_type` cosine_with_min_lr: .*min_lr",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "`lr_scheduler_type` warmup_stable_decay: .*'num_decay_steps'"),
        ({"lr_scheduler_kwargs": '{"foo": 2}'}, r"`lr_scheduler_kwargs` \{'foo': 2\}: .*'foo'"),
        ({"lr_scheduler_kwargs": "nonsense"}, "`lr_scheduler_kwargs` nonsense: .*must be a mapping"),
        ({"optim": "lomo"}, "training cannot begin with `optim` lomo: You need to install `lomo_optim`"),
        ({"optim": "galore_adamw", "optim_target_modules": "query"}, "with `optim` galore_adamw: You need to install"),
        ({"optim_args": "betas"}, "`optim_args` betas: not enough values to unpack"),
        ({"label_names": "x"}, "`label_names` must be labels for .*, got x: leave the flag out"),
        (
            {"report_to": "nonsense"},
            r"`report_to` must be none or of what is installed \(.*tensorboard.*\), got nonsense",
        ),
        ({"fsdp": "full_shard"}, "`fsdp` needs several processes: launch with"),
        ({"torch_compile_mode": "nonsense"}, "`torch_compile_mode` nonsense and .* cannot be used: "),
        ({"torch_compile_backend": "nonsense"}, "and `torch_compile_backend` nonsense cannot be used: "),
        ({"accelerator_config": "nope"}, "No such file or directory: 'nope'"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_is_one_line_before_the_first_step(flags, message, refused):
    refused(message, **flags)


@pytest.mark.parametrize("recipe", ["token_classification", "pretrain"])
def test_other_recipes_refuse_the_same(recipe, refused):
    refused("`lr_scheduler_type` cosine_with_min_lr", recipe, lr_scheduler_type="cosine_with_min_lr")
    refused("`label_names` must be labels.*, got x", recipe, label_names="x")
