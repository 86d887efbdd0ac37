"""How a run was set up, as far as model, optimizer and schedule tell it: plain values that rules can judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bert_toolkit.health.activations import changed_activations
from bert_toolkit.health.behavior_probe import attends_both_ways
from bert_toolkit.monitoring.parameter_roles import named_unique_parameters, unwrap

_PLANNED_POINTS = 41  # of the learning rate, at most: every 2.5 % of the run
_SPECIAL = ("pad", "unk", "cls", "sep", "bos", "eos", "mask")


@dataclass(frozen=True)
class GroupSettings:
    """One parameter group of the optimizer.

    Args:
        values: Its settings that are numbers (`lr`, `weight_decay`, `eps`, `momentum`, …), `betas` taken apart into
            `beta1`, `beta2` (and `beta3`), booleans as 0 and 1; `lr` is the rate before any schedule.
        parameters: Number of elements that the group holds.
    """

    values: Mapping[str, float]
    parameters: int


@dataclass(frozen=True)
class RunSettings:
    """What was chosen before the first step.

    Args:
        optimizer: Class name of the innermost optimizer; empty where unknown.
        groups: Its parameter groups.
        unheld: Names of trainable parameters that no group holds.
        planned_rates: Learning rate as a fraction of its base at equal distances from the first to the last step, no
            step twice; empty where the schedule cannot tell.
        label_smoothing: Of the loss; 0 where unknown.
        max_grad_norm: Limit of clipping; None where there is none or it is unknown.
        accumulation: Batches per optimizer step.
        best_metric: Name of the score by which the best checkpoint is chosen; empty where none is.
        greater_is_better: Whether larger ones are taken for better.
        batches_per_epoch: None where unknown.
        dropouts: Module or setting of the model's config -> probability.
        default_dropouts: Those probabilities that the class of the model's config has by default, so that somebody has
            published them.
        norm_eps: Normalization module -> epsilon.
        activations: Activation module that is not as configured -> what is there; see `changed_activations`.
        adapter_scaling: Adapter module -> factor of its output.
        config: Settings of the model's config that are numbers, strings or booleans.
        special_tokens: `pad`, `unk`, `cls`, `sep`, `bos`, `eos`, `mask` -> id, as far as a tokenizer has them;
            `pad` alone where there is no tokenizer and the model knows one.
        tokenizer_size: Tokens that a tokenizer has; 0 where there is none.
        name_or_path: Where the config came from; empty for one made in the script.
        model_class: Class name of the model.
        tied: Whether input and output embeddings are one parameter where the config says so; None where it does not,
            or where there is no output layer.
        both_ways: The model attends to later tokens as well; see `attends_both_ways`.
    """

    optimizer: str = ""
    groups: tuple[GroupSettings, ...] = ()
    unheld: tuple[str, ...] = ()
    planned_rates: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    max_grad_norm: float | None = None
    accumulation: int = 1
    best_metric: str = ""
    greater_is_better: bool = False
    batches_per_epoch: int | None = None
    dropouts: Mapping[str, float] = field(default_factory=dict)
    default_dropouts: tuple[float, ...] = ()
    norm_eps: Mapping[str, float] = field(default_factory=dict)
    activations: Mapping[str, str] = field(default_factory=dict)
    adapter_scaling: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, float | str | bool] = field(default_factory=dict)
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    tokenizer_size: int = 0
    name_or_path: str = ""
    model_class: str = ""
    tied: bool | None = None
    both_ways: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: Any = None,
        schedule: Any = None,
        tokenizer: Any = None,
        last_step: int = 0,
        **known: Any,
    ) -> RunSettings:
        """Read what objects of a run tell.

        Args:
            model: The module that is trained.
            optimizer: A torch optimizer or Accelerate's wrapper of one.
            schedule: A scheduler of `torch.optim.lr_scheduler`, or a wrapper of one.
            tokenizer: A tokenizer of transformers.
            last_step: Number of optimizer steps of the run; 0 where unknown.
            known: Further fields, as they are.

        Returns:
            The settings; what cannot be found out has its default.
        """
        inner = unwrap(model)
        base = innermost(optimizer)
        config = getattr(inner, "config", None)
        return cls(
            optimizer=type(base).__name__ if base is not None else "",
            groups=_groups(base),
            unheld=_unheld(inner, base),
            planned_rates=_planned_rates(schedule, last_step),
            dropouts=_dropouts(inner, config),
            default_dropouts=_default_dropouts(config),
            norm_eps=_norm_eps(inner),
            activations=changed_activations(inner),
            adapter_scaling=_adapter_scaling(inner),
            config=_plain_config(config),
            special_tokens=special_tokens_of(tokenizer) or _padding_of(inner, config),
            tokenizer_size=_size_of(tokenizer),
            name_or_path=str(getattr(config, "_name_or_path", "") or ""),
            model_class=type(inner).__name__,
            tied=_tied(inner, config),
            both_ways=attends_both_ways(inner),
            **known,
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> RunSettings:
        """Undo `as_json`; unknown fields are left out.

        Args:
            fields: What `as_json` returned.

        Returns:
            The settings.
        """
        known = {f.name: fields[f.name] for f in dataclasses.fields(cls) if f.name in fields}
        for name in ("unheld", "planned_rates", "default_dropouts"):
            known[name] = tuple(known.get(name, ()))
        known["groups"] = tuple(GroupSettings(**group) for group in known.get("groups", ()))
        return cls(**known)


def _tied(model: Any, config: Any) -> bool | None:
    if not getattr(config, "tie_word_embeddings", False) or not hasattr(model, "get_output_embeddings"):
        return None
    try:
        output, words = model.get_output_embeddings(), model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    weights = getattr(output, "weight", None), getattr(words, "weight", None)
    # Adapters, quantized layers and shards hold weights of another kind.
    if any(type(module) not in (nn.Linear, nn.Embedding) for module in (output, words)):
        return None
    if weights[0] is None or weights[1] is None or weights[0].shape != weights[1].shape:
        return None
    return weights[0] is weights[1]


def innermost(wrapper: Any) -> Any:
    """Return the torch optimizer or scheduler inside wrappers such as Accelerate's.

    Args:
        wrapper: An optimizer or a scheduler, in wrappers or not; None where there is none.
    """
    for attribute in ("optimizer", "scheduler"):
        seen: set[int] = set()
        while (
            hasattr(wrapper, attribute)
            and id(wrapper) not in seen
            and type(wrapper).__module__.startswith(("accelerate.", "deepspeed."))
        ):
            seen.add(id(wrapper))
            wrapper = getattr(wrapper, attribute)
    return wrapper


def special_tokens_of(tokenizer: Any) -> dict[str, int]:
    """Return the ids of the special tokens that a tokenizer (or a processor that has one) names.

    Args:
        tokenizer: A tokenizer or a processor of transformers; None where there is none.

    Returns:
        `pad`, `unk`, `cls` and so on -> id, for those that there are.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL}
    return {name: number for name, number in ids.items() if isinstance(number, int)}


def _size_of(tokenizer: Any) -> int:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    return len(tokenizer) if hasattr(tokenizer, "__len__") else 0


def _padding_of(model: nn.Module, config: Any) -> dict[str, int]:
    """The padding token where the model itself gives it another treatment, for data of which no tokenizer is known.

    The decoder of an encoder-decoder fills in `config.pad_token_id` for labels of -100, and a table of embeddings
    never trains the row of its `padding_idx`.
    """
    padding = getattr(config, "pad_token_id", None)
    if not isinstance(padding, int) or isinstance(padding, bool):
        return {}
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding))
    special = getattr(config, "is_encoder_decoder", False) or any(table.padding_idx == padding for table in tables)
    return {"pad": padding} if special else {}


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, value in group.items():
        if name == "params":
            continue
        if isinstance(value, (tuple, list)) and name == "betas":
            values |= {
                f"beta{i}": float(part) for i, part in enumerate(value, start=1) if isinstance(part, (int, float))
            }
        elif isinstance(value, (bool, int, float)):
            values[name] = float(value)
    if "initial_lr" in values:
        values["lr"] = values["initial_lr"]
    return values


def _groups(optimizer: Any) -> tuple[GroupSettings, ...]:
    return tuple(
        GroupSettings(_numbers(group), sum(p.numel() for p in group["params"]))
        for group in getattr(optimizer, "param_groups", ())
    )


def _unheld(model: nn.Module, optimizer: Any) -> tuple[str, ...]:
    if optimizer is None:
        return ()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = [(name, p) for name, p in named_unique_parameters(model) if p.requires_grad]
    unheld = tuple(name for name, p in trainable if id(p) not in held)
    # Where the optimizer holds none of them, it keeps copies: sharded or in another precision.
    return () if len(unheld) == len(trainable) else unheld


def _planned_rates(schedule: Any, last_step: int) -> tuple[float, ...]:
    """Of schedules that are functions of the step; asking them changes nothing."""
    factors = getattr(innermost(schedule), "lr_lambdas", None)
    if not factors or last_step < 2:
        return ()
    points = min(_PLANNED_POINTS, last_step)  # a step of a short run counts once
    steps = [round(i * (last_step - 1) / (points - 1)) for i in range(points)]
    try:
        return tuple(max(float(factor(step)) for factor in factors) for step in steps)
    except Exception:  # somebody's own function may count its calls or want another argument
        return ()


def _dropouts(model: nn.Module, config: Any) -> dict[str, float]:
    found = {
        name: float(module.p)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and isinstance(module.p, (int, float))
    }
    for name, value in _plain_config(config).items():
        if isinstance(value, float) and ("drop" in name) and 0.0 < value <= 1.0:
            found[f"config.{name}"] = value
    return found


def _default_dropouts(config: Any) -> tuple[float, ...]:
    """Dropouts of a transformers config that are as its class has them."""
    if not hasattr(config, "to_diff_dict"):
        return ()
    try:
        usual = _plain_config(type(config)())
    except Exception:  # a config class that cannot be made without arguments has no defaults
        return ()
    here = _plain_config(config)
    same = {value for name, value in usual.items() if "drop" in name and value == here.get(name)}
    return tuple(sorted(value for value in same if isinstance(value, float)))


def _norm_eps(model: nn.Module) -> dict[str, float]:
    found = {}
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower() and not isinstance(module, nn.modules.batchnorm._BatchNorm):
            eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
            if isinstance(eps, float):
                found[name] = eps
    return found


def _adapter_scaling(model: nn.Module) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        if "base_layer" in module._modules and isinstance(scaling, dict):
            found |= {f"{name}.{adapter}": float(v) for adapter, v in scaling.items() if isinstance(v, (int, float))}
    return found


def _plain_config(config: Any) -> dict[str, float | str | bool]:
    values = config.to_dict() if hasattr(config, "to_dict") else vars(config) if hasattr(config, "__dict__") else {}
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}
