"""Values of Trainer's flags that PyTorch or Trainer would refuse in a traceback."""

import pytest
from transformers import TrainingArguments

from bert_toolkit import InputError
from bert_toolkit.training.trainer_flags import RANGES, check_trainer_flags


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])


def test_the_defaults_of_trainer_are_accepted(arguments):
    check_trainer_flags(arguments)


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_of_a_range_are_accepted_and_nothing_below(arguments, name):
    least, most = RANGES[name]
    for value in (least, min(most, 10**6)):
        setattr(arguments, name, value)
        check_trainer_flags(arguments)
    setattr(arguments, name, least - 1)
    with pytest.raises(InputError, match=f"`{name}` must .*, got {least - 1}"):
        check_trainer_flags(arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adam_beta1", 1.0),
        ("adam_beta2", -0.1),
        ("adam_epsilon", 0.0),
        ("num_train_epochs", 0),
        ("label_smoothing_factor", 1.5),
        ("seed", 2**32),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("weight_decay", float("inf")),
        ("adam_epsilon", float("nan")),
        ("max_grad_norm", float("nan")),
        ("eval_delay", float("nan")),
        ("num_train_epochs", float("nan")),
        ("num_train_epochs", float("inf")),
        ("max_steps", 0),
        ("dataloader_persistent_workers", True),
        ("batch_eval_metrics", True),
    ],
)
def test_is_refused_by_name(arguments, name, value):
    setattr(arguments, name, value)
    with pytest.raises(InputError, match=f"`{name}`"):
        check_trainer_flags(arguments)


def test_pushing_without_a_login_is_refused_before_training(arguments, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments.push_to_hub = True
    with pytest.raises(InputError, match=r"`push_to_hub` .*leave the flag out"):
        check_trainer_flags(arguments)
