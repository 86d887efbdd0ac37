"""Tries several settings of a training with Optuna, and gives the best of them to the training proper."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments, set_seed

from bert_toolkit.errors import InputError
from bert_toolkit.files import replaced_at_once

if TYPE_CHECKING:
    from optuna import Study, Trial

FILE = "hyperparameter_search.json"
RATE_FACTOR = 3
"""Learning rates are tried up to this factor below and above that of the run."""
WARM_UPS = (0.0, 0.05, 0.1, 0.2)
"""Fractions of the steps."""


def search_hyperparameters(trainer: Trainer, trials: int) -> dict[str, str]:
    """Train several times with settings of a small space, and set the best ones in the trainer's arguments.

    The space: a third to three times the run's learning rate, half of its epochs to all of them, and 0, 5, 10 or 20 %
    of warm-up. The first trial has the run's own settings, the others those that Optuna proposes. What is fixed
    otherwise (by `max_steps`, or `warmup_steps` in steps) is not searched. A trial counts as the run does: by
    `metric_for_best_model` on the validation rows, of its best evaluation with `load_best_model_at_end` and of its
    last without. Each begins with the weights that the trainer has, so that a trial is the same training as a run with
    its settings. Trials are neither watched nor saved, and no early stopping ends them.

    Writes `output_dir/hyperparameter_search.json` with every trial. Every process calls it.

    Args:
        trainer: Ready to train.
        trials: Trainings to try; 0 for no search.

    Returns:
        A fact for the run's report; nothing without a search.

    Raises:
        InputError: A search does not go with other flags, or no trial gave a score.
    """
    if not trials:
        return {}
    _check(trainer)
    from optuna import create_study, logging
    from optuna.pruners import NopPruner
    from optuna.samplers import TPESampler
    from optuna.storages import InMemoryStorage

    args = trainer.args
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    direction: Literal["minimize", "maximize"] = "maximize" if args.greater_is_better else "minimize"
    place: dict[str, Any] = {"study_name": "search", "storage": InMemoryStorage()}
    search = _Search(create_study(direction=direction, **place), args, trials)
    search.announce()
    try:
        _trainer_of_trials(trainer).hyperparameter_search(
            hp_space=search.propose,
            compute_objective=search.judge,
            n_trials=trials,
            direction=direction,
            backend="optuna",
            catch=(InputError,),
            sampler=TPESampler(seed=args.seed),
            pruner=NopPruner(),  # Trainer would end a trial on the main process only
            load_if_exists=True,
            **place,
        )
    except ValueError as error:
        if "No trials are completed" not in str(error):
            raise
        raise InputError(
            f"`hyperparameter_search` found no score in {trials} trials: all of them diverged; lower `learning_rate`"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    found: list[Any] = [*search.result()] if search.is_main else [None, None]
    if args.world_size > 1:
        torch.distributed.broadcast_object_list(found, src=0)
    best, fact = found
    vars(args).update(best)
    set_seed(args.seed)  # training begins as it would without a search
    return {"hyperparameter search": fact}


class _Search:
    """What is tried, by which score, and how it went.

    Args:
        study: Empty; on the main process it holds the trials.
        args: Of the run.
        trials: Trainings to try.
    """

    def __init__(self, study: Study, args: TrainingArguments, trials: int) -> None:
        self.study, self.trials = study, trials
        self.metric = str(args.metric_for_best_model or "loss").removeprefix("eval_")
        self.is_main, self.file = args.process_index == 0, Path(str(args.output_dir)) / FILE
        self._of_best, self._greater = bool(args.load_best_model_at_end), bool(args.greater_is_better)
        self._scores: list[float] = []
        self._told = 0
        self._own = _searched(args)
        self.choices = _choices(self._own)
        study.enqueue_trial(self._own)

    def announce(self) -> None:
        if self.is_main:
            print(f"Search: {self.trials} trainings; the best by {self.metric} of the validation rows counts")
            for flag, values in self.choices.items():
                between = " to " if flag == "learning_rate" else ", "
                print(f"  --{flag} {between.join(f'{value:.3g}' for value in values)}", flush=True)

    def propose(self, trial: Trial) -> dict[str, Any]:
        """The settings of a trial that begins."""
        self._tell_finished()
        self._scores.clear()
        values = {
            flag: trial.suggest_float(flag, *of, log=True)
            if flag == "learning_rate"
            else trial.suggest_categorical(flag, of)
            for flag, of in self.choices.items()
        }
        return self._as_flags(values)

    def judge(self, metrics: Mapping[str, float]) -> float:
        """The score of the trial after an evaluation."""
        self._scores.append(float(metrics[f"eval_{self.metric}"]))
        finite = [score for score in self._scores if math.isfinite(score)]
        if not (self._of_best and finite):
            return self._scores[-1]
        return max(finite) if self._greater else min(finite)

    def result(self) -> tuple[dict[str, Any], str]:
        """The best settings, and a line on them for the report; writes the file."""
        self._tell_finished()
        best, score = self._as_flags(self.study.best_params), self.study.best_value
        trials = [{**self._as_flags(trial.params), self.metric: trial.value} for trial in self.study.get_trials()]
        record = {"metric": self.metric, "tried": self.choices, "trials": trials, "best": best}
        with replaced_at_once(self.file) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"Best: {_line(best)}; training with it now", flush=True)
        return best, f"{_line(best)}: the best of {self.trials} trials, validation {self.metric} {score:.4f}"

    def _as_flags(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values as they are trained with: a learning rate that Optuna proposes becomes one that a person can type."""
        rate = values["learning_rate"]
        return {**values, "learning_rate": rate if rate == self._own["learning_rate"] else float(f"{rate:.3g}")}

    def _tell_finished(self) -> None:
        finished = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        for trial in finished[self._told :]:
            score = "no score, it diverged" if trial.value is None else f"{self.metric} {trial.value:.4f}"
            print(
                f"trial {trial.number + 1} of {self.trials}: {_line(self._as_flags(trial.params))}: {score}",
                flush=True,
            )
        self._told = len(finished)


def _check(trainer: Trainer) -> None:
    args = trainer.args
    if args.resume_from_checkpoint is not None:
        raise InputError(
            "`hyperparameter_search` does not go with `resume_from_checkpoint`: leave it out and pass the flags that "
            f"{args.output_dir}/{FILE} names as the best"
        )
    if args.learning_rate <= 0:
        raise InputError(f"`hyperparameter_search` needs a `learning_rate` above 0, got {args.learning_rate}")
    if trainer.optimizer_cls_and_kwargs is not None:
        raise InputError("`hyperparameter_search` does not go with `layer_wise_decay`: leave one of them out")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InputError(
            "`hyperparameter_search` does not go with FSDP and DeepSpeed: search without, then pass the best flags"
        )


def _searched(args: TrainingArguments) -> dict[str, Any]:
    """The flags that are searched, with the values that the run has without a search."""
    own: dict[str, Any] = {"learning_rate": args.learning_rate}
    if args.max_steps <= 0 and args.num_train_epochs == int(args.num_train_epochs):
        own["num_train_epochs"] = int(args.num_train_epochs)
    if args.warmup_steps < 1:
        own["warmup_steps"] = float(args.warmup_steps)
    return own


def _choices(own: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What is tried of each flag: the limits of the learning rate, all values of the others."""
    of_each = {
        "learning_rate": lambda rate: [rate / RATE_FACTOR, rate * RATE_FACTOR],
        "num_train_epochs": lambda epochs: list(range(math.ceil(epochs / 2), epochs + 1)),
        "warmup_steps": lambda share: sorted({*WARM_UPS, share}),
    }
    return {flag: of_each[flag](value) for flag, value in own.items()}


def _line(values: Mapping[str, Any]) -> str:
    return " ".join(f"--{flag} {value}" for flag, value in values.items())


def _trainer_of_trials(trainer: Trainer) -> Trainer:
    """A trainer of the same, which says and saves nothing and begins each training with the same weights."""
    args = copy.copy(trainer.args)
    quiet = {"report_to": [], "push_to_hub": False, "disable_tqdm": True, "logging_strategy": "no"}
    unsaved = {"save_strategy": "no", "load_best_model_at_end": False}
    # Trainer gives a setting the type of the one before it, and 0.1 as an integer would be no warm-up
    vars(args).update(quiet | unsaved | {"warmup_steps": float(args.warmup_steps)})
    model = cast(PreTrainedModel, trainer.model)
    searching = Trainer(
        model_init=lambda: copy.deepcopy(model),
        args=args,
        train_dataset=trainer.train_dataset,
        eval_dataset=trainer.eval_dataset,
        processing_class=trainer.processing_class,
        data_collator=trainer.data_collator,
        compute_metrics=trainer.compute_metrics,
        preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
        compute_loss_func=trainer.compute_loss_func,
    )
    searching.remove_callback(PrinterCallback)
    return searching
