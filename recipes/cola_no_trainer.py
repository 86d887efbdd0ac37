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
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, get_scheduler

from bert_toolkit import (
    GradientFlowMonitor,
    InputError,
    ToolkitBertForSequenceClassification,
    UpdateRatioMonitor,
    flat_accuracy,
    matthews_correlation,
)
from bert_toolkit.data.cola import load_cola
from bert_toolkit.reporting import overview, results
from bert_toolkit.training.launching import (
    check_world_size,
    claim_output_dir,
    parse_arguments,
    prepare_processes,
    run_recipe,
    use_cpu_threads,
)
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
from bert_toolkit.training.pretrained import choose_model


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
    warmup_share: float = field(default=0.1, metadata={"help": "share of the steps that warm up"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip the gradient's norm to this"})
    max_length: int = field(default=64, metadata={"help": "longer sentences are cut to this number of tokens"})
    monitor_every: int = field(default=50, metadata={"help": "observe gradients and updates every N steps"})
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
    use_cpu_threads(cola.cpu_threads, accelerator.device)
    check_world_size(accelerator.num_processes)
    claim_output_dir(cola.output_dir, cola.overwrite_output_dir, False, accelerator.is_main_process)
    set_seed(cola.seed)
    accelerator.init_trackers("runs")

    # data
    corpus = load_cola(cola.dataset, cola.data_dir, None, cola.seed)
    model_name, model_description = choose_model(cola.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(model_name)

    def tokenize(rows: dict) -> dict:
        return tokenizer(rows["sentence"], truncation=True, max_length=cola.max_length)

    with accelerator.main_process_first():
        train, validation, test = (
            split.map(tokenize, batched=True).select_columns(
                ["input_ids", "token_type_ids", "attention_mask", "label"]
            )
            for split in (corpus.train, corpus.validation, corpus.test)
        )
    if cola.max_train_samples is not None:
        train = train.shuffle(seed=cola.seed).select(range(min(cola.max_train_samples, len(train))))
    lengths = [len(ids) for ids in train["input_ids"]]
    grouped = LengthGroupedRows(train, lengths, cola.batch_size * accelerator.num_processes, cola.seed)
    collate = DataCollatorWithPadding(tokenizer)
    train_batches = torch.utils.data.DataLoader(grouped, cola.batch_size, collate_fn=collate)
    validation_batches = torch.utils.data.DataLoader(validation, cola.batch_size, collate_fn=collate)
    test_batches = torch.utils.data.DataLoader(test, cola.batch_size, collate_fn=collate)

    # model
    model = ToolkitBertForSequenceClassification.from_pretrained(
        model_name,
        num_labels=len(corpus.label_names),
        id2label=dict(enumerate(corpus.label_names)),
        label2id={name: number for number, name in enumerate(corpus.label_names)},
        use_safetensors=True,
    )
    if cola.max_length > model.config.max_position_embeddings:
        raise InputError(
            f"`max_length` must be at most {model.config.max_position_embeddings}, the positions of {model_name}, "
            f"got {cola.max_length}"
        )
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1]
    others = [p for name, p in model.named_parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": cola.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=cola.learning_rate,
        fused=True,
    )
    steps = cola.num_train_epochs * math.ceil(
        len(train_batches) / (accelerator.num_processes * cola.gradient_accumulation_steps)
    )
    # accelerate steps the schedule once for each process
    schedule = get_scheduler(
        "linear",
        optimizer,
        num_warmup_steps=int(steps * cola.warmup_share) * accelerator.num_processes,
        num_training_steps=steps * accelerator.num_processes,
    )
    model, optimizer, train_batches, validation_batches, test_batches, schedule = accelerator.prepare(
        model, optimizer, train_batches, validation_batches, test_batches, schedule
    )
    if accelerator.is_main_process:
        overview.print_settings(
            {
                "data": corpus.description,
                "model": model_description,
                "device": f"{accelerator.device} × {accelerator.num_processes}, {accelerator.mixed_precision}",
            },
            "CoLA fine-tuning without Trainer",
        )
        overview.print_token_lengths(lengths, cola.max_length, sum(length == cola.max_length for length in lengths))
        overview.print_parameters(accelerator.unwrap_model(model))

    # training
    gradient_flow, update_ratios = GradientFlowMonitor(model), UpdateRatioMonitor(model)
    progress = tqdm(total=steps, desc="training", disable=not accelerator.is_main_process)
    step = 0
    for epoch in range(cola.num_train_epochs):
        model.train()
        grouped.set_epoch(epoch)
        for batch in train_batches:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                observed = accelerator.sync_gradients and (step + 1) % cola.monitor_every == 0
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), cola.max_grad_norm)
                if observed:
                    gradients = gradient_flow.observe(step + 1)
                    update_ratios.before_step()
                optimizer.step()
                if observed:
                    updates = update_ratios.after_step(step + 1)
                schedule.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                step += 1
                progress.update()
            if observed:
                shown = {"train/loss": loss.item(), "train/learning_rate": schedule.get_last_lr()[0]}
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
        cola.output_dir, is_main_process=accelerator.is_main_process, state_dict=accelerator.get_state_dict(model)
    )
    if accelerator.is_main_process:
        tokenizer.save_pretrained(cola.output_dir)
        overview.print_settings({name: f"{value:.4f}" for name, value in scores.items()}, "Result")
        results.write_results(
            cola.output_dir,
            {**scores, "data": corpus.description, "remarks": corpus.remarks, "model": model_description},
        )
    accelerator.wait_for_everyone()
    reloaded = AutoModelForSequenceClassification.from_pretrained(cola.output_dir).to(accelerator.device)
    again, _ = predict(accelerator, reloaded, test_batches)
    if not np.array_equal(again, predicted):
        raise RuntimeError(
            f"the model reloaded from {cola.output_dir} predicts other classes for {(again != predicted).sum()} rows"
        )
    accelerator.print(f"Saved and reloaded with identical predictions: {cola.output_dir}")


@torch.no_grad()
def predict(accelerator: Accelerator, model: torch.nn.Module, batches) -> tuple[np.ndarray, np.ndarray]:
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
