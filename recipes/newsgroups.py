"""Sorts posts into newsgroups with a fine-tuned BERT, its training watched in TensorBoard.

    accelerate launch recipes/newsgroups.py --data_dir path/to/20news-bydate.tar.gz
    accelerate launch recipes/newsgroups.py --data_dir path/to/20news-bydate.tar.gz --warmup_steps 0.7
    tensorboard --logdir runs/newsgroups/runs

The four groups alt.atheism, comp.graphics, sci.space and talk.religion.misc are a well-known small task; pass
`--categories` for others. `--warmup_steps` below 1 is the share of the steps that warm up. Without `--data_dir` the
posts come from scikit-learn's cache or from the hub. Every flag of `TrainingArguments` works.
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
from bert_toolkit.data.newsgroups import CATEGORIES, load_newsgroups
from bert_toolkit.reporting import overview
from bert_toolkit.reporting.classification import write_classifier_outputs
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
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
from bert_toolkit.training.pretrained import choose_model


@dataclass
class NewsgroupsArguments:
    """What to fine-tune on what."""

    dataset: str = field(default="auto", metadata={"help": "auto, scikit-learn (its cache) or hub"})
    data_dir: str | None = field(
        default=None, metadata={"help": "folder of 20news-bydate-train and -test, or 20news-bydate*.tar.gz"}
    )
    categories: list[str] = field(
        default_factory=lambda: list(CATEGORIES), metadata={"help": "newsgroups to tell apart"}
    )
    remove: list[str] = field(
        default_factory=list, metadata={"help": "headers, footers, quotes: parts that give a group away"}
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "share of the training posts for validation"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "forces this model: folder or hub name"})
    max_length: int = field(default=256, metadata={"help": "longer posts are cut to this number of tokens"})
    monitor_every: int = field(default=10, metadata={"help": "observe gradients and updates every N steps; 0: never"})
    training_health: bool = field(default=True, metadata={"help": "name faults of the training as they appear"})
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first N shuffled rows"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace an earlier run in output_dir"})
    cpu_threads: int | None = field(default=None, metadata={"help": "threads of each process; default: all cores"})


DEFAULTS = {
    "output_dir": "runs/newsgroups",
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "num_train_epochs": 5,
    "learning_rate": 3e-5,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "seed": 42,
    "train_sampling_strategy": "sequential",  # the rows shuffle themselves, see LengthGroupedRows
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "logging_steps": 10,
    "report_to": "tensorboard",
    "use_cpu": not torch.accelerator.is_available(),
    "dataloader_pin_memory": torch.accelerator.is_available(),
}


def tokenize(rows: dict, tokenizer, max_length: int) -> dict:
    whole = tokenizer(rows["text"], return_attention_mask=False, return_token_type_ids=False, verbose=False)
    encoded = tokenizer(rows["text"], truncation=True, max_length=max_length)
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    encoded["truncated"] = [len(ids) > max_length for ids in whole["input_ids"]]
    return encoded


def main() -> None:
    prepare_processes()
    newsgroups, arguments = parse_arguments([NewsgroupsArguments, TrainingArguments], DEFAULTS)
    use_cpu_threads(newsgroups.cpu_threads, arguments.device)
    check_world_size(arguments.world_size)
    resume = arguments.resume_from_checkpoint is not None
    claim_output_dir(arguments.output_dir, newsgroups.overwrite_output_dir, resume, arguments.process_index == 0)
    set_seed(arguments.seed)

    # data
    corpus = load_newsgroups(
        newsgroups.dataset,
        newsgroups.data_dir,
        newsgroups.categories,
        newsgroups.remove,
        newsgroups.validation_fraction,
        arguments.seed,
    )
    model_name, model_description = choose_model(newsgroups.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    with arguments.main_process_first(desc="tokenization"):
        train, validation, test = (
            split.map(tokenize, batched=True, fn_kwargs={"tokenizer": tokenizer, "max_length": newsgroups.max_length})
            for split in (corpus.train, corpus.validation, corpus.test)
        )
    if newsgroups.max_train_samples is not None:
        train = train.shuffle(seed=arguments.seed).select(range(min(newsgroups.max_train_samples, len(train))))

    # model
    model = ToolkitBertForSequenceClassification.from_pretrained(
        model_name,
        num_labels=len(corpus.label_names),
        id2label=dict(enumerate(corpus.label_names)),
        label2id={name: number for number, name in enumerate(corpus.label_names)},
        use_safetensors=True,
    )
    if newsgroups.max_length > model.config.max_position_embeddings:
        raise InputError(
            f"`max_length` must be at most {model.config.max_position_embeddings}, the positions of {model_name}, "
            f"got {newsgroups.max_length}"
        )

    # arguments
    if arguments.process_index == 0:
        overview.print_settings(
            {
                "data": corpus.description,
                **{f"remark {number}": remark for number, remark in enumerate(corpus.remarks, start=1)},
                "model": model_description,
                "device": overview.describe_device(arguments),
                "warm-up": arguments.warmup_steps,
                "output": arguments.output_dir,
            },
            "20 newsgroups",
        )
        splits = {"train": train, "validation": validation, "test": test}
        overview.print_class_balance({name: rows["label"][:] for name, rows in splits.items()}, corpus.label_names)
        overview.print_token_lengths(train["length"][:], newsgroups.max_length, sum(train["truncated"][:]))
        overview.print_parameters(model)

    # trainer
    tokens = TokenCounterCallback()
    health = TrainingHealthCallback() if newsgroups.training_health else None
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
    if newsgroups.monitor_every:
        GradientFlowCallback(newsgroups.monitor_every).attach(trainer)
        UpdateRatioCallback(newsgroups.monitor_every).attach(trainer)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(arguments.output_dir, arguments.resume_from_checkpoint))

    # evaluation
    validation_metrics = trainer.evaluate(metric_key_prefix="validation")
    arguments.train_sampling_strategy = "sequential"  # with group_by_length Trainer would group these rows too
    output = trainer.predict(test)
    predicted, labels = output.predictions.argmax(-1), output.label_ids
    scores = {
        "accuracy": flat_accuracy(predicted, labels),
        "matthews_correlation": matthews_correlation(predicted, labels),
        "matthews_correlation_interval_95": matthews_correlation_interval(predicted, labels, seed=arguments.seed),
        "validation_accuracy": validation_metrics["validation_accuracy"],
        "validation_matthews_correlation": validation_metrics["validation_matthews_correlation"],
    }

    # save
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_classifier_outputs(
            trainer,
            title="20 newsgroups",
            summary="Sorts Usenet posts of 1993 into newsgroups. " + " ".join(corpus.remarks),
            label_names=corpus.label_names,
            texts={"post": test["source"][:]},
            logits=output.predictions,
            labels=labels,
            scores=scores,
            facts={
                "data": corpus.description,
                "remarks": " ".join(corpus.remarks),
                "model": model_description,
                "warm-up": arguments.warmup_steps,
            },
            tokens=tokens,
            health=health,
            curves=["accuracy", "matthews_correlation"],
        )
    arguments.distributed_state.wait_for_everyone()
    check_reload(trainer, AutoModelForSequenceClassification, arguments.output_dir, test, output.predictions)
    if trainer.is_world_process_zero():
        print(f"Saved and reloaded with identical predictions: {arguments.output_dir}")


if __name__ == "__main__":
    run_recipe(main)
