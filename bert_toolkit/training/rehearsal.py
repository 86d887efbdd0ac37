"""Whether a model can be trained to classify: found out before training, with two texts."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyarrow import compute
from transformers import DataCollatorWithPadding, PreTrainedModel, TrainingArguments

from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.model.modeling_toolkit_bert import ToolkitBertPreTrainedModel
from bert_toolkit.training.tokenized_rows import tokenize_texts

if TYPE_CHECKING:
    from datasets import Dataset

SHORTEST = 5
"""Tokens of the shortest `max_length` that leaves room for a word of each of two texts."""


_TABLES = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
"""Which setting of a configuration says how many entries the table for a column has."""


def longest_input(tokenizer: Any, model: PreTrainedModel) -> int | None:
    """Return how many tokens a model takes.

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
            limits.append(len(module.weight) - module.padding_idx - 1)
    known = [limit for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(known, default=None)


def check_max_length(max_length: int, tokenizer: Any, model: PreTrainedModel) -> None:
    """Refuse texts longer than a model's positions.

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


def check_token_ids(model: PreTrainedModel, *splits: Dataset) -> None:
    """Refuse tokens for which a model has no embedding, as where a tokenizer has grown and its model has not.

    Args:
        model: Any model of texts.
        splits: Tokenized rows.

    Raises:
        InputError: A number of a token or of its type is beyond the model's table.
    """
    for rows in splits:
        for column in set(_TABLES) & set(rows.column_names):
            highest = compute.max(compute.list_flatten(rows.data.column(column))).as_py()
            _check_highest(model, column, highest or 0)


def _check_highest(model: PreTrainedModel, column: str, highest: int) -> None:
    size = getattr(model.config, _TABLES[column], None)
    if size is not None and highest >= size:
        raise InputError(
            f"the tokenizer gives `{column}` up to {highest}, {model.config.name_or_path} has a `{_TABLES[column]}` "
            f"of {size}: take the model's own tokenizer, or resize the model's embeddings and save it"
        )


def rehearse(
    model: PreTrainedModel, tokenizer: Any, corpus: CorpusSplits, max_length: int, arguments: TrainingArguments
) -> None:
    """Check `max_length`, and run a text of that many tokens and a short one through a model of transformers.

    Costs four forward passes without gradients: with the short text alone and with both, in evaluation and in
    training. Models that several devices share are not tried.

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
    if not _can_be_tried(model, arguments):
        return
    columns = [name for name in (corpus.text_column, corpus.second_text_column) if name is not None]
    row = corpus.train[0]
    long = {column: [row[column], f"{row[column]} " * max_length] for column in columns}
    encoded = tokenize_texts(long, tokenizer, columns, max_length)
    rows = [{name: encoded[name][i] for name in tokenizer.model_input_names if name in encoded} for i in (0, 1)]
    short, full = ({**each, "label": row["label"]} for each in rows)
    batches = [DataCollatorWithPadding(tokenizer)(each) for each in ([short, short], [short, full])]
    output = _tried(model, batches, f"classify texts of {max_length} tokens", arguments)
    loss, logits = output["loss"], output["logits"]
    if loss.numel() != 1 or tuple(logits.shape) != (2, len(corpus.label_names)):
        raise InputError(
            f"{model.config.name_or_path} ({type(model).__name__}) gives a loss of shape {tuple(loss.shape)} and "
            f"logits of shape {tuple(logits.shape)} for two texts and {len(corpus.label_names)} classes: choose an "
            "encoder"
        )


def rehearse_rows(model: PreTrainedModel, rows: Dataset, collate: Any, arguments: TrainingArguments) -> None:
    """Run the longest and the shortest of tokenized rows through a model of transformers, as `rehearse` does.

    Args:
        model: With a head that gives a loss.
        rows: To train on, with the column `length`.
        collate: Makes a batch of rows.
        arguments: Tell the device.

    Raises:
        InputError: The model has no embedding for a token, does not take these rows, or gives no loss.
    """
    check_token_ids(model, rows)
    if not _can_be_tried(model, arguments):
        return
    lengths = rows["length"][:]
    accepted = inspect.signature(model.forward).parameters
    chosen = [rows[lengths.index(length)] for length in (max(lengths), min(lengths))]
    full, short = ({name: value for name, value in row.items() if name in accepted} for row in chosen)
    batches = [collate(each) for each in ([short, short], [short, full])]
    _tried(model, batches, f"take texts of {min(lengths)} to {max(lengths)} tokens", arguments)


def _can_be_tried(model: PreTrainedModel, arguments: TrainingArguments) -> bool:
    shared = any(os.environ.get(name) == "true" for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    return not (isinstance(model, ToolkitBertPreTrainedModel) or arguments.fsdp or arguments.deepspeed or shared)


def _tried(model: PreTrainedModel, batches: Sequence[Any], what: str, arguments: TrainingArguments) -> Any:
    """The output for the last batch in evaluation; leaves the model and the random numbers as they were."""
    for column in set(_TABLES) & set(batches[0]):
        _check_highest(model, column, max(int(batch[column].max()) for batch in batches))
    was_training = model.training
    torch.nn.Module.to(model, arguments.device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            for training in (True, False):  # some models take other lengths in training
                for batch in batches:
                    output = model.train(training)(**{k: tensor.to(arguments.device) for k, tensor in batch.items()})
            output["loss"], output["logits" if "logits" in output else "start_logits"]
    except Exception as error:  # whatever a model of somebody's raises
        raise InputError(
            f"{model.config.name_or_path} ({type(model).__name__}) cannot {what}: {reason_of(error)}: choose an "
            "encoder or another `max_length`"
        ) from error
    finally:
        model.train(was_training)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return output
