"""The model of a pre-training run: from scratch, or continued from a checkpoint."""

from __future__ import annotations

import difflib
import json
import math
from pathlib import Path
from typing import Any

from transformers import BertConfig, TrainingArguments

from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.model import ToolkitBertConfig, ToolkitBertForMaskedLM, ToolkitBertForPreTraining
from bert_toolkit.training.loading import load_and_tell, model_type_of
from bert_toolkit.training.pretrained import choose_model, offline_weights

SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768)}
"""Layers and width of google-research/bert's miniatures and of BERT-base."""


def predicts_next_sentences(objective: str, next_sentence_weight: float, arguments: TrainingArguments) -> bool:
    """Return whether a run trains next-sentence prediction beside masked words.

    Args:
        objective: `mlm+nsp` or `mlm`.
        next_sentence_weight: Factor of the next-sentence loss.
        arguments: Tell the pairs of an optimizer step, which the weight may not exceed.

    Returns:
        True for `mlm+nsp`.

    Raises:
        InputError: Another objective, a weight out of range, or flags of Trainer that do not go with pre-training.
    """
    if arguments.label_smoothing_factor:
        raise InputError(
            f"`label_smoothing_factor` must be 0 for pre-training, got {arguments.label_smoothing_factor}: the model "
            "computes the losses of masked words and next sentences itself"
        )
    if not arguments.eval_do_concat_batches:
        raise InputError(
            "`eval_do_concat_batches` must be true for pre-training, got false: scores take all pairs at once"
        )
    if objective not in ("mlm+nsp", "mlm"):
        raise InputError(f"`objective` must be one of mlm+nsp, mlm, got {objective}")
    pairs = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if not 0 < next_sentence_weight <= pairs:
        raise InputError(
            f"`next_sentence_weight` must lie in (0, {pairs}], up to the pairs of a step, got {next_sentence_weight}"
        )
    return objective == "mlm+nsp"


def model_to_continue(model_name_or_path: str | None) -> str | None:
    """Return where the weights of a model are that is to be trained further.

    Args:
        model_name_or_path: A folder, a hub name, `offline` for the weights of that extra, or None.

    Returns:
        A folder or hub name, or None.

    Raises:
        InputError: No such weights, or a model that is no BERT.
    """
    if model_name_or_path is None:
        return None
    offline = model_name_or_path == "offline"
    name = str(offline_weights()) if offline else choose_model(model_name_or_path).name_or_path
    kind = model_type_of(name)
    if kind not in ("bert", "toolkit_bert"):
        raise InputError(
            f"`model_name_or_path` must be a BERT to be trained further, {model_name_or_path} is of type {kind}"
        )
    return name


def load_or_make_model(
    name_or_path: str | None,
    tokenizer: Any,
    max_length: int,
    next_sentences: bool = True,
    size: str = "tiny",
    config_file: str | None = None,
    layer_norm_placement: str = "post",
    dropout: float | None = None,
) -> Any:
    """Load or make a model for masked words, and for next sentences if they are to be predicted.

    Args:
        name_or_path: Of `model_to_continue`; None starts from scratch.
        tokenizer: Its entries must have a place in the model.
        max_length: Tokens per pair.
        next_sentences: Whether the model has a next-sentence head.
        size: Of a model from scratch, one of `SIZES`.
        config_file: Settings of `ToolkitBertConfig` for a model from scratch, in JSON.
        layer_norm_placement: Of a model from scratch.
        dropout: Of hidden states and attention.

    Returns:
        The model.

    Raises:
        InputError: Weights or settings that cannot be used, or a model that is too small for tokenizer or length.
    """
    model_class = ToolkitBertForPreTraining if next_sentences else ToolkitBertForMaskedLM
    dropouts: dict[str, Any] = {}
    if dropout is not None:
        if not 0 <= dropout < 1:
            raise InputError(f"`dropout` must be at least 0 and less than 1, got {dropout}")
        dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if name_or_path is not None:
        model = load_and_tell(model_class, name_or_path, use_safetensors=True, **dropouts)
    else:
        if size not in SIZES:
            raise InputError(f"`size` must be one of {', '.join(SIZES)}, got {size}")
        layers, width = SIZES[size]
        settings = {
            "vocab_size": len(tokenizer),
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": width // 64,
            "intermediate_size": 4 * width,
            "max_position_embeddings": max(512, max_length),
            "layer_norm_placement": layer_norm_placement,
            "pad_token_id": tokenizer.pad_token_id,
        }
        if config_file is not None:
            settings |= _read_settings(config_file)
        try:
            model = model_class(ToolkitBertConfig(**{**settings, **dropouts}))
        except Exception as error:  # whatever PyTorch's modules raise of sizes and rates
            raise InputError(f"no model can be made of these settings: {reason_of(error)}") from error
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer):,} entries, the model {model.config.vocab_size:,}: take the model's "
            "own tokenizer, or a tokenizer with a smaller vocabulary"
        )
    if model.config.type_vocab_size < 2:
        raise InputError(
            f"the model must tell two segments apart (`type_vocab_size` 2), got {model.config.type_vocab_size}: "
            "choose another"
        )
    if max_length > model.config.max_position_embeddings:
        raise InputError(
            f"`max_length` must be at most {model.config.max_position_embeddings}, the positions of the model, "
            f"got {max_length}"
        )
    return model


def _read_settings(config_file: str) -> dict[str, Any]:
    try:
        settings = dict(json.loads(Path(config_file).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"`config_file` must be a JSON file of ToolkitBertConfig's settings: {config_file}: {reason_of(error)}"
        ) from None
    usual, of_bert = ToolkitBertConfig(), BertConfig()
    for name, value in settings.items():
        # the file may be the configuration of a checkpoint, in which more stands
        if not hasattr(usual, name) and not hasattr(of_bert, name):
            nearest = difflib.get_close_matches(name, vars(usual), n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise InputError(f"`config_file` {config_file} has the unknown setting {name}{hint}")
        default = getattr(usual, name, None)
        if type(default) is int and name != "pad_token_id" and (type(value) is not int or value < 1):
            raise InputError(f"`config_file` {config_file}: {name} must be a whole number from 1 on, got {value!r}")
        if type(default) is float and (type(value) not in (int, float) or not 0 <= value < math.inf):
            raise InputError(f"`config_file` {config_file}: {name} must be a number from 0 on, got {value!r}")
        if type(default) is bool and type(value) is not bool:
            raise InputError(f"`config_file` {config_file}: {name} must be true or false, got {value!r}")
    return settings
