"""Labels the rows of a file with a saved classifier and writes a table.

    python -m bert_toolkit.predict --model_name_or_path runs/classify --data new.csv --output labeled.tsv

Unlike a pipeline it reads and writes whole tables, says which row is wrong, and runs texts of like length together.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from bert_toolkit.data.labels import REGRESSION, SINGLE
from bert_toolkit.data.tables import check_new_file, read_table, shown, write_table
from bert_toolkit.errors import InputError
from bert_toolkit.reporting.decisions import decision_columns
from bert_toolkit.training.arguments import parse_arguments
from bert_toolkit.training.launching import run_recipe
from bert_toolkit.training.loading import load_pretrained, load_tokenizer
from bert_toolkit.training.pretrained import choose_model
from bert_toolkit.training.rehearsal import longest_input
from bert_toolkit.training.tokenized_rows import tokenize_texts

ROWS_SORTED = 10_000
"""Rows that are sorted by length at a time: the tokens of more of them need not fit into memory."""


@dataclass
class PredictArguments:
    """What to label with what."""

    model_name_or_path: str = field(metadata={"help": "a saved classifier: folder or hub name"})
    data: str = field(metadata={"help": "a CSV, TSV, JSON, JSON lines or Parquet file"})
    output: str = field(metadata={"help": "the table to write; .tsv, .csv, .jsonl or .parquet"})
    text_columns: list[str] | None = field(default=None, metadata={"help": "default: as the model was trained"})
    batch_size: int = field(default=32, metadata={"help": "texts that run together"})
    threshold: float = field(default=0.5, metadata={"help": "probability from which one of several labels holds"})
    delimiter: str | None = field(default=None, metadata={"help": "between fields of CSV and TSV: a character or tab"})
    quoted: bool | None = field(default=None, metadata={"help": "quotes enclose fields; default: in CSV, not in TSV"})
    encoding: str = field(default="utf-8", metadata={"help": "of text files"})
    column_names: list[str] | None = field(default=None, metadata={"help": "for CSV and TSV files without a header"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python files that lie beside the model"})
    overwrite: bool = field(default=False, metadata={"help": "replace the output file if it exists"})


def predict_logits(
    model: Any, tokenizer: Any, texts: Sequence[Sequence[str]], batch_size: int
) -> tuple[np.ndarray, int]:
    """Run a classifier over texts, those of like length together so that little is padding.

    Args:
        model: A model for sequence classification, on the device where it is to run.
        tokenizer: Its tokenizer.
        texts: One column of texts, or two of pairs.
        batch_size: Texts that run together.

    Returns:
        Logits (texts, classes) in the order of the texts, and how many texts were cut to the tokenizer's
        `model_max_length` tokens.
    """
    logits = np.empty((len(texts[0]), model.config.num_labels), dtype=np.float32)
    cut = 0
    model.eval()
    for first in range(0, len(logits), ROWS_SORTED):
        part = {str(number): list(column[first : first + ROWS_SORTED]) for number, column in enumerate(texts)}
        encoded = tokenize_texts(part, tokenizer, list(part), tokenizer.model_max_length)
        cut += sum(encoded.pop("truncated"))
        lengths = encoded.pop("length")
        longest_first = np.argsort(lengths, kind="stable")[::-1]
        for start in range(0, len(lengths), batch_size):
            rows = longest_first[start : start + batch_size]
            batch = tokenizer.pad(
                {name: [values[row] for row in rows] for name, values in encoded.items()}, return_tensors="pt"
            )
            with torch.inference_mode():
                logits[first + rows] = model(**batch.to(model.device)).logits.float().cpu().numpy()
    return logits, cut


def main() -> None:
    """Read the command line, label the rows and write the table.

    Raises:
        InputError: Whatever the arguments, the table or the model do not allow, before anything is written.
    """
    (predict,) = parse_arguments([PredictArguments], {})
    if predict.batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1, got {predict.batch_size}")
    if not 0 < predict.threshold < 1:
        raise InputError(f"`threshold` must lie in (0, 1), got {predict.threshold}")
    output = Path(predict.output).expanduser()
    check_new_file(output, predict.overwrite)
    table = read_table(
        Path(predict.data).expanduser(), predict.delimiter, predict.quoted, predict.encoding, predict.column_names
    )
    model_name, model_description = choose_model(predict.model_name_or_path)
    tokenizer = load_tokenizer(model_name, predict.trust_remote_code)
    model, report = load_pretrained(
        AutoModelForSequenceClassification,
        model_name,
        predict.trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise InputError(f"{model_name} holds no classifier, {shown(sorted(report['missing_keys']))} are missing")
    columns = predict.text_columns or getattr(model.config, "text_columns", None)
    if not columns or len(columns) > 2:
        raise InputError(f"name one or two `text_columns` of {predict.data}: there are {shown(list(table.columns))}")
    tokenizer.model_max_length = longest_input(tokenizer, model) or sys.maxsize
    texts = [table.texts(column) for column in columns]
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    problem_type = model.config.problem_type or (REGRESSION if len(names) == 1 else SINGLE)
    written = decision_columns(np.zeros((1, len(names))), names, problem_type)
    taken = [name for name in written if name in table.columns]
    if taken:
        raise InputError(f"{predict.data} has a column {shown(taken)} already, which would be written: rename it")
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")

    logits, cut = predict_logits(model, tokenizer, texts, predict.batch_size)
    if not np.isfinite(logits).all():
        raise InputError(f"{model_name} gives NaN or infinite logits: it has diverged in training")
    write_table(output, {**table.columns, **decision_columns(logits, names, problem_type, predict.threshold)})
    print(
        f"{len(table):,} rows of {predict.data} labeled by {model_description}: {output}"
        + (f"; {cut:,} were longer than {tokenizer.model_max_length} tokens and cut" if cut else "")
    )


if __name__ == "__main__":
    run_recipe(main)
