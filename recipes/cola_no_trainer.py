"""Fine-tunes BERT on CoLA in a plain Accelerate loop: the same data, model and settings as cola.py, without Trainer.

    accelerate launch recipes/cola_no_trainer.py
    accelerate launch --mixed_precision bf16 recipes/cola_no_trainer.py --data_dir path/to/cola/raw

It shows where each part of the toolkit goes in a loop of your own: `watch_loop` is what watches the training.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, EvalPrediction, get_scheduler
from transformers.integrations.integration_utils import rewrite_logs

from bert_toolkit import compute_classification_metrics, watch_loop
from bert_toolkit.data.cola import load_cola
from bert_toolkit.reporting import overview
from bert_toolkit.reporting.classification import write_classifier_report
from bert_toolkit.reporting.finished_run import FinishedLoop, tell_what_is_there
from bert_toolkit.reporting.reload_check import check_same_classes
from bert_toolkit.training.arguments import RunArguments, parse_arguments
from bert_toolkit.training.evaluation import FinalPredictions
from bert_toolkit.training.launching import open_run, prepare_processes, run_recipe
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
from bert_toolkit.training.loading import load_classifier, load_tokenizer
from bert_toolkit.training.pretrained import choose_model
from bert_toolkit.training.rehearsal import check_max_length
from bert_toolkit.training.tokenized_rows import tokenize_corpus


@dataclass
class ColaArguments:
    """What to fine-tune on what, and how."""

    dataset: str = field(default="auto", metadata={"help": "auto, hub (nyu-mll/glue, cola) or sample"})
    data_dir: str | None = field(default=None, metadata={"help": "folder in CoLA's raw layout; forces that data"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "forces this model: folder or hub name"})
    output_dir: str = field(default="runs/cola_no_trainer", metadata={"help": "everything is written here"})
    batch_size: int = field(default=32, metadata={"help": "rows of a batch on each process"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches of an optimizer step"})
    num_train_epochs: int = field(default=4, metadata={"help": "passes over the training rows"})
    learning_rate: float = field(default=1e-4, metadata={"help": "peak rate; 2e-5 suits bert-base"})
    weight_decay: float = field(default=0.01, metadata={"help": "on all but biases and LayerNorm"})
    warmup_share: float = field(default=0.1, metadata={"help": "fraction of the steps that warm up"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip the gradient's norm to this"})
    max_length: int = field(default=64, metadata={"help": "longer sentences are cut to this number of tokens"})
    seed: int = field(default=42, metadata={"help": "of weights, order and dropout"})


def main() -> None:
    prepare_processes()
    cola, run = parse_arguments([ColaArguments, RunArguments], {})
    accumulation, output_dir = cola.gradient_accumulation_steps, cola.output_dir
    accelerator = Accelerator(gradient_accumulation_steps=accumulation, log_with="tensorboard", project_dir=output_dir)
    processes, is_main = accelerator.num_processes, accelerator.is_main_process
    open_run(run, output_dir, accelerator.device, processes, is_main, cola.seed)
    accelerator.init_trackers("runs")

    # data
    corpus = load_cola(cola.dataset, cola.data_dir, None, cola.seed)
    model_name, model_description = choose_model(cola.model_name_or_path)
    tokenizer = load_tokenizer(model_name)
    corpus = tokenize_corpus(corpus, tokenizer, cola.max_length, cola.seed, run.max_train_samples)
    lengths, columns = corpus.train["length"][:], [*tokenizer.model_input_names, "label"]
    train, validation, test = (r.select_columns(columns) for r in (corpus.train, corpus.validation, corpus.test))
    grouped = LengthGroupedRows(train, lengths, cola.batch_size * processes, cola.seed)
    batches = partial(DataLoader, batch_size=cola.batch_size, collate_fn=DataCollatorWithPadding(tokenizer))

    # model
    model = load_classifier(model_name, corpus, "toolkit")
    check_max_length(cola.max_length, tokenizer, model)
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1]
    others = [p for name, p in model.named_parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": cola.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=cola.learning_rate, fused=True)
    train_batches = batches(grouped)
    steps = cola.num_train_epochs * math.ceil(len(train_batches) / (processes * accumulation))
    warmup_steps = int(steps * cola.warmup_share) * processes  # accelerate steps the schedule once for each process
    schedule = get_scheduler("linear", optimizer, warmup_steps, steps * processes)
    model, optimizer, schedule, train_batches, validation_batches, test_batches = accelerator.prepare(
        model, optimizer, schedule, train_batches, batches(validation), batches(test)
    )
    facts = {"data": corpus.description, "model": model_description, "learning rate": cola.learning_rate}
    facts["device"] = overview.device_in_words(accelerator.device, processes, accelerator.mixed_precision)
    if is_main:
        overview.print_settings(facts, "CoLA fine-tuning without Trainer")
        overview.print_token_lengths(lengths, cola.max_length, sum(corpus.train["truncated"][:]))
        overview.print_parameters(accelerator.unwrap_model(model))

    # training
    plan = {"output_dir": output_dir, "total_steps": steps, "schedule": schedule, "tokenizer": tokenizer}
    watching = watch_loop(model, optimizer, run.monitor_every, run.training_health, report_to=accelerator.log, **plan)
    logged = []

    def log(values: dict[str, float], step: int) -> None:
        accelerator.log(rewrite_logs(values), step)  # `loss` as `train/loss`, `eval_accuracy` as `eval/accuracy`
        logged.append({**values, "step": step})

    step, progress = 0, tqdm(total=steps, desc="training", disable=not is_main)
    with watching as watched:
        for epoch in range(cola.num_train_epochs):
            model.train()
            grouped.set_epoch(epoch)
            for batch in train_batches:
                with accelerator.accumulate(model):
                    loss = model(**batch).loss
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), cola.max_grad_norm)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    step += 1
                    progress.update()
                    if step % 10 == 0:
                        log({"loss": loss.item(), "learning_rate": schedule.get_last_lr()[0]}, step)
            scores = compute_classification_metrics(predict(accelerator, model, validation_batches))
            log({f"eval_{name}": value for name, value in scores.items()}, step)
            watched.log_evaluation(scores)
            mcc = scores["matthews_correlation"]
            accelerator.print(f"epoch {epoch + 1}: validation Matthews correlation {mcc:.4f}")
    progress.close()

    # evaluation
    predicted = predict(accelerator, model, test_batches)
    scores = compute_classification_metrics(predicted) | {f"validation_{name}": of for name, of in scores.items()}

    # save
    for tracker in accelerator.trackers:  # end_training() would destroy the process group, which is still needed
        tracker.finish()
    weights = accelerator.get_state_dict(model)
    accelerator.unwrap_model(model).save_pretrained(output_dir, is_main_process=is_main, state_dict=weights)
    if is_main:
        tokenizer.save_pretrained(output_dir)
        words = {"title": "CoLA acceptability", "summary": "Tells acceptable from unacceptable English sentences."}
        results = {"facts": facts, "scores": scores, "curves": ["matthews_correlation", "accuracy"]}
        finished = FinishedLoop(output_dir, step, logged, watched, model_name, **words, **results)
        texts = {name: corpus.test[name][:] for name in ("source", "sentence")}
        write_classifier_report(finished, corpus, FinalPredictions(*predicted, {}), texts)
    accelerator.wait_for_everyone()
    reloaded = AutoModelForSequenceClassification.from_pretrained(output_dir).to(accelerator.device)
    check_same_classes(predicted, predict(accelerator, reloaded, test_batches), output_dir)
    tell_what_is_there(output_dir, AutoModelForSequenceClassification, is_main)


@torch.no_grad()
def predict(accelerator: Accelerator, model: torch.nn.Module, batches: DataLoader) -> EvalPrediction:
    """Logits and true class ids of all rows, each once, on every process."""
    model.eval()
    gathered = []
    for batch in batches:
        with accelerator.autocast():
            logits = model(**batch).logits.float()
        gathered.append([part.cpu() for part in accelerator.gather_for_metrics((logits, batch["labels"]))])
    return EvalPrediction(*(torch.cat(parts).numpy() for parts in zip(*gathered, strict=True)))


if __name__ == "__main__":
    run_recipe(main)
