"""The model card of a run: `README.md`, which the hub and a reader of the folder see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_toolkit.data.corpus_splits import Origin
from bert_toolkit.files import replaced_at_once
from bert_toolkit.hub import hub_answers
from bert_toolkit.reporting.results import NO_TEXT, as_cell
from bert_toolkit.training.pretrained import OFFLINE_MODEL, OFFLINE_PACKAGE

# Names of the hub for scores that have another one here
METRIC_TYPES = {
    "entity_f1": "f1",
    "entity_precision": "precision",
    "entity_recall": "recall",
    "f1_micro": "f1",
    "f1_macro": "f1",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mean_absolute_error": "mae",
    "r2": "r_squared",
    "mlm_accuracy": "accuracy",
    "nsp_accuracy": "accuracy",
}


@dataclass(frozen=True)
class CardText:
    """What a person reads in a card.

    Args:
        title: Heading.
        summary: A paragraph on what the model is and what it is not.
        facts: Rows of the training table.
        health: What training health says of the run in a line.
        findings: Faults of the training, as `results.json` holds them.
    """

    title: str
    summary: str
    facts: Mapping[str, object]
    health: str
    findings: Sequence[Mapping[str, Any]] = ()


def write_model_card(
    output_dir: str | Path,
    name: str,
    task: str,
    text: CardText,
    metrics: Mapping[str, float],
    origin: Origin | None = None,
    parent: str | None = None,
) -> Path:
    """Write the card, with the metadata that the hub reads: results, data, model that it was made from.

    License and language are those of the model that training began with, where its card says them; the language of
    data that are known goes first.

    Args:
        output_dir: Output directory of the run.
        name: Of the model, among the results.
        task: Hub task name, for example `text-classification`.
        text: What a person reads.
        metrics: Scores; `validation_` before a name says which rows they are of.
        origin: Of the data; None where unknown.
        parent: Folder or hub name of the model that training began with; None or "" for none.

    Returns:
        The file.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    origin = origin or Origin("data of your own")
    ancestors = ancestors_of(parent)
    finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
    evaluated = [
        EvalResult(
            task_type=task,
            dataset_type=origin.hub_dataset or "local",
            dataset_name=origin.name,
            dataset_config=origin.hub_config,
            dataset_split="validation" if key.startswith("validation_") else origin.scored,
            metric_type=METRIC_TYPES.get(bare := key.removeprefix("validation_"), bare),
            metric_name=bare,
            metric_value=value,
            verified=False,
        )
        for key, value in finite.items()
    ]
    data = ModelCardData(
        **{**ancestors, **({"language": origin.language} if origin.language else {})},
        datasets=origin.hub_dataset,
        metrics=list(dict.fromkeys(result.metric_type for result in evaluated)) or None,
        model_name=name,
        eval_results=evaluated or None,
        library_name="transformers",
        pipeline_tag=task,
        tags=["bert_toolkit"],
    )
    content = f"---\n{data.to_yaml()}\n---\n{_body(name, task, text, metrics)}"
    path = Path(output_dir) / "README.md"
    with replaced_at_once(path) as partial:
        ModelCard(content.encode("utf-8", NO_TEXT).decode("utf-8")).save(partial)
    return path


def ancestors_of(parent: str | None) -> dict[str, Any]:
    """Return what the card of a model that was trained further says of the one that training began with.

    Args:
        parent: Folder or hub name; None or "" for none.

    Returns:
        `base_model`, `license` and `language`, those that are known. A folder is no name on the hub: its base model
        is the one that its own card names.
    """
    if not parent:
        return {}
    base, card = _card_of(parent)
    language = getattr(card, "language", None)
    if isinstance(language, list):  # all languages that a multilingual model has seen say nothing of this one
        language = language[0] if len(language) == 1 else None
    known = {"base_model": base, "license": getattr(card, "license", None), "language": language}
    return {key: value for key, value in known.items() if value}


def _card_of(parent: str) -> tuple[Any, Any]:
    """Name on the hub and metadata of a model, None where there are none."""
    from huggingface_hub import HfApi, ModelCard

    folder = Path(parent)
    try:
        if not folder.is_dir():
            return parent, HfApi().model_info(parent).card_data if hub_answers() else None
        card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data
    except Exception:  # no card, or one that cannot be read: this card says less
        card = None
    if not folder.is_dir():
        return parent, None
    offline = folder.parent.name == OFFLINE_PACKAGE
    return OFFLINE_MODEL if offline else getattr(card, "base_model", None), card


_PIPELINE = """from transformers import pipeline

model = pipeline("{task}", model="path/to/this/folder")"""

# transformers has no pipeline for it since its version 5
_READING = """import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForQuestionAnswering.from_pretrained("path/to/this/folder")
inputs = tokenizer("a question", "the text that answers it", return_tensors="pt", truncation="only_second")
with torch.no_grad():
    output = model(**inputs)
first, last = output.start_logits.argmax(), output.end_logits.argmax()  # both 0: no answer
print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))"""


def _body(name: str, task: str, text: CardText, metrics: Mapping[str, float]) -> str:
    training = "\n".join(f"| {key} | {_in_table(value)} |" for key, value in text.facts.items())
    scores = "\n".join(f"| {key} | {value:.4f} |" for key, value in metrics.items())
    findings = "".join(
        f"\n- step {of['step']}, {str(of['rule']).replace('_', ' ')} ({of['severity']}): {_in_table(of['seen'])}. "
        f"Remedy: {_in_table(of['remedy'])}"
        for of in text.findings
    )
    return f"""
# {text.title}

{text.summary}

## Results

| metric | value |
|---|---|
{scores}

## Training health

{text.health}
{findings}

## Training

| | |
|---|---|
{training}

## Use

```python
import bert_toolkit  # or pass trust_remote_code=True: the modeling code lies beside the weights
{_READING if task == "question-answering" else _PIPELINE.format(task=task)}
```
"""


def _in_table(value: object) -> str:
    return as_cell(value).replace("|", "\\|")
