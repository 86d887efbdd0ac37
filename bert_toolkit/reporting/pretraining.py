"""What a pre-training run shows at its end: predictions on held-out text, tables, figures, model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bert_toolkit.callbacks import TrainingHealthCallback
from bert_toolkit.callbacks.token_counter import TokenCounterCallback
from bert_toolkit.reporting import figures, overview, results

CONTEXT = 12


@torch.no_grad()
def demonstrate(model, tokenizer, pairs, collator, masks: int = 3) -> dict[str, list[dict[str, object]]]:
    """Let a model fill masks of held-out text, and judge one true and one random pair.

    Args:
        model: Masked LM, with or without a next-sentence head.
        tokenizer: For decoding.
        pairs: Held-out pairs, a `Subset` of `NextSentencePairs`.
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


def _show_mask(tokenizer, batch, output) -> dict[str, object] | None:
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    places = ((ids == tokenizer.mask_token_id) & (labels != -100)).nonzero().flatten().tolist()
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


def _segments(tokenizer, pair) -> tuple[str, str]:
    ids, types = pair["input_ids"], pair["token_type_ids"]
    return tuple(
        tokenizer.decode(
            [token for token, kind in zip(ids, types, strict=True) if kind == side], skip_special_tokens=True
        )
        for side in (0, 1)
    )


def write_pretraining_outputs(
    trainer,
    facts: Mapping[str, object],
    scores: Mapping[str, float],
    examples: Mapping[str, Sequence[Mapping[str, Any]]],
    tokens: TokenCounterCallback,
    health: TrainingHealthCallback | None = None,
) -> None:
    """Prints scores and examples and writes figures, model card and `results.json`. On the main process only.

    Args:
        trainer: Has finished training.
        facts: What the run was: data, model, settings.
        scores: `trainer.evaluate(metric_key_prefix="held_out")`.
        examples: Of `demonstrate`.
        tokens: The counter of the run.
        health: What watched the training, if anything did.
    """
    output_dir, history = trainer.args.output_dir, trainer.state.log_history
    facts = {
        **facts,
        "learning rate": trainer.args.learning_rate,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "training seconds": round(tokens.seconds, 2),
        "tokens per second": round(tokens.tokens_per_second),
        "padding share": round(tokens.padding_share, 4),
        "training health": health.verdict.removeprefix("Training health: ") if health else "not watched",
    }
    utilisation = [entry["mfu"] for entry in history if "mfu" in entry]
    if utilisation:
        facts["MFU"] = round(sum(utilisation) / len(utilisation), 4)
    metrics = {
        name.removeprefix("held_out_"): value
        for name, value in scores.items()
        if name.startswith(("held_out_mlm", "held_out_nsp", "held_out_perplexity", "held_out_unigram"))
    }
    overview.print_settings({**facts, **{f"held-out {k}": f"{v:.4f}" for k, v in metrics.items()}}, "Result")
    overview.print_settings(
        {
            word["text"]: f"{word['word']}: " + ", ".join(f"{guess} {share:.2f}" for guess, share in word["top 5"])
            for word in examples["masked words"]
        },
        "Held-out words and the model's five guesses",
    )
    if examples["next sentence"]:
        overview.print_settings(
            {
                f"{pair['A']}  ⟶  {pair['B']}": (
                    f"{'follows' if pair['follows'] else 'random'}; model: follows with {pair['probability']:.3f}"
                )
                for pair in examples["next sentence"]
            },
            "Held-out pairs",
        )
    curves = [name for name in ("mlm_accuracy", "nsp_accuracy") if name in metrics]
    drawn = {"learning_curves": figures.draw_learning_curves(history, curves, "Pre-training")}
    figures.save_figures(drawn, output_dir, trainer.state.global_step)
    results.write_model_card(
        output_dir,
        "Pre-trained BERT",
        "fill-mask",
        "Fills masked words and tells whether a text follows another. Not fine-tuned for a task.",
        facts,
        metrics,
    )
    findings = health.report["findings"] if health else []
    results.write_results(
        output_dir,
        {**metrics, **facts, "training_health_findings": findings, "examples": examples, "log_history": history},
    )
