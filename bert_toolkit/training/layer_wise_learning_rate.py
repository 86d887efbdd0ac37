"""Learning rates that fall from the head down to the embeddings."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel, Trainer

from bert_toolkit.errors import InputError


def use_layer_wise_learning_rates(trainer: Trainer, decay: float) -> None:
    """Have a Trainer make its optimizer with the groups of `layer_wise_parameter_groups`.

    Args:
        trainer: Before training.
        decay: Factor from a layer to the one below it, in (0, 1].

    Raises:
        InputError: `decay` lies outside (0, 1].
    """
    args, model = trainer.args, cast(PreTrainedModel, trainer.model)
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    decayed = trainer.get_decay_parameter_names(model)
    settings["params"] = layer_wise_parameter_groups(model, args.learning_rate, decay, args.weight_decay, decayed)
    trainer.optimizer_cls_and_kwargs = (optimizer_class, settings)


def layer_wise_parameter_groups(
    model: PreTrainedModel, learning_rate: float, decay: float, weight_decay: float, decayed_names: list[str]
) -> list[dict[str, object]]:
    """Return optimizer groups in which each layer learns `decay` times as fast as the one above it.

    The head and pooler keep `learning_rate`; the last layer has `learning_rate * decay`, and the embeddings
    `learning_rate * decay ** (layers + 1)` (Howard & Ruder 2018, "discriminative fine-tuning"; Sun et al. 2019 found
    0.95 best for BERT).

    Args:
        model: A model with numbered layers (`config.num_hidden_layers`).
        learning_rate: Rate of the head.
        decay: Factor from a layer to the one below it, in (0, 1].
        weight_decay: Decoupled weight decay of the parameters in `decayed_names`; others have none.
        decayed_names: `Trainer.get_decay_parameter_names(model)`.

    Returns:
        Parameter groups for any PyTorch optimizer, each with `params`, `lr` and `weight_decay`.

    Raises:
        InputError: `decay` lies outside (0, 1].
    """
    if not 0 < decay <= 1:
        raise InputError(f"`layer_wise_decay` must lie in (0, 1], got {decay}; 1 gives all layers the same rate")
    layers = model.config.num_hidden_layers
    decayed = set(decayed_names)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_depth_from_head(name, layers), name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay**depth,
            "weight_decay": weight_decay if is_decayed else 0.0,
        }
        for (depth, is_decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _depth_from_head(name: str, layers: int) -> int:
    parts = name.split(".")
    if "embeddings" in parts:
        return layers + 1
    number = next((int(part) for part in parts if part.isdigit()), None)
    return 0 if number is None else layers - number
