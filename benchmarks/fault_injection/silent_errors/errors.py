"""The errors: what goes wrong in each, where it was seen, and which rules would name it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.fault_injection.deform.texts import collate

STEPS = 24


@dataclass
class Setup:
    """A training that is about to start; errors change it.

    Args:
        model: What is trained.
        rows: Rows to train on.
        settings: Arguments of `TrainingArguments`.
        callbacks: Come before training health.
        optimizer: Takes the place of Trainer's own.
        collator: Rows to a batch.
        loss: From Trainer, model and batch to the loss.
        loader: Takes the place of Trainer's own loader.
        prepared: Called with Trainer before training begins.
    """

    model: Any
    rows: Any
    settings: dict[str, Any]
    callbacks: list[TrainerCallback] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None
    collator: Callable[[list[dict]], dict[str, torch.Tensor]] = collate
    loss: Callable[[Trainer, Any, dict[str, Any]], torch.Tensor] = lambda trainer, model, batch: model(**batch).loss
    loader: Callable[[Trainer], DataLoader] | None = None
    prepared: Callable[[Trainer], None] = lambda trainer: None


@dataclass(frozen=True)
class SilentError:
    """One way in which a training goes wrong without a word.

    Args:
        inject: Changes the setup.
        source: Where it happened, as TrainCheck's list names it; empty for a relative of these that it does not hold.
        rules: Rules whose finding names the cause.
        ranks: Processes that it needs.
        model: Of the subjects.
        unseen: Why training health cannot tell it from a healthy run; empty where it should.
    """

    inject: Callable[[Setup], None]
    source: str
    rules: frozenset[str]
    ranks: int
    model: str
    unseen: str


ERRORS: dict[str, SilentError] = {}


def silent_error(*rules: str, source: str = "", ranks: int = 1, model: str = "bert", unseen: str = "") -> Callable:
    """Register the function below as an error of its name; see `SilentError` for the arguments."""

    def register(inject: Callable[[Setup], None]) -> Callable[[Setup], None]:
        ERRORS[inject.__name__] = SilentError(inject, source, frozenset(rules), ranks, model, unseen)
        return inject

    return register


class At(TrainerCallback):
    """Do something at one kind of event, from one step on.

    Args:
        event: Name of the event's method.
        action: Called with what Trainer hands to the event.
        first: Number of the first step at which it is done.
        last: Number of the last one.
    """

    def __init__(self, event: str, action: Callable[..., None], first: int = 1, last: int = STEPS) -> None:
        def act(
            args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> TrainerControl:
            if first <= state.global_step + 1 <= last:
                action(**kwargs)
            return control

        setattr(self, event, act)


# --- gradients and the optimizer's step ------------------------------------------------------------------------------


@silent_error("gradients_kept", source="StackOverflow-60335387: no zero_grad()")
def gradients_never_cleared(setup: Setup) -> None:
    """Nothing clears the gradients, so that every step adds to the last."""
    setup.model.zero_grad = lambda set_to_none=True: None


@silent_error("gradients_cleared")
def gradients_cleared_before_the_step(setup: Setup) -> None:
    """Gradients are cleared between backward and the optimizer's step."""

    def prepared(trainer: Trainer) -> None:
        backward = trainer.accelerator.backward

        def backward_and_clear(loss: torch.Tensor, **kwargs: Any) -> None:
            backward(loss, **kwargs)
            setup.model.zero_grad(set_to_none=False)

        trainer.accelerator.backward = backward_and_clear

    setup.prepared = prepared


@silent_error("not_updated")
def backward_without_step(setup: Setup) -> None:
    """The optimizer's step is never made."""

    def disarm(optimizer: Any, **kwargs: Any) -> None:
        optimizer.optimizer.step = lambda closure=None: None

    setup.callbacks.append(At("on_train_begin", disarm))


@silent_error("not_updated", source="PyTorch-115607: steps after a frozen one update nothing")
def updates_end_in_mid_run(setup: Setup) -> None:
    """From the eighth step on the optimizer's step does nothing."""

    def disarm(optimizer: Any, **kwargs: Any) -> None:
        optimizer.optimizer.step = lambda closure=None: None

    setup.callbacks.append(At("on_step_begin", disarm, first=8, last=8))


@silent_error("not_updated", source="Accelerate-2665: the optimizer holds the parameters from before wrapping")
def optimizer_of_another_copy(setup: Setup) -> None:
    """The optimizer was built from a copy of the model that is not trained."""
    parameters = copy.deepcopy(setup.model).parameters()
    setup.optimizer = torch.optim.AdamW(parameters, lr=setup.settings["learning_rate"])


@silent_error("not_updated", "weights_replaced")
def head_made_anew_in_mid_run(setup: Setup) -> None:
    """At the eighth step the head is replaced by a fresh one, which the optimizer does not hold."""

    def replace(**kwargs: Any) -> None:
        setup.model.classifier = nn.Linear(setup.model.classifier.in_features, setup.model.classifier.out_features)

    setup.callbacks.append(At("on_step_begin", replace, first=8, last=8))


@silent_error("optimizer_state_lost")
def optimizer_forgets(setup: Setup) -> None:
    """The optimizer's state is lost after every step."""

    def forget(optimizer: Any, **kwargs: Any) -> None:
        optimizer.optimizer.state.clear()

    setup.callbacks.append(At("on_step_end", forget))


@silent_error("loss_weight")
def accumulation_divided_twice(setup: Setup) -> None:
    """The loss is divided by the number of accumulated batches by the script and by Trainer."""
    setup.settings.update(gradient_accumulation_steps=4, per_device_train_batch_size=4)

    def prepared(trainer: Trainer) -> None:
        trainer.model_accepts_loss_kwargs = False  # so that Trainer divides by itself

    setup.prepared = prepared
    setup.loss = lambda trainer, model, batch: model(**batch).loss / 4


# --- the schedule ----------------------------------------------------------------------------------------------------


@silent_error("schedule_out_of_step")
def schedule_stepped_twice(setup: Setup) -> None:
    """The script steps the scheduler beside Trainer."""

    def step(lr_scheduler: Any, **kwargs: Any) -> None:
        lr_scheduler.step()

    setup.callbacks.append(At("on_optimizer_step", step))


@silent_error("implausible_setting", "not_updated")
def schedule_ends_early(setup: Setup) -> None:
    """The schedule was computed for a third of the steps."""

    def prepared(trainer: Trainer) -> None:
        create = trainer.create_scheduler

        def too_short(num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
            return create(num_training_steps // 3, optimizer)

        setattr(trainer, "create_scheduler", too_short)  # noqa: B010

    setup.prepared = prepared


# --- weights ---------------------------------------------------------------------------------------------------------


@silent_error("frozen_layer", source="PyTorch-Forum-84911: all but the norms frozen")
def all_but_the_norms_frozen(setup: Setup) -> None:
    """Nothing but LayerNorms can learn."""
    for name, parameter in setup.model.named_parameters():
        parameter.requires_grad_("LayerNorm" in name)


@silent_error(
    "fresh_weights", "not_as_in_checkpoint", source="Transformers-17877: weights are initialized again", model="minilm"
)
def initialized_again(setup: Setup) -> None:
    """The body is initialized anew after its pre-trained weights were loaded."""
    for module in setup.model.bert.encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)


@silent_error("tie_broken", model="gpt2")
def tie_broken(setup: Setup) -> None:
    """The output layer is a copy of the embedding with which it should be one."""
    setup.model.lm_head.weight = nn.Parameter(setup.model.lm_head.weight.detach().clone())


@silent_error("rounded_away")
def weights_in_half_precision(setup: Setup) -> None:
    """Weights are kept in bfloat16, and updates are smaller than their resolution."""
    setup.model.to(torch.bfloat16)
    setup.settings["learning_rate"] = 5e-6


@silent_error(
    source="Lightning-Thunder-725: autocast is not applied",
    unseen="nothing of the training is wrong, it is only slower and finer than asked for",
)
def autocast_not_applied(setup: Setup) -> None:
    """Autocast to bfloat16 is asked for, and the model runs in float32."""
    setup.settings["bf16"] = True
    forward = setup.model.forward

    def forward_in_float32(**kwargs: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return forward(**kwargs)

    setup.model.forward = forward_in_float32


# --- mode ------------------------------------------------------------------------------------------------------------


@silent_error("evaluation_mode", "dropout_inactive")
def trained_in_evaluation_mode(setup: Setup) -> None:
    """The model stays in evaluation mode."""
    train = setup.model.train
    setup.model.train = lambda mode=True: train(False)


@silent_error(
    "training_mode_in_evaluation", "noise_in_evaluation", source="Transformers-33844: dropout is active in evaluation"
)
def dropout_in_evaluation(setup: Setup) -> None:
    """Dropout does not ask for the mode."""
    setup.settings.update(eval_strategy="steps", eval_steps=8)
    for module in setup.model.modules():
        if isinstance(module, nn.Dropout):
            setattr(module, "forward", lambda inputs: nn.functional.dropout(inputs, 0.1, training=True))  # noqa: B010


# --- data ------------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    """Rows in their order, each worker reading all of them."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict]:
        assert get_worker_info() is not None
        return iter(self.rows)


@silent_error("repeated_batch", source="StackOverflow-67180955: workers return the same rows")
def workers_read_the_same_rows(setup: Setup) -> None:
    """Two workers read the whole stream each, so that every batch comes twice."""
    setup.settings["dataloader_num_workers"] = 2
    setup.rows = Stream(setup.rows)


@silent_error("repeated_batch")
def stale_batch(setup: Setup) -> None:
    """The loader hands out the first batch again and again."""
    first: list[dict[str, torch.Tensor]] = []

    def again(rows: list[dict]) -> dict[str, torch.Tensor]:
        first.append(collate(rows))
        return first[0]

    setup.collator = again


@silent_error(
    source="Transformers-34204: a batch of fifty becomes a batch of one",
    unseen="a batch of one row is a setting that people choose",
)
def batch_of_one_row(setup: Setup) -> None:
    """The collator keeps the first row of each batch."""
    setup.collator = lambda rows: collate(rows[:1])


# --- ranks -----------------------------------------------------------------------------------------------------------


def rank() -> int:
    """Number of this process."""
    return int(os.environ.get("RANK", 0))


@silent_error("replicas_differ", source="DeepSpeed-1801: gradients are clipped on one rank only", ranks=2)
def clipped_on_one_rank(setup: Setup) -> None:
    """One rank clips its gradients, the other does not."""
    setup.settings["max_grad_norm"] = 0.05 if rank() == 0 else 0.0
    setup.optimizer = torch.optim.SGD(setup.model.parameters(), lr=0.1)


@silent_error(
    "gradients_not_averaged", "replicas_differ", source="x-jxmnop: the model is used without its wrapper", ranks=2
)
def wrapper_bypassed(setup: Setup) -> None:
    """The loss is computed by the model inside the wrapper, whose gradients nobody averages."""
    setup.loss = lambda trainer, model, batch: setup.model(**batch).loss


@silent_error(
    "gradients_not_averaged", "replicas_differ", source="PyTorch-104336: moved to another device and back", ranks=2
)
def moved_after_wrapping(setup: Setup) -> None:
    """Parameters change their type and back after wrapping, and the wrapper's hooks are lost."""

    def move(trainer: Trainer, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        if trainer.state.global_step == 1:
            setup.model.double()
            setup.model.float()
        return model(**batch).loss

    setup.loss = move


@silent_error(
    "gradients_not_averaged",
    "replicas_differ",
    source="PyTorch-84803, PyTorch-96600, Baichuan2-86: data lost between ranks",
    ranks=2,
)
def data_lost_in_transfer(setup: Setup) -> None:
    """One of eight messages between the ranks arrives on one of them as zeros."""
    draws = torch.Generator().manual_seed(0)

    def averaged(state: None, bucket: Any) -> torch.futures.Future:
        values = bucket.buffer().div_(2)
        sent = torch.distributed.all_reduce(values, async_op=True).get_future()
        lost = rank() == 1 and float(torch.rand((), generator=draws)) < 1 / 8
        return sent.then(lambda result: result.value()[0] * (0.0 if lost else 1.0))

    averaged.__annotations__.clear()  # torch compares them with types, and they are strings in this module
    hooked: list[nn.Module] = []

    def loss(trainer: Trainer, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        if not hooked:
            model.register_comm_hook(None, averaged)
            hooked.append(model)
        return model(**batch).loss

    setup.loss = loss


@silent_error("ranks_share_rows", ranks=2)
def ranks_read_the_same_rows(setup: Setup) -> None:
    """The loader does not know of the other rank."""

    def loader(trainer: Trainer) -> DataLoader:
        draws = torch.Generator().manual_seed(0)
        return DataLoader(setup.rows, batch_size=8, shuffle=True, collate_fn=setup.collator, generator=draws)

    setup.loader = loader


@silent_error("replicas_differ", ranks=2)
def ranks_start_apart(setup: Setup) -> None:
    """After wrapping, one rank loads other weights for one layer."""

    def loss(trainer: Trainer, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        if trainer.state.global_step == 0 and rank() == 1:
            nn.init.normal_(setup.model.bert.encoder.layer[1].output.dense.weight, std=0.02)
        return model(**batch).loss

    setup.loss = loss


NOT_MET = {
    "MMPretrain-702": "layers that should be frozen are not: the intention is nowhere to be read",
    "PyTorch-51800": "an evaluation before the first forward pass: no training step is involved",
    "Transformers-23723": "generation of too many tokens: no training step is involved",
    "DeepSpeed-5794": "ranks wait for one another forever: no step ends that could be sampled",
}
"""Of TrainCheck's list, what no watcher of a Trainer run can meet."""

WHY_MISSED = {
    "all_but_the_norms_frozen": "people tune the norms alone on purpose, so it is no alarm by itself",
}
"""Why training health says nothing, where it should."""
