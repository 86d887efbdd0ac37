"""Fine-tunes BERT on CoLA in a plain Accelerate loop: the same data, model and settings as cola.py, without Trainer.

    accelerate launch recipes/cola_no_trainer.py
    accelerate launch --mixed_precision bf16 recipes/cola_no_trainer.py --data_dir path/to/cola/raw

It shows where each part of the toolkit goes in a loop of your own; the monitors are the lines that name them.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, get_scheduler

from bert_toolkit import GradientFlowMonitor, UpdateRatioMonitor, flat_accuracy, matthews_correlation
from bert_toolkit.data.cola import load_cola
from bert_toolkit.reporting import overview, results
from bert_toolkit.training.arguments import RunArguments, parse_arguments
from bert_toolkit.training.launching import open_run, prepare_processes, run_recipe
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
from bert_toolkit.training.loading import check_max_length, load_classifier, load_tokenizer
from bert_toolkit.training.pretrained import choose_model
from bert_toolkit.training.tokenized_rows import tokenize_corpus


@dataclass
class ColaArguments:
    """What to fine-tune on what, and how."""

    dataset: str = field(default="auto", metadata={"help": "auto, hub (nyu-mll/glue, cola) or sample"})
    data_dir: str | None = field(default=None, metadata={"help": "folder in CoLA's raw layout; forces that data"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "forces this model: folder or hub name"})
    output_dir: str = field(default="runs/cola_no_trainer", metadata={"help": "everything is written here"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace an earlier run in output_dir"})
    batch_size: int = field(default=32, metadata={"help": "rows of a batch on each process"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches of an optimizer step"})
    num_train_epochs: int = field(default=4, metadata={"help": "passes over the training rows"})
    learning_rate: float = field(default=1e-4, metadata={"help": "peak rate; 2e-5 suits bert-base"})
    weight_decay: float = field(default=0.01, metadata={"help": "on all but biases and LayerNorm"})
    warmup_share: float = field(default=0.1, metadata={"help": "fraction of the steps that warm up"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip the gradient's norm to this"})
    max_length: int = field(default=64, metadata={"help": "longer sentences are cut to this number of tokens"})
    monitor_every: int = field(default=50, metadata={"help": "observe gradients and updates every N steps; 0: never"})
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first N shuffled rows"})
    seed: int = field(default=42, metadata={"help": "of weights, order and dropout"})
    cpu_threads: int | None = field(default=None, metadata={"help": "threads of each process; default: all cores"})


def main() -> None:
    prepare_processes()
    (cola,) = parse_arguments([ColaArguments], {})
    accelerator = Accelerator(
        gradient_accumulation_steps=cola.gradient_accumulation_steps,
        log_with="tensorboard",
        project_dir=cola.output_dir,
    )
    processes, is_main = accelerator.num_processes, accelerator.is_main_process
    run = RunArguments(overwrite_output_dir=cola.overwrite_output_dir, cpu_threads=cola.cpu_threads)
    open_run(run, cola.output_dir, accelerator.device, processes, is_main, cola.seed)
    accelerator.init_trackers("runs")

    # data
    corpus = load_cola(cola.dataset, cola.data_dir, None, cola.seed)
    model_name, model_description = choose_model(cola.model_name_or_path)
    tokenizer = load_tokenizer(model_name)
    corpus = tokenize_corpus(corpus, tokenizer, cola.max_length, cola.seed, cola.max_train_samples)
    lengths = corpus.train["length"][:]
    grouped = LengthGroupedRows(corpus.train, lengths, cola.batch_size * processes, cola.seed)
    pad, inputs = DataCollatorWithPadding(tokenizer), {*tokenizer.model_input_names, "label"}

    def batches(rows) -> DataLoader:
        return DataLoader(
            rows,
            cola.batch_size,
            collate_fn=lambda batch: pad([{k: v for k, v in row.items() if k in inputs} for row in batch]),
        )

    # model
    model = load_classifier(model_name, corpus, "toolkit")
    check_max_length(cola.max_length, tokenizer, model)
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1]
    others = [p for name, p in model.named_parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": cola.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=cola.learning_rate, fused=True)
    train_batches = batches(grouped)
    steps = cola.num_train_epochs * math.ceil(len(train_batches) / (processes * cola.gradient_accumulation_steps))
    # accelerate steps the schedule once for each process
    warmup_steps = int(steps * cola.warmup_share) * processes
    schedule = get_scheduler("linear", optimizer, warmup_steps, steps * processes)
    model, optimizer, schedule, train_batches, validation_batches, test_batches = accelerator.prepare(
        model, optimizer, schedule, train_batches, batches(corpus.validation), batches(corpus.test)
    )
    if is_main:
        device = f"{accelerator.device} × {processes}, {accelerator.mixed_precision}"
        facts = {"data": corpus.description, "model": model_description, "device": device}
        overview.print_settings(facts, "CoLA fine-tuning without Trainer")
        overview.print_token_lengths(lengths, cola.max_length, sum(corpus.train["truncated"][:]))
        overview.print_parameters(accelerator.unwrap_model(model))

    # training
    gradient_flow, update_ratios = GradientFlowMonitor(model), UpdateRatioMonitor(model)
    progress = tqdm(total=steps, desc="training", disable=not is_main)
    step = 0
    for epoch in range(cola.num_train_epochs):
        model.train()
        grouped.set_epoch(epoch)
        for batch in train_batches:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                observed = False
                if accelerator.sync_gradients:
                    step += 1
                    observed = cola.monitor_every > 0 and step % cola.monitor_every == 0
                    norm = accelerator.clip_grad_norm_(model.parameters(), cola.max_grad_norm)
                if observed:
                    gradients = gradient_flow.observe(step, total_norm=norm, max_norm=cola.max_grad_norm)
                    update_ratios.before_step()
                optimizer.step()
                if observed:
                    updates = update_ratios.after_step(step)
                schedule.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                progress.update()
            if observed:
                shown = {"train/loss": loss.item(), "train/learning_rate": schedule.get_last_lr()[0]}
                shown["gradient_flow/clip_coefficient"] = gradients.clip_coefficient
                for name, mean, ratio in zip(gradients.names, gradients.mean, updates.ratio, strict=True):
                    shown[f"gradient_flow/mean/{name}"], shown[f"update_ratio/{name}"] = float(mean), float(ratio)
                accelerator.log(shown, step=step)
        predicted, labels = predict(accelerator, model, validation_batches)
        score = matthews_correlation(predicted, labels)
        accelerator.log({"eval/matthews_correlation": score, "eval/accuracy": flat_accuracy(predicted, labels)}, step)
        accelerator.print(f"epoch {epoch + 1}: validation Matthews correlation {score:.4f}")
    progress.close()

    # evaluation
    predicted, labels = predict(accelerator, model, test_batches)
    scores = {
        "accuracy": flat_accuracy(predicted, labels),
        "matthews_correlation": matthews_correlation(predicted, labels),
    }

    # save
    for tracker in accelerator.trackers:  # end_training() would destroy the process group, which is still needed
        tracker.finish()
    accelerator.unwrap_model(model).save_pretrained(
        cola.output_dir, is_main_process=is_main, state_dict=accelerator.get_state_dict(model)
    )
    if is_main:
        tokenizer.save_pretrained(cola.output_dir)
        overview.print_settings({name: f"{value:.4f}" for name, value in scores.items()}, "Result")
        facts = {"data": corpus.description, "remarks": corpus.remarks, "model": model_description}
        results.write_results(cola.output_dir, {**scores, **facts})
    accelerator.wait_for_everyone()
    reloaded = AutoModelForSequenceClassification.from_pretrained(cola.output_dir).to(accelerator.device)
    again, _ = predict(accelerator, reloaded, test_batches)
    if not np.array_equal(again, predicted):
        raise RuntimeError(
            f"the model reloaded from {cola.output_dir} predicts other classes for {(again != predicted).sum()} rows"
        )
    accelerator.print(f"Saved and reloaded with identical predictions: {cola.output_dir}")


@torch.no_grad()
def predict(accelerator: Accelerator, model: torch.nn.Module, batches: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true class ids of all rows, each once, on every process."""
    model.eval()
    predicted, labels = [], []
    for batch in batches:
        with accelerator.autocast():
            logits = model(**batch).logits
        chosen, known = accelerator.gather_for_metrics((logits.argmax(-1), batch["labels"]))
        predicted.append(chosen.cpu().numpy())
        labels.append(known.cpu().numpy())
    return np.concatenate(predicted), np.concatenate(labels)


if __name__ == "__main__":
    run_recipe(main)
