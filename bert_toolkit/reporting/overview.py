"""Tables that a recipe prints once before training and once after."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.data.labels import REGRESSION
from bert_toolkit.data.tagged_sentences import TaggedSplits

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.table import Table

CLASSES_SHOWN = 40


def describe_device(training_arguments: TrainingArguments) -> str:
    """Return one line on device, processes, threads and precision of a run.

    Args:
        training_arguments: After the process group has started.

    Returns:
        The line.
    """
    arguments = training_arguments
    return device_in_words(arguments.device, arguments.world_size, arguments.mixed_precision)


def device_in_words(device: torch.device, processes: int, precision: str) -> str:
    """Return one line on device, processes, threads and precision.

    Args:
        device: Of this process.
        processes: How many train together.
        precision: As Accelerate calls it: `no`, `bf16` or `fp16`.

    Returns:
        The line.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    words = {"no": "fp32", "bf16": "bf16 mixed precision", "fp16": "fp16 mixed precision"}.get(precision, precision)
    if precision == "fp16" and device.type == "cpu":
        words = "fp32 (fp16 has no effect on CPU; bf16 has)"
    count = torch.get_num_threads()
    each = f"{count} thread{'s' if count > 1 else ''}{' each' if processes > 1 else ''}"
    threads = f", {each}" if device.type == "cpu" else ""
    return f"{name}, {processes} process{'es' if processes > 1 else ''}{threads}, {words}"


def slow_in_bf16(arguments: TrainingArguments) -> bool:
    """Return whether a run on the CPU asks for bf16 of a processor that has no instructions for it.

    Without AVX-512 PyTorch converts values to fp32 and back, which takes several times as long as fp32 alone.

    Args:
        arguments: Of the run.
    """
    asked = arguments.mixed_precision == "bf16" or arguments.bf16 or arguments.bf16_full_eval
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return asked and x86 and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def print_overview(title: str, facts: Mapping[str, object], arguments: TrainingArguments) -> None:
    """Print what a run is about to do, on the main process.

    Args:
        title: Of the run.
        facts: Data, model, settings.
        arguments: Tell the device and where the run writes.
    """
    if arguments.process_index == 0:
        settings = {**facts, "device": describe_device(arguments), "output": arguments.output_dir}
        print_settings(settings, title)
        if arguments.device.type == "cpu" and slow_in_bf16(arguments):
            print(
                "warning: this processor has no AVX-512, so bf16 takes several times as long as fp32: leave bf16 out",
                flush=True,
            )


def print_classifier_overview(
    title: str,
    facts: Mapping[str, object],
    corpus: CorpusSplits,
    max_length: int,
    model: nn.Module,
    arguments: TrainingArguments,
) -> None:
    """Print what a classifier is about to learn: settings, labels, token lengths and parameters.

    Args:
        title: Of the run.
        facts: Data, model, settings.
        corpus: Tokenized splits; its remarks are printed too.
        max_length: Limit that the rows were cut to.
        model: The model.
        arguments: Tell the device and where the run writes.
    """

    def print_labels(splits: Mapping[str, Dataset]) -> None:
        labels = {name: rows["label"][:] for name, rows in splits.items()}
        if corpus.problem_type == REGRESSION:
            print_number_spread(labels)
        else:
            print_class_balance(labels, corpus.label_names)

    _print_corpus_overview(title, facts, corpus, print_labels, max_length, model, arguments)


def print_tagger_overview(
    facts: Mapping[str, object], corpus: TaggedSplits, max_length: int, model: nn.Module, arguments: TrainingArguments
) -> None:
    """Print what a tagger of words is about to learn: settings, tags, token lengths and parameters.

    Args:
        facts: Data, model, settings.
        corpus: Tokenized sentences; their remarks are printed too.
        max_length: Limit that the sentences were cut to.
        model: The model.
        arguments: Tell the device and where the run writes.
    """
    print_tags = partial(print_tag_counts, tag_names=corpus.tag_names)
    _print_corpus_overview("Token classification", facts, corpus, print_tags, max_length, model, arguments)


def _print_corpus_overview(
    title: str,
    facts: Mapping[str, object],
    corpus: CorpusSplits | TaggedSplits,
    print_labels: Callable[[Mapping[str, Dataset]], None],
    max_length: int,
    model: nn.Module,
    arguments: TrainingArguments,
) -> None:
    if arguments.process_index != 0:
        return
    print_overview(title, {**facts, **_numbered(corpus.remarks)}, arguments)
    print_labels({"train": corpus.train, "validation": corpus.validation, "test": corpus.test})
    print_token_lengths(corpus.train["length"][:], max_length, sum(corpus.train["truncated"][:]))
    print_parameters(model)


def print_answerer_overview(
    facts: Mapping[str, object],
    splits: Mapping[str, tuple[Dataset, Dataset]],
    remarks: Sequence[str],
    model: nn.Module,
    arguments: TrainingArguments,
) -> None:
    """Print what a model that answers questions is about to learn: settings, sizes and parameters.

    Args:
        facts: Data, model, settings.
        splits: Split name to its questions and the windows of their texts.
        remarks: What else to say of the data.
        model: The model.
        arguments: Tell the device and where the run writes.
    """
    if arguments.process_index != 0:
        return
    sizes = {name: f"{len(rows)} questions, {len(windows)} windows" for name, (rows, windows) in splits.items()}
    print_overview("Question answering", {**facts, **sizes, **_numbered(remarks)}, arguments)
    print_parameters(model)


def _numbered(remarks: Sequence[str]) -> dict[str, str]:
    return {f"remark {number}": remark for number, remark in enumerate(remarks, start=1)}


def print_settings(rows: Mapping[str, object], title: str) -> None:
    """Print names and values as a table of two columns.

    Args:
        rows: Name to value.
        title: Of the table.
    """
    table = _table(title, ["", ""])
    for name, value in rows.items():
        table.add_row(name, str(value))
    _print(table)


def print_class_balance(
    labels_by_split: Mapping[str, Sequence], label_names: Sequence[str], counted: str = "rows"
) -> None:
    """Print the number of rows of each split, and of each class with its share of them.

    Args:
        labels_by_split: Split name to the class ids of its rows, or to 0 and 1 for each class and row.
        label_names: Name of each class id; the first `CLASSES_SHOWN` are printed.
        counted: What each label belongs to.
    """
    table = _table("Data", ["class", *labels_by_split])
    arrays = [np.asarray(labels, dtype=int) for labels in labels_by_split.values()]
    counts = [
        array.sum(axis=0) if array.ndim == 2 else np.bincount(array, minlength=len(label_names)) for array in arrays
    ]
    for i, name in enumerate(label_names[:CLASSES_SHOWN]):
        cells = (f"{of[i]:,} ({of[i] / max(1, len(array)):.1%})" for of, array in zip(counts, arrays, strict=True))
        table.add_row(name, *cells)
    if len(label_names) > CLASSES_SHOWN:
        table.add_row(f"… and {len(label_names) - CLASSES_SHOWN} more classes")
    table.add_section()
    table.add_row(counted, *(f"{len(array):,}" for array in arrays))
    _print(table)


def print_number_spread(numbers_by_split: Mapping[str, Sequence[float]]) -> None:
    """Print the number of rows of each split and how the numbers to predict are spread.

    Args:
        numbers_by_split: Split name to the numbers of its rows.
    """
    table = _table("Data", ["", *numbers_by_split])
    arrays = [np.asarray(numbers, dtype=np.float64) for numbers in numbers_by_split.values()]
    for name, measure in (
        ("mean", np.mean),
        ("standard deviation", np.std),
        ("smallest", np.min),
        ("median", np.median),
        ("largest", np.max),
    ):
        table.add_row(name, *(f"{measure(array):.4g}" for array in arrays))
    table.add_section()
    table.add_row("rows", *(f"{len(array):,}" for array in arrays))
    _print(table)


def print_tag_counts(sentences_by_split: Mapping[str, Dataset], tag_names: Sequence[str]) -> None:
    """Print the number of sentences of each split, and of words with each tag.

    Args:
        sentences_by_split: Split name to rows with a column `tags` of lists of ids.
        tag_names: Name of each id; the first `CLASSES_SHOWN` are printed.
    """
    tags = {name: [tag for row in rows["tags"][:] for tag in row] for name, rows in sentences_by_split.items()}
    print_class_balance(tags, tag_names, "words")
    print_settings({name: f"{len(rows):,}" for name, rows in sentences_by_split.items()}, "Sentences")


def print_class_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print precision, recall, F1 and rows of each class.

    Args:
        scores: Class name to what `task_scores.class_scores` gives; the first `CLASSES_SHOWN` are printed.
    """
    table = _table("Test scores by class", ["class", "precision", "recall", "F1", "rows"])
    for name, of in list(scores.items())[:CLASSES_SHOWN]:
        table.add_row(name, f"{of['precision']:.3f}", f"{of['recall']:.3f}", f"{of['f1']:.3f}", f"{of['rows']:,}")
    if len(scores) > CLASSES_SHOWN:
        table.add_row(f"… and {len(scores) - CLASSES_SHOWN} more classes: see results.json")
    _print(table)


def print_token_lengths(lengths: Sequence[int] | np.ndarray, max_length: int, truncated: int) -> None:
    """Print the distribution of token lengths (special tokens included).

    Args:
        lengths: Tokens of each row after truncation.
        max_length: Limit that the rows were truncated to.
        truncated: Number of rows that were longer.
    """
    array = np.asarray(lengths)
    median, upper = np.percentile(array, [50, 95])
    print_settings(
        {
            "mean": f"{array.mean():.1f}",
            "median": f"{median:.0f}",
            "95 % below": f"{upper:.0f}",
            "longest": int(array.max()),
            "truncated": f"{truncated:,} of {len(array):,} ({truncated / len(array):.2%}) at {max_length} tokens",
        },
        "Tokens per row",
    )


def parameter_groups(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Count parameters by embedding, layer and head.

    A parameter belongs to its numbered layer if its name has a number, and to the module below the base model
    otherwise. A tied parameter is counted once.

    Args:
        model: Any model.

    Returns:
        Group name to (parameters, trainable parameters), in the order of the model.
    """
    groups: dict[str, tuple[int, int]] = {}
    prefix = getattr(model, "base_model_prefix", "") + "."
    for name, parameter in model.named_parameters():
        parts = name.removeprefix(prefix).split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        group = parts[0] if number is None else ".".join(parts[max(0, number - 1) : number + 1])
        total, trainable = groups.get(group, (0, 0))
        groups[group] = (total + parameter.numel(), trainable + parameter.numel() * parameter.requires_grad)
    return groups


def print_parameters(model: nn.Module) -> None:
    """Print the parameter table of `parameter_groups` with totals.

    Args:
        model: Any model.
    """
    groups = parameter_groups(model)
    table = _table("Parameters", ["part", "parameters", "trainable"])
    for group, (total, trainable) in groups.items():
        table.add_row(group, f"{total:,}", f"{trainable:,}")
    table.add_section()
    table.add_row("total", *(f"{sum(counts):,}" for counts in zip(*groups.values(), strict=True)))
    _print(table)


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=any(columns))
    for index, column in enumerate(columns):
        # names that are wider than a narrow terminal go on in a second line
        table.add_column(column, justify="left" if index == 0 or not any(columns) else "right", overflow="fold")
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console(markup=False, emoji=False).print(table)  # names in brackets or colons are names
