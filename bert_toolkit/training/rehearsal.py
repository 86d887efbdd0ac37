"""Whether a model can be trained to classify: found out before training, with two texts."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, TrainingArguments

from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.model.modeling_toolkit_bert import ToolkitBertPreTrainedModel
from bert_toolkit.training.tokenized_rows import tokenize_texts

SHORTEST = 5
"""Tokens of the shortest `max_length` that leaves room for a word of each of two texts."""


def longest_input(tokenizer: Any, model: PreTrainedModel) -> int | None:
    """How many tokens a model takes.

    Args:
        tokenizer: Its `model_max_length` counts too.
        model: Any model of texts.

    Returns:
        Tokens per text, special tokens included, or None where there is no limit.
    """
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        # models that number positions from behind the padding token's have fewer of them than their table has rows
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = [limit for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(known, default=None)


def check_max_length(max_length: int, tokenizer: Any, model: PreTrainedModel) -> None:
    """Refuses texts longer than a model's positions.

    Args:
        max_length: Tokens per text at most, special tokens included.
        tokenizer: Of the model.
        model: A classifier.

    Raises:
        InputError: `max_length` is too large, or too small for any text.
    """
    longest = longest_input(tokenizer, model)
    if max_length < SHORTEST or longest is not None and max_length > longest:
        range_ = f"be at least {SHORTEST}" if longest is None else f"lie in {SHORTEST} to {longest}"
        raise InputError(f"`max_length` must {range_} for {model.config.name_or_path}, got {max_length}")


def rehearse(
    model: PreTrainedModel, tokenizer: Any, corpus: CorpusSplits, max_length: int, arguments: TrainingArguments
) -> None:
    """Checks `max_length`, and runs a text of that many tokens and a short one through a model of transformers.

    Costs one forward pass without gradients. Models that several devices share are not tried.

    Args:
        model: A classifier.
        tokenizer: Of the model.
        corpus: Texts and labels.
        max_length: Tokens per text at most.
        arguments: Tell the device.

    Raises:
        InputError: The model does not take these texts, or gives no loss and no logits for these labels.
    """
    check_max_length(max_length, tokenizer, model)
    shared = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    if (
        isinstance(model, ToolkitBertPreTrainedModel)
        or arguments.fsdp
        or arguments.deepspeed
        or any(os.environ.get(name) == "true" for name in shared)
    ):
        return
    columns = [name for name in (corpus.text_column, corpus.second_text_column) if name is not None]
    row = corpus.train[0]
    long = {column: [row[column], f"{row[column]} " * max_length] for column in columns}
    encoded = tokenize_texts(long, tokenizer, columns, max_length)
    rows = [{name: encoded[name][i] for name in tokenizer.model_input_names if name in encoded} for i in (0, 1)]
    batch = DataCollatorWithPadding(tokenizer)([{**each, "label": row["label"]} for each in rows])
    was_training, name = model.training, model.config.name_or_path
    torch.nn.Module.to(model, arguments.device).eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            output = model(**{key: tensor.to(arguments.device) for key, tensor in batch.items()})
            loss, logits = output["loss"], output["logits"]
    except Exception as error:  # whatever a model of somebody's raises
        raise InputError(
            f"{name} ({type(model).__name__}) cannot classify texts of {max_length} tokens: {reason_of(error)}: "
            "choose an encoder or another `max_length`"
        ) from error
    finally:
        model.train(was_training)
    if loss.numel() != 1 or tuple(logits.shape) != (2, len(corpus.label_names)):
        raise InputError(
            f"{name} ({type(model).__name__}) gives a loss of shape {tuple(loss.shape)} and logits of shape "
            f"{tuple(logits.shape)} for two texts and {len(corpus.label_names)} classes: choose an encoder"
        )
