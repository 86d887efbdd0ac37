"""Fine-tunes BERT on CoLA, the Corpus of Linguistic Acceptability, and reports the Matthews correlation.

    accelerate launch recipes/cola.py
    accelerate launch recipes/cola.py --data_dir path/to/cola/raw --mixed_precision bf16
    accelerate launch recipes/cola.py settings.yaml --learning_rate 3e-5

Without arguments it takes the real corpus and google-bert/bert-base-uncased from the hub where one answers, otherwise
the sample and the weights that were installed with `bert_toolkit[offline]`. Every flag of `TrainingArguments` works.
"""

from dataclasses import dataclass, field

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from bert_toolkit import (
    GradientFlowCallback,
    InputError,
    ToolkitBertForSequenceClassification,
    TrainingHealthCallback,
    UpdateRatioCallback,
    compute_classification_metrics,
    flat_accuracy,
    matthews_correlation,
    matthews_correlation_interval,
)
from bert_toolkit.callbacks.token_counter import TokenCounterCallback
from bert_toolkit.data.cola import load_cola
from bert_toolkit.reporting import overview
from bert_toolkit.reporting.classification import write_classifier_outputs
from bert_toolkit.reporting.figures import draw_batch_scores
from bert_toolkit.reporting.reload_check import check_reload
from bert_toolkit.training.checkpoints import checkpoint_to_resume, resume_callbacks
from bert_toolkit.training.launching import (
    check_world_size,
    claim_output_dir,
    parse_arguments,
    prepare_processes,
    run_recipe,
    use_cpu_threads,
)
from bert_toolkit.training.layer_wise_learning_rate import layer_wise_parameter_groups
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
from bert_toolkit.training.pretrained import choose_model


@dataclass
class ColaArguments:
    """What to fine-tune on what."""

    dataset: str = field(default="auto", metadata={"help": "auto, hub (nyu-mll/glue, cola) or sample"})
    data_dir: str | None = field(default=None, metadata={"help": "folder in CoLA's raw layout; forces that data"})
    validation_fraction: float | None = field(
        default=None, metadata={"help": "split this share off the training rows for validation"}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "forces this model: folder or hub name"})
    implementation: str = field(default="toolkit", metadata={"help": "toolkit (ToolkitBert) or transformers"})
    max_length: int = field(default=64, metadata={"help": "longer sentences are cut to this number of tokens"})
    layer_wise_decay: float = field(default=1.0, metadata={"help": "learning rate factor from a layer to the lower"})
    monitor_every: int = field(default=50, metadata={"help": "observe gradients and updates every N steps; 0: never"})
    training_health: bool = field(default=True, metadata={"help": "name faults of the training as they appear"})
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first N shuffled rows"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace an earlier run in output_dir"})
    cpu_threads: int | None = field(default=None, metadata={"help": "threads of each process; default: all cores"})


DEFAULTS = {
    "output_dir": "runs/cola",
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "num_train_epochs": 4,
    "learning_rate": None,  # by the size of the model, see LEARNING_RATES
    "weight_decay": 0.01,  # Trainer leaves biases and LayerNorm out
    "warmup_steps": 0.1,  # a share of all steps
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "seed": 42,
    "train_sampling_strategy": "sequential",  # the rows shuffle themselves, see LengthGroupedRows
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "matthews_correlation",
    "logging_steps": 10,
    "report_to": "tensorboard",
    "use_cpu": not torch.accelerator.is_available(),
    "dataloader_pin_memory": torch.accelerator.is_available(),
}
# bert-base: Devlin et al. 2019. Smaller models want larger steps: chosen by validation MCC on a split of CoLA's
# training rows, see benchmarks/README.md.
LEARNING_RATES = {"base and larger": 2e-5, "smaller": 1e-4}


def tokenize(rows: dict, tokenizer, max_length: int) -> dict:
    encoded = tokenizer(rows["sentence"], truncation=True, max_length=max_length)
    whole = tokenizer(rows["sentence"], return_attention_mask=False, return_token_type_ids=False, verbose=False)
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    encoded["truncated"] = [len(ids) > max_length for ids in whole["input_ids"]]
    return encoded


def main() -> None:
    prepare_processes()
    cola, arguments = parse_arguments([ColaArguments, TrainingArguments], DEFAULTS)
    use_cpu_threads(cola.cpu_threads, arguments.device)
    check_world_size(arguments.world_size)
    resume = arguments.resume_from_checkpoint is not None
    claim_output_dir(arguments.output_dir, cola.overwrite_output_dir, resume, arguments.process_index == 0)
    set_seed(arguments.seed)

    # data
    corpus = load_cola(cola.dataset, cola.data_dir, cola.validation_fraction, arguments.seed)
    model_name, model_description = choose_model(cola.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    with arguments.main_process_first(desc="tokenization"):
        train, validation, test = (
            split.map(tokenize, batched=True, fn_kwargs={"tokenizer": tokenizer, "max_length": cola.max_length})
            for split in (corpus.train, corpus.validation, corpus.test)
        )
    if cola.max_train_samples is not None:
        train = train.shuffle(seed=arguments.seed).select(range(min(cola.max_train_samples, len(train))))

    # model
    model = load_classifier(model_name, cola.implementation, corpus.label_names)
    if cola.max_length > model.config.max_position_embeddings:
        raise InputError(
            f"`max_length` must be at most {model.config.max_position_embeddings}, the positions of {model_name}, "
            f"got {cola.max_length}"
        )
    if arguments.learning_rate is None:
        size = "base and larger" if model.config.hidden_size >= 768 else "smaller"
        arguments.learning_rate = LEARNING_RATES[size]

    # arguments
    if arguments.process_index == 0:
        overview.print_settings(
            {
                "data": corpus.description,
                **{f"remark {number}": remark for number, remark in enumerate(corpus.remarks, start=1)},
                "model": model_description,
                "device": overview.describe_device(arguments),
                "output": arguments.output_dir,
            },
            "CoLA fine-tuning",
        )
        splits = {"train": train, "validation": validation, "test": test}
        overview.print_class_balance({name: rows["label"][:] for name, rows in splits.items()}, corpus.label_names)
        overview.print_token_lengths(train["length"][:], cola.max_length, sum(train["truncated"][:]))
        overview.print_parameters(model)

    # trainer
    tokens = TokenCounterCallback()
    health = TrainingHealthCallback() if cola.training_health else None
    rows_of_a_pass = arguments.train_batch_size * arguments.world_size
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=LengthGroupedRows(train, train["length"], rows_of_a_pass, arguments.seed),
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_classification_metrics,
        callbacks=[tokens, *([health] if health else []), *resume_callbacks()],
    )
    if cola.monitor_every:
        GradientFlowCallback(cola.monitor_every).attach(trainer)
        UpdateRatioCallback(cola.monitor_every).attach(trainer)
    if cola.layer_wise_decay != 1.0:
        optimizer_class, optimizer_settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        optimizer_settings["params"] = layer_wise_parameter_groups(
            model,
            arguments.learning_rate,
            cola.layer_wise_decay,
            arguments.weight_decay,
            trainer.get_decay_parameter_names(model),
        )
        trainer.optimizer_cls_and_kwargs = (optimizer_class, optimizer_settings)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(arguments.output_dir, arguments.resume_from_checkpoint))

    # evaluation
    validation_metrics = trainer.evaluate(metric_key_prefix="validation")
    arguments.train_sampling_strategy = "sequential"  # with group_by_length Trainer would group these rows too
    output = trainer.predict(test)
    predicted, labels = output.predictions.argmax(-1), output.label_ids
    batch = arguments.per_device_eval_batch_size
    batch_scores = [
        matthews_correlation(predicted[start : start + batch], labels[start : start + batch])
        for start in range(0, len(labels), batch)
    ]
    scores = {
        "accuracy": flat_accuracy(predicted, labels),
        "matthews_correlation": matthews_correlation(predicted, labels),
        "matthews_correlation_interval_95": matthews_correlation_interval(predicted, labels, seed=arguments.seed),
        "validation_accuracy": validation_metrics["validation_accuracy"],
        "validation_matthews_correlation": validation_metrics["validation_matthews_correlation"],
        "matthews_correlation_by_batch": batch_scores,
    }

    # save
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_classifier_outputs(
            trainer,
            title="CoLA acceptability",
            summary="Tells acceptable from unacceptable English sentences. " + " ".join(corpus.remarks),
            label_names=corpus.label_names,
            texts={"source": test["source"][:], "sentence": test["sentence"][:]},
            logits=output.predictions,
            labels=output.label_ids,
            scores=scores,
            facts={"data": corpus.description, "remarks": " ".join(corpus.remarks), "model": model_description},
            tokens=tokens,
            health=health,
            curves=["matthews_correlation", "accuracy"],
            drawn={
                "matthews_correlation_by_batch": draw_batch_scores(
                    batch_scores,
                    scores["matthews_correlation"],
                    "Matthews correlation",
                    f"CoLA: test rows in batches of {batch}",
                )
            },
        )
    arguments.distributed_state.wait_for_everyone()
    check_reload(trainer, AutoModelForSequenceClassification, arguments.output_dir, test, output.predictions)
    if trainer.is_world_process_zero():
        print(f"Saved and reloaded with identical predictions: {arguments.output_dir}")


def load_classifier(model_name: str, implementation: str, label_names: list[str]):
    classes = {
        "toolkit": ToolkitBertForSequenceClassification,
        "transformers": AutoModelForSequenceClassification,
    }
    if implementation not in classes:
        raise InputError(f"`implementation` must be toolkit or transformers, got {implementation}")
    return classes[implementation].from_pretrained(
        model_name,
        num_labels=len(label_names),
        id2label=dict(enumerate(label_names)),
        label2id={name: number for number, name in enumerate(label_names)},
        use_safetensors=True,
    )


if __name__ == "__main__":
    run_recipe(main)
