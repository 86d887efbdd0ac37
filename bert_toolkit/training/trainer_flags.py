"""Refuses values of Trainer's flags that would end a recipe with a traceback, before its training or after it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from huggingface_hub import whoami
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import ParallelMode
from transformers.utils import is_liger_kernel_available

from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.data.labels import SINGLE
from bert_toolkit.errors import InputError, reason_of

RANGES: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, math.inf),
    "per_device_eval_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "eval_accumulation_steps": (1, math.inf),
    "learning_rate": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "weight_decay": (0, math.inf),
    "label_smoothing_factor": (0, 1),
    "neftune_noise_alpha": (0, math.inf),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**63 - 1),
    "dataloader_num_workers": (0, math.inf),
    "dataloader_prefetch_factor": (1, math.inf),
    "torch_empty_cache_steps": (1, math.inf),
    "ddp_bucket_cap_mb": (1, math.inf),
    "ddp_timeout": (1, math.inf),
}
"""Smallest and largest value, both accepted but infinity; a flag that is not set is not looked at."""


def check_trainer_flags(arguments: TrainingArguments) -> None:
    """Refuse values that PyTorch or Trainer would refuse later, in a traceback.

    Args:
        arguments: Of the run.

    Raises:
        InputError: A value lies outside its range, or needs another flag or a package.
    """
    for name, value in vars(arguments).items():
        if isinstance(value, float) and math.isnan(value):
            raise InputError(f"`{name}` must be a number, got nan")
    for name, (least, most) in RANGES.items():
        value = getattr(arguments, name)
        if value is not None and (not least <= value <= most or math.isinf(value)):
            accepted = f"be at least {least}" if most == math.inf else f"lie in {least} to {most}"
            raise InputError(f"`{name}` must {accepted}, got {value}")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= (value := getattr(arguments, name)) < 1:
            raise InputError(f"`{name}` must be at least 0 and less than 1, got {value}")
    if arguments.adam_epsilon <= 0:
        raise InputError(f"`adam_epsilon` must be greater than 0, got {arguments.adam_epsilon}")
    if arguments.max_steps == 0:
        raise InputError("`max_steps` must be at least 1, or -1 to train for `num_train_epochs`, got 0")
    if arguments.max_steps < 0 and not 0 < arguments.num_train_epochs < math.inf:
        raise InputError(f"`num_train_epochs` must be greater than 0, got {arguments.num_train_epochs}")
    if arguments.dataloader_persistent_workers and not arguments.dataloader_num_workers:
        raise InputError("`dataloader_persistent_workers` needs `dataloader_num_workers` of at least 1, got 0")
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise InputError("`use_liger_kernel` needs the package liger-kernel: install it, or leave the flag out")
    if arguments.batch_eval_metrics:
        raise InputError(
            "`batch_eval_metrics` must be false, got true: the recipes compute their metrics from all rows at once; "
            "to save memory, set `eval_accumulation_steps`"
        )
    reporters = get_available_reporting_integrations()
    for name in arguments.report_to or ():
        if name not in reporters:
            raise InputError(
                f"`report_to` must be none or of what is installed ({', '.join(reporters)}), got {name}: install its "
                "package, or leave it out"
            )
    if arguments.fsdp and arguments.parallel_mode != ParallelMode.DISTRIBUTED:
        raise InputError("`fsdp` needs several processes: launch with recipes/accelerate_configs/fsdp2.yaml")
    if arguments.torch_compile:
        _check_compiler(arguments)
    if arguments.push_to_hub:
        _check_login(arguments.hub_token)


def check_early_stopping(arguments: TrainingArguments) -> None:
    """Refuse early stopping where no evaluation can end the training.

    Args:
        arguments: Of the run.

    Raises:
        InputError: Nothing is evaluated, or no best checkpoint is kept.
    """
    if arguments.eval_strategy == "no" or not arguments.load_best_model_at_end:
        raise InputError(
            "`early_stopping_patience` needs evaluations and the best checkpoint: `--eval_strategy epoch` (or steps), "
            "the same `--save_strategy`, and `--load_best_model_at_end true`; got "
            f"{getattr(arguments.eval_strategy, 'value', arguments.eval_strategy)} and "
            f"{str(arguments.load_best_model_at_end).lower()}"
        )


def choose_learning_rate(arguments: TrainingArguments, model: PreTrainedModel, wide: float, narrow: float) -> None:
    """Set the learning rate by the size of the model where none was passed.

    Args:
        arguments: Of the run; changed.
        model: That is trained; one that does not tell its width counts as wide.
        wide: For models as wide as BERT-base and wider.
        narrow: For others.
    """
    if arguments.learning_rate is None:
        arguments.learning_rate = wide if getattr(model.config, "hidden_size", 768) >= 768 else narrow


def choose_best_metric(arguments: TrainingArguments, best: str) -> None:
    """Put a recipe's own score in place of `metric_for_best_model auto`, the loss where nothing else is computed.

    Args:
        arguments: Of the run; changed.
        best: The score of which more is better.
    """
    if arguments.metric_for_best_model == "auto":
        of_loss = arguments.prediction_loss_only
        arguments.metric_for_best_model = "loss" if of_loss else best
        arguments.greater_is_better = not of_loss  # Trainer took "auto" for a score of which more is better


def check_classifier_flags(arguments: TrainingArguments, corpus: CorpusSplits, metrics: Iterable[str]) -> None:
    """Refuse flags that do not go with the data and the metrics of a classifier.

    Args:
        arguments: Of the run.
        corpus: Its data.
        metrics: What each evaluation computes besides the loss.

    Raises:
        InputError: Such a flag.
    """
    _check_best_metric(arguments, metrics, f"for {corpus.problem_type}")
    if arguments.label_smoothing_factor and corpus.problem_type != SINGLE:
        raise InputError(
            f"`label_smoothing_factor` must be 0 for {corpus.problem_type}, got {arguments.label_smoothing_factor}: "
            "it smooths one class per text"
        )
    _check_rows(arguments, len(corpus.validation))


def check_tagger_flags(arguments: TrainingArguments, validation_rows: int, metrics: Iterable[str]) -> None:
    """Refuse flags that do not go with the data and the metrics of a tagger.

    Args:
        arguments: Of the run.
        validation_rows: Number of validation sentences.
        metrics: What each evaluation computes besides the loss.

    Raises:
        InputError: Such a flag.
    """
    _check_best_metric(arguments, metrics, "for these tags")
    _check_rows(arguments, validation_rows)
    if not arguments.eval_do_concat_batches:
        raise InputError(
            "`eval_do_concat_batches` must be true for token classification, got false: scores take all sentences at "
            "once"
        )


def check_answerer_flags(arguments: TrainingArguments, validation_rows: int, metrics: Iterable[str]) -> None:
    """Refuse flags that do not go with questions whose windows are scored together.

    Args:
        arguments: Of the run.
        validation_rows: Number of validation windows.
        metrics: What each evaluation computes besides the loss.

    Raises:
        InputError: Such a flag.
    """
    _check_best_metric(arguments, metrics, "for answers")
    reason = "an answer is chosen among all windows of its question"
    if not arguments.eval_do_concat_batches:
        raise InputError(f"`eval_do_concat_batches` must be true for question answering, got false: {reason}")
    if arguments.dataloader_drop_last:
        raise InputError(f"`dataloader_drop_last` must be false for question answering, got true: {reason}")
    if arguments.label_smoothing_factor:
        raise InputError(
            "`label_smoothing_factor` must be 0 for question answering, got "
            f"{arguments.label_smoothing_factor}: Trainer smooths only what is called `labels`"
        )
    _check_rows(arguments, validation_rows)


def _check_best_metric(arguments: TrainingArguments, metrics: Iterable[str], reason: str) -> None:
    best = str(arguments.metric_for_best_model).removeprefix("eval_")
    accepted = ["loss"] if arguments.prediction_loss_only else ["loss", *metrics]
    if best not in accepted:
        reason = "with `prediction_loss_only`" if arguments.prediction_loss_only else reason
        names = " or ".join(filter(None, [", ".join(accepted[:-1]), accepted[-1]]))
        raise InputError(f"`metric_for_best_model` must be {names} {reason}, got {best}")


def _check_rows(arguments: TrainingArguments, validation_rows: int) -> None:
    if not arguments.remove_unused_columns:
        raise InputError("`remove_unused_columns` must be true, got false: the rows hold texts, which no model takes")
    batch = arguments.eval_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and validation_rows < batch:
        raise InputError(
            f"`dataloader_drop_last` leaves none of {validation_rows} validation rows in batches of {batch}; "
            "lower `per_device_eval_batch_size` or leave the flag out"
        )


def _check_compiler(arguments: TrainingArguments) -> None:
    mode, backend = arguments.torch_compile_mode, arguments.torch_compile_backend
    try:
        torch.compile(torch.nn.Identity(), mode=mode, backend=backend or "inductor")
    except Exception as error:  # torch has an error class for each part of it
        raise InputError(
            f"`torch_compile_mode` {mode} and `torch_compile_backend` {backend} cannot be used: {reason_of(error)}"
        ) from error


def _check_login(token: str | None) -> None:
    try:
        whoami(token=token)
    except LocalTokenNotFoundError as error:
        raise InputError("`push_to_hub` needs a login: run `hf auth login`, or leave the flag out") from error
    except Exception as error:  # no network, offline mode, a refused token, whatever a proxy answers
        raise InputError(
            f"`push_to_hub` cannot log in to the hub ({reason_of(error)}): check the token and the network, or leave "
            "the flag out"
        ) from error
