"""What one training step's forward passes say about its health: loss, labels, predictions, inputs and mode."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bert_toolkit.health.batch_facts import batch_facts
from bert_toolkit.health.facts import FactValue, flattened, mean_over_ranks, merged, named
from bert_toolkit.health.output_facts import gradient_facts, logit_facts
from bert_toolkit.monitoring.guarded_hooks import GuardedHooks
from bert_toolkit.monitoring.parameter_roles import unwrap
from bert_toolkit.monitoring.tensor_statistics import HostCopy
from bert_toolkit.processes import is_distributed, world_size

# Labels are counted, and predictions compared with them, where a model tells at most this many classes apart.
MOST_CLASSES = 1000
_PREDICTIONS_READ = 256
_OWN_NUMBERS = 5  # has_loss, loss, top_share, identical, masked: what every pass has


@dataclass(frozen=True, eq=False)
class ForwardStatistics:
    """One optimizer step's forward passes, over all micro-batches and ranks.

    Args:
        loss: What the model returned, NaN where it returned none or a value that is not finite.
        loss_nonfinite: The loss was a NaN or an infinity.
        classes: Size of the last axis of the logits; 0 where unknown.
        top_share: Share of examples that were given the most frequent predicted class, NaN where not one class per
            example is predicted.
        label_counts: How often each class was the label, shape `(classes,)`; empty where labels are not one class
            per example.
        integer_labels: Labels were whole numbers, so the loss should be a cross-entropy.
        several_losses: The batch had further labels (next sentences beside words), so the loss is a weighted sum whose
            level says nothing about the classes alone.
        identical_inputs: Every example had the very same inputs, though there were several.
        masked_share: Share of examples whose attention mask hides every token.
        facts: What `batch_facts`, `logit_facts`, `gradient_facts` and further probes found, by name.
    """

    loss: float = math.nan
    loss_nonfinite: bool = False
    classes: int = 0
    top_share: float = math.nan
    label_counts: np.ndarray = field(default_factory=lambda: np.zeros(0))
    integer_labels: bool = False
    several_losses: bool = False
    identical_inputs: bool = False
    masked_share: float = 0.0
    facts: Mapping[str, FactValue] = field(default_factory=dict)


class ForwardWatch:
    """A reader of loss, logits, labels and inputs of a model, through a hook that is there only while it watches.

    The model is called as in transformers: inputs and `labels` by these names, the loss and `logits` in the output.
    What is missing is left unknown. Passes without gradients (evaluation, generation, a reference model) are not
    looked at. Nothing waits for the device before `PendingForward.finish`.

    Args:
        model: The module that is trained.
        special_tokens: Name (`pad`, `unk`, `eos`, …) to id, as far as they are known.

    Attributes:
        first_inputs: Arguments of the first pass since `start` by name, held until `stop`.
    """

    def __init__(self, model: nn.Module, special_tokens: Mapping[str, int] | None = None) -> None:
        self.guard = GuardedHooks()
        self._model = unwrap(model)
        self._special_tokens = special_tokens or {}
        self._handle: Any = None
        self._gradient_handles: list[Any] = []
        self._passes: list[tuple[Tensor, Tensor | None]] = []
        self._facts: list[dict[str, Tensor | float]] = []
        self._classes = 0
        self._integer_labels = False
        self._several_losses = False
        self._loss_is_partial = False
        self.first_inputs: dict[str, Any] | None = None

    def start(self) -> None:
        """Watch from now on; call it before the forward pass of a step."""
        self.forget()
        self._handle = self._model.register_forward_hook(self.guard(self._on_forward), with_kwargs=True)

    def stop(self, further: Mapping[str, Tensor | float] | None = None) -> PendingForward:
        """Stop watching and hand out what was seen.

        Args:
            further: Facts of other probes of the same step, to travel in the same transfer.

        Returns:
            What was seen; `finish` waits for its numbers.
        """
        passes, facts = self._passes, self._facts
        self.forget()
        known = {
            "classes": self._classes,
            "integer_labels": self._integer_labels,
            "several_losses": self._several_losses,
        }
        if further:
            facts.append(dict(further))
        return PendingForward(passes, known, self._loss_is_partial, facts)

    def forget(self) -> None:
        """Stop watching, and forget what was seen."""
        for handle in (self._handle, *self._gradient_handles):
            if handle is not None:
                handle.remove()
        self._handle, self._gradient_handles, self.first_inputs = None, [], None
        self._passes, self._facts = [], []

    @property
    def batch_fingerprint(self) -> Tensor | float | None:
        """The `fingerprint` of the first batch that this rank has seen since `start`, None where unknown."""
        return self._facts[0].get("fingerprint") if self._facts else None

    def _on_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled():
            with torch.no_grad():
                self._look(module, by_name(module, args, kwargs), output)

    def _look(self, module: nn.Module, arguments: dict[str, Any], output: Any) -> None:
        if self.first_inputs is None:
            self.first_inputs = arguments
        loss, logits = _loss_and_logits(output)
        labels = arguments.get("labels")
        inputs = [value for name, value in arguments.items() if "label" not in name]
        further = [value for name, value in arguments.items() if "label" in name and isinstance(value, Tensor)]
        self._several_losses = len(further) > 1
        batches = [value for value in inputs if isinstance(value, Tensor) and value.ndim and len(value) > 1]
        device = next(t.device for t in (loss, logits, labels, *batches, torch.zeros(())) if isinstance(t, Tensor))
        unknown = torch.full((), math.nan, device=device)

        top_share, counts = unknown, None
        if logits is not None:
            self._classes = logits.shape[-1]
        if isinstance(labels, Tensor):
            self._integer_labels = not labels.is_floating_point()
            if (
                logits is not None
                and logits.ndim == 2
                and labels.shape == logits.shape[:1]
                and self._integer_labels
                and 2 <= self._classes <= MOST_CLASSES
            ):
                predicted = _counts(logits[:_PREDICTIONS_READ].argmax(-1), self._classes)
                top_share = predicted.max() / predicted.sum()
                counts = _counts(labels, self._classes)
        none = torch.zeros((), device=device)
        contents = [
            value
            for name, value in arguments.items()
            if isinstance(value, Tensor)
            and value.ndim
            and len(value) > 2  # two may be one example, passed twice on purpose
            and not any(part in name for part in ("label", "mask", "position", "type"))
        ]
        identical = torch.stack([(b == b[:1]).all() for b in contents]).all() if contents else none
        mask = arguments.get("attention_mask")
        masked = none
        if isinstance(mask, Tensor) and mask.ndim == 2:
            masked = (mask.sum(-1) == 0).float().mean()
        # With `num_items_in_batch` each micro-batch returns its part of the mean, otherwise a mean of its own.
        self._loss_is_partial = arguments.get("num_items_in_batch") is not None
        numbers = [unknown if loss is None else loss.detach(), top_share, identical, masked]
        has_loss = torch.full((), float(loss is not None), device=device)
        self._passes.append((torch.stack([has_loss, *(n.float().to(device) for n in numbers)]), counts))
        self._facts.append(self._facts_of(module, dict(arguments), logits))

    def _facts_of(self, module: nn.Module, inputs: dict[str, Any], logits: Tensor | None) -> dict[str, Tensor | float]:
        facts: dict[str, Tensor | float] = mode_facts(module)
        facts |= batch_facts(inputs, self._special_tokens)
        if logits is not None and logits.is_floating_point() and logits.numel():
            facts |= logit_facts(logits)
            if getattr(getattr(unwrap(module), "config", None), "is_encoder_decoder", False):
                # Logits stand at the decoder's tokens, which the encoder's say nothing about.
                inputs["input_ids"] = inputs.get("decoder_input_ids")
                inputs["attention_mask"] = inputs.get("decoder_attention_mask")
            if logits.requires_grad:
                self._gradient_handles.append(logits.register_hook(self.guard(_Arrival(facts, logits, inputs))))
        return facts


def by_name(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward pass by the names that `forward` has for them.

    Args:
        module: The module that was called.
        args: Its arguments without a keyword; those for which `forward` has no name are called `argument 1` and so on.
        kwargs: Those with one.
    """
    if not args:
        return dict(kwargs)
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += [f"argument {place}" for place in range(len(names) + 1, len(args) + 1)]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def mode_facts(model: nn.Module) -> dict[str, Tensor | float]:
    """Return the training mode of the model and of those of its modules whose mode matters, in parts that train.

    Args:
        model: The module that is trained.

    Returns:
        `training_mode` (0 or 1); `modes_that_matter`, the number of dropout modules with a rate above zero and of
        BatchNorms in parts that train; `inactive_dropout`, the share of the former that are in evaluation mode.
    """
    dropouts, norms = [], 0
    for module in model.modules():
        own = [child for child in module.children() if isinstance(child, nn.modules.dropout._DropoutNd)]
        if own and any(p.requires_grad for p in module.parameters()):
            dropouts += [child for child in own if child.p > 0]
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(p.requires_grad for p in module.parameters()):
            norms += 1
    facts: dict[str, Tensor | float] = {"training_mode": float(model.training)}
    facts["modes_that_matter"] = float(len(dropouts) + norms)
    if dropouts:
        facts["inactive_dropout"] = sum(not dropout.training for dropout in dropouts) / len(dropouts)
    return facts


class _Arrival:
    """Completes the facts of a forward pass when the gradient arrives at its logits."""

    def __init__(self, facts: dict[str, Tensor | float], logits: Tensor, inputs: Mapping[str, Any]) -> None:
        self._facts = facts
        self._logits = logits.detach()  # shares memory; what the loss changed in place would show
        self._inputs = inputs

    @torch.no_grad()
    def __call__(self, gradient: Tensor) -> None:
        self._facts |= gradient_facts(gradient, self._logits, self._inputs)


class PendingForward:
    """Statistics of forward passes whose numbers may still be on their way from the device.

    Args:
        passes: Five numbers of each pass (there is a loss, the loss, `top_share`, identical inputs, `masked_share`),
            and how often each class was the label, None where unknown.
        known: Fields of `ForwardStatistics` that needed no look at values.
        loss_is_partial: Losses of the passes add up to that of the step; otherwise their mean is taken.
        facts: Facts of each pass and of other probes, by name.
    """

    def __init__(
        self,
        passes: list[tuple[Tensor, Tensor | None]],
        known: dict[str, Any],
        loss_is_partial: bool,
        facts: list[dict[str, Tensor | float]],
    ) -> None:
        self._known = known  # what needed no look at values
        self._numbers: HostCopy | None = None
        device = passes[0][0].device if passes else torch.device("cpu")
        self._facts = merged(facts, device)
        self._counted = 0
        numbers = torch.zeros(0, dtype=torch.float64, device=device)
        if passes:
            rows = torch.stack([row for row, _ in passes])
            numbers = rows.mean(0)
            if loss_is_partial:
                numbers[1] = rows[:, 1].sum()
            counts = [c for _, c in passes if c is not None]
            if counts:
                numbers = torch.cat([numbers, torch.stack(counts).sum(0)])
            self._counted = len(numbers) - _OWN_NUMBERS
        elif not self._facts:
            return
        found = flattened(self._facts, device)
        if is_distributed():
            # Every rank must judge the same numbers: one message holds the counts, one the facts.
            if passes:
                torch.distributed.all_reduce(numbers)
                numbers[:_OWN_NUMBERS] /= world_size()
            found = mean_over_ranks(found)
        self._has_passes = bool(passes)
        self._numbers = HostCopy(torch.cat([numbers.to(found.dtype), found]))

    def finish(self) -> ForwardStatistics:
        """Wait for the numbers.

        Returns:
            The statistics of the step; unknown where nothing was seen.
        """
        if self._numbers is None:
            return ForwardStatistics()
        numbers = self._numbers.read()
        own = _OWN_NUMBERS + self._counted if self._has_passes else 0
        facts = named(self._facts, numbers[own:])
        if not self._has_passes:
            return ForwardStatistics(facts=facts)
        has_loss, loss, top_share, identical, masked = (float(value) for value in numbers[:_OWN_NUMBERS])
        return ForwardStatistics(
            loss=loss if math.isfinite(loss) else math.nan,
            loss_nonfinite=has_loss == 1.0 and not math.isfinite(loss),
            top_share=top_share,
            label_counts=numbers[_OWN_NUMBERS:own],
            identical_inputs=identical == 1.0,
            masked_share=masked,
            facts=facts,
            **self._known,
        )


def _counts(labels: Tensor, classes: int) -> Tensor:
    """How often each class occurs, float32 of shape `(classes,)`; bincount and masks would wait for the device."""
    classed = torch.where((labels >= 0) & (labels < classes), labels, classes).long()
    ones = torch.ones(classed.shape, device=labels.device)
    return torch.zeros(classes + 1, device=labels.device).scatter_add_(0, classed, ones)[:classes]


def _loss_and_logits(output: Any) -> tuple[Tensor | None, Tensor | None]:
    """The scalar loss and the logits of a transformers output, a dict or a tuple that begins with the loss."""
    if isinstance(output, Mapping):
        loss, logits = output.get("loss"), output.get("logits")
        if logits is None:  # models for pre-training have two heads; the words' head makes most of the loss
            logits = output.get("prediction_logits")
    else:
        values = output if isinstance(output, tuple) else (output,)
        loss = next((v for v in values[:1] if isinstance(v, Tensor) and v.numel() == 1), None)
        logits = next((v for v in values if isinstance(v, Tensor) and v.ndim >= 2), None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        loss = None
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        logits = None
    return None if loss is None else loss.reshape(()), logits
