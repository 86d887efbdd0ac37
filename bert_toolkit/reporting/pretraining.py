"""What a pre-training run shows at its end: predictions on text, tables, figures, model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset, Subset
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedModel, Trainer, TrainingArguments

from bert_toolkit.ignored_label import IGNORED_LABEL
from bert_toolkit.model import ToolkitBertForPreTraining
from bert_toolkit.pretraining import NextSentencePairs
from bert_toolkit.reporting import figures, overview
from bert_toolkit.reporting.finished_run import FinishedRun, close_run, write_report

CONTEXT = 12


def print_pretraining_overview(
    facts: Mapping[str, object],
    train: NextSentencePairs,
    max_length: int,
    model: PreTrainedModel,
    arguments: TrainingArguments,
) -> None:
    """Print what a pre-training is about to learn from: settings, what of the corpus is unused, lengths, parameters.

    Args:
        facts: Data, model, settings.
        train: Pairs to train on.
        max_length: Tokens per pair at most.
        model: The model.
        arguments: Tell the device and where the run writes.
    """
    overview.print_overview("Pre-training", facts, arguments)
    if arguments.process_index == 0:
        for remark in train.remarks:
            print(remark)
        overview.print_token_lengths(train.lengths(), max_length, 0)
        overview.print_parameters(model)


@torch.no_grad()
def sample_predictions(
    model: PreTrainedModel,
    tokenizer: Any,
    pairs: Sequence[Mapping[str, Any]],
    collator: Callable[[list[Mapping[str, Any]]], dict[str, torch.Tensor]],
    masks: int = 3,
) -> dict[str, list[dict[str, object]]]:
    """Let a model fill masks of a text, and judge one true and one random pair.

    Args:
        model: Masked LM, with or without a next-sentence head.
        tokenizer: For decoding.
        pairs: A `Subset` of `NextSentencePairs`.
        collator: Makes the masks.
        masks: Number of masked tokens to show.

    Returns:
        "masked words": text around the mask, true word, the five most probable words with their probabilities;
        "next sentence": A, B, whether B follows, and the probability that it does.
    """
    was_training = model.training
    model.eval()
    shown: dict[str, list[dict[str, object]]] = {"masked words": [], "next sentence": []}
    wanted = {0: True, 1: True}
    for index in range(len(pairs)):
        pair = pairs[index]
        batch = collator([pair])
        label = pair["next_sentence_label"]
        if len(shown["masked words"]) >= masks and not (wanted.get(label) and "next_sentence_label" in batch):
            if not any(wanted.values()) or "next_sentence_label" not in batch:
                break
            continue
        output = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        if len(shown["masked words"]) < masks:
            word = _show_mask(tokenizer, batch, output)
            shown["masked words"] += [word] if word else []
        if "seq_relationship_logits" in output and wanted[label]:
            wanted[label] = False
            a, b = _segments(tokenizer, pair)
            follows = output["seq_relationship_logits"].float().softmax(-1)[0, 0].item()
            shown["next sentence"].append({"A": a, "B": b, "follows": label == 0, "probability": follows})
    model.train(was_training)
    return shown


def _show_mask(
    tokenizer: Any, batch: Mapping[str, torch.Tensor], output: Mapping[str, torch.Tensor]
) -> dict[str, object] | None:
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    places = ((ids == tokenizer.mask_token_id) & (labels != IGNORED_LABEL)).nonzero().flatten().tolist()
    if not places:
        return None
    place = max(places, key=lambda place: len(tokenizer.decode([labels[place]])))  # long words tell more
    logits = output["prediction_logits"] if "prediction_logits" in output else output["logits"]
    shares, guesses = logits[0, place].float().softmax(-1).topk(5)
    text = tokenizer.decode(ids[max(0, place - CONTEXT) : place + CONTEXT + 1])
    return {
        "text": f"… {text} …",
        "word": tokenizer.decode([labels[place]]),
        "top 5": [
            (tokenizer.decode([guess]), share) for guess, share in zip(guesses.tolist(), shares.tolist(), strict=True)
        ],
    }


def _segments(tokenizer: Any, pair: Mapping[str, Any]) -> tuple[str, ...]:
    ids, types = pair["input_ids"], pair["token_type_ids"]
    return tuple(
        tokenizer.decode(
            [token for token, kind in zip(ids, types, strict=True) if kind == side], skip_special_tokens=True
        )
        for side in (0, 1)
    )


def pair_scores(trainer: Trainer, source: str = "held-out") -> dict[str, float]:
    """Evaluate on the pairs that `trainer` has for it.

    Args:
        trainer: Has finished training, with `pretraining_metrics`.
        source: What the pairs are: "held-out" or "training". The log names the scores so.

    Returns:
        What `pretraining_metrics` gives.
    """
    prefix = source.replace("-", "_")
    metrics = trainer.evaluate(metric_key_prefix=prefix)
    names = {name: name.removeprefix(f"{prefix}_") for name in metrics}
    return {
        short: metrics[name] for name, short in names.items() if short.startswith(("mlm", "nsp", "perplex", "unigram"))
    }


def finish_pretraining(
    run: FinishedRun,
    pairs: Dataset[Any],
    examples: Mapping[str, Sequence[Mapping[str, Any]]],
    source: str = "held-out",
) -> None:
    """Print scores and examples, write figures, model card and `results.json`, and check that the model reloads.

    Every process calls it; the main one prints and writes.

    Args:
        run: The run, whose model is saved.
        pairs: Some of them the reloaded model predicts.
        examples: Of `sample_predictions`.
        source: What the pairs of scores and examples are: "held-out" or "training".

    Raises:
        ReloadError: The saved model predicts something else.
    """
    rows = Subset(pairs, range(min(len(pairs), 2 * run.trainer.args.eval_batch_size)))  # type: ignore[arg-type]
    both = isinstance(run.trainer.model, ToolkitBertForPreTraining)
    auto_class = AutoModelForPreTraining if both else AutoModelForMaskedLM
    if run.origin is not None:
        run = replace(run, origin=replace(run.origin, scored=source.replace("-", "_")))
    close_run(run, lambda: _write_outputs(run, examples, source), auto_class, rows)


def _write_outputs(run: FinishedRun, examples: Mapping[str, Sequence[Mapping[str, Any]]], source: str) -> None:
    history = run.trainer.state.log_history
    scores = {f"{source} {name}": f"{value:.4f}" for name, value in run.numbers.items()}
    overview.print_settings({**run.all_facts(), **scores}, "Result")
    overview.print_settings(
        {
            word["text"]: f"{word['word']}: " + ", ".join(f"{guess} {share:.2f}" for guess, share in word["top 5"])
            for word in examples["masked words"]
        },
        f"{source.capitalize()} words and the model's five guesses",
    )
    if examples["next sentence"]:
        overview.print_settings(
            {
                f"{pair['A']}  ⟶  {pair['B']}": (
                    f"{'follows' if pair['follows'] else 'random'}; model: follows with {pair['probability']:.3f}"
                )
                for pair in examples["next sentence"]
            },
            f"{source.capitalize()} pairs",
        )
    drawn = {"learning_curves": figures.draw_learning_curves(history, run.curves, run.title)}
    write_report(run, "fill-mask", drawn, {"examples": examples})
