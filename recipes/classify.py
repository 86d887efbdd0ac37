"""Fine-tunes BERT to classify anybody's texts: one class a text, several labels at once, or a number to predict.

    accelerate launch recipes/classify.py --train_data reviews.csv
    accelerate launch recipes/classify.py --train_data pairs.tsv --text_columns premise hypothesis --label_columns gold
    accelerate launch recipes/classify.py --train_data folder_of_classes --test_fraction 0.1 --mixed_precision bf16
    accelerate launch recipes/classify.py --hub_dataset nyu-mll/glue --hub_config mrpc

Data are CSV, TSV, JSON, JSON lines or Parquet files, folders with a folder of text files for each class, or a dataset
on the hub; docs/classify.md shows each. Every flag of `TrainingArguments` works. `python -m bert_toolkit.predict`
labels other files with the saved model.
"""

from dataclasses import dataclass, field

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
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
    matthews_correlation_interval,
)
from bert_toolkit.callbacks.batch_losses import BatchLossCallback
from bert_toolkit.callbacks.token_counter import TokenCounterCallback
from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.data.labeled_tables import load_labeled_tables
from bert_toolkit.data.labels import REGRESSION, SINGLE
from bert_toolkit.metrics.task_scores import METRICS
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
from bert_toolkit.training.loading import load_pretrained, model_type_of
from bert_toolkit.training.pretrained import choose_model


@dataclass
class ClassifyArguments:
    """What to fine-tune on what."""

    train_data: str | None = field(default=None, metadata={"help": "a table file, or a folder of classes"})
    validation_data: str | None = field(default=None, metadata={"help": "likewise; default: split off train_data"})
    test_data: str | None = field(default=None, metadata={"help": "likewise; default: the validation rows"})
    hub_dataset: str | None = field(default=None, metadata={"help": "a dataset on the hub instead of train_data"})
    hub_config: str | None = field(default=None, metadata={"help": "configuration of hub_dataset"})
    text_columns: list[str] | None = field(default=None, metadata={"help": "one name, or two for pairs of texts"})
    label_columns: list[str] | None = field(default=None, metadata={"help": "one name, or several columns of 0 and 1"})
    problem_type: str = field(
        default="auto",
        metadata={"help": "single_label_classification, multi_label_classification, regression or auto"},
    )
    label_separator: str | None = field(
        default=None, metadata={"help": "what stands between several labels of a cell"}
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "share of train_data that validates"})
    test_fraction: float = field(default=0.0, metadata={"help": "share of train_data that is tested"})
    delimiter: str | None = field(default=None, metadata={"help": "between fields of CSV and TSV: a character or tab"})
    quoted: bool | None = field(default=None, metadata={"help": "quotes enclose fields; default: in CSV, not in TSV"})
    encoding: str = field(default="utf-8", metadata={"help": "of text files"})
    column_names: list[str] | None = field(default=None, metadata={"help": "for CSV and TSV files without a header"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "forces this model: folder or hub name"})
    implementation: str = field(
        default="auto", metadata={"help": "toolkit (ToolkitBert), transformers, or auto: toolkit where it is a BERT"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python files that lie beside the model"})
    max_length: int = field(default=128, metadata={"help": "longer texts are cut to this number of tokens"})
    monitor_every: int = field(default=50, metadata={"help": "observe gradients and updates every N steps; 0: never"})
    training_health: bool = field(default=True, metadata={"help": "name faults of the training as they appear"})
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first N shuffled rows"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace an earlier run in output_dir"})
    cpu_threads: int | None = field(default=None, metadata={"help": "threads of each process; default: all cores"})


DEFAULTS = {
    "output_dir": "runs/classify",
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
    "metric_for_best_model": "auto",  # by the type of the labels, see METRICS
    "logging_steps": 10,
    "report_to": "tensorboard",
    "use_cpu": not torch.accelerator.is_available(),
    "dataloader_pin_memory": torch.accelerator.is_available(),
}
LEARNING_RATES = {"base and larger": 2e-5, "smaller": 1e-4}  # as for CoLA


def tokenize(rows: dict, tokenizer, max_length: int) -> dict:
    encoded = tokenizer(rows["text"], rows.get("text_pair"), truncation=True, max_length=max_length)
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    encoded["truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
    return encoded


def main() -> None:
    prepare_processes()
    classify, arguments = parse_arguments([ClassifyArguments, TrainingArguments], DEFAULTS)
    use_cpu_threads(classify.cpu_threads, arguments.device)
    check_world_size(arguments.world_size)
    resume = arguments.resume_from_checkpoint is not None
    claim_output_dir(arguments.output_dir, classify.overwrite_output_dir, resume, arguments.process_index == 0)
    set_seed(arguments.seed)

    # data
    corpus, columns = load_labeled_tables(
        classify.train_data,
        classify.validation_data,
        classify.test_data,
        classify.hub_dataset,
        classify.hub_config,
        classify.text_columns,
        classify.label_columns,
        classify.problem_type,
        classify.label_separator,
        classify.validation_fraction,
        classify.test_fraction,
        arguments.seed,
        delimiter=classify.delimiter,
        quoted=classify.quoted,
        encoding=classify.encoding,
        column_names=classify.column_names,
    )
    model_name, model_description = choose_model(classify.model_name_or_path)
    tokenizer = load_pretrained(AutoTokenizer, model_name, classify.trust_remote_code)
    if tokenizer.pad_token is None:
        raise InputError(f"{model_name} has no padding token, so texts cannot form a batch: choose an encoder")

    # model
    model = load_classifier(model_name, classify, corpus)
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", classify.max_length))
    if not 4 < classify.max_length <= longest:
        raise InputError(f"`max_length` must lie in 5 to {longest} for {model_name}, got {classify.max_length}")
    if arguments.learning_rate is None:
        size = "base and larger" if model.config.hidden_size >= 768 else "smaller"
        arguments.learning_rate = LEARNING_RATES[size]
    compute_metrics, best, curves = METRICS[corpus.problem_type]
    if arguments.metric_for_best_model == "auto":
        arguments.metric_for_best_model = best
    elif arguments.metric_for_best_model.removeprefix("eval_") not in ("loss", *curves):
        raise InputError(
            f"`metric_for_best_model` must be loss, {', '.join(curves)} for {corpus.problem_type}, got "
            f"{arguments.metric_for_best_model}"
        )
    # what a pipeline and bert_toolkit.predict need to know of the data
    tokenizer.model_max_length = classify.max_length
    model.config.text_columns = list(columns.text)

    with arguments.main_process_first(desc="tokenization"):
        train, validation, test = (
            split.map(tokenize, batched=True, fn_kwargs={"tokenizer": tokenizer, "max_length": classify.max_length})
            for split in (corpus.train, corpus.validation, corpus.test)
        )
    if classify.max_train_samples is not None:
        train = train.shuffle(seed=arguments.seed).select(range(min(classify.max_train_samples, len(train))))

    # arguments
    if arguments.process_index == 0:
        overview.print_settings(
            {
                "data": corpus.description,
                "columns": columns.description,
                **{f"remark {number}": remark for number, remark in enumerate(corpus.remarks, start=1)},
                "model": model_description,
                "device": overview.describe_device(arguments),
                "output": arguments.output_dir,
            },
            "Text classification",
        )
        labels = {"train": train["label"][:], "validation": validation["label"][:], "test": test["label"][:]}
        if corpus.problem_type == REGRESSION:
            overview.print_number_spread(labels)
        else:
            overview.print_class_balance(labels, corpus.label_names)
        overview.print_token_lengths(train["length"][:], classify.max_length, sum(train["truncated"][:]))
        overview.print_parameters(model)

    # trainer
    tokens, losses = TokenCounterCallback(), BatchLossCallback()
    health = TrainingHealthCallback() if classify.training_health else None
    rows_of_a_pass = arguments.train_batch_size * arguments.world_size
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=LengthGroupedRows(train, train["length"], rows_of_a_pass, arguments.seed),
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=[tokens, losses, *([health] if health else []), *resume_callbacks()],
    )
    if classify.monitor_every:
        GradientFlowCallback(classify.monitor_every).attach(trainer)
        UpdateRatioCallback(classify.monitor_every).attach(trainer)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(arguments.output_dir, arguments.resume_from_checkpoint))

    # evaluation
    validation_metrics = trainer.evaluate(metric_key_prefix="validation")
    arguments.train_sampling_strategy = "sequential"  # with group_by_length Trainer would group these rows too
    output = trainer.predict(test)
    scores = compute_metrics(EvalPrediction(output.predictions, output.label_ids))
    if corpus.problem_type == SINGLE:
        predicted = output.predictions.argmax(-1)
        interval = matthews_correlation_interval(predicted, output.label_ids, seed=arguments.seed)
        scores["matthews_correlation_interval_95"] = interval
    scores |= {f"validation_{name}": validation_metrics[f"validation_{name}"] for name in curves}

    # save
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_classifier_outputs(
            trainer,
            title="Text classification",
            summary=f"Fine-tuned on {corpus.description}. " + " ".join(corpus.remarks),
            label_names=corpus.label_names,
            texts={name: test[name][:] for name in ("place", "text", "text_pair") if name in test.column_names},
            logits=output.predictions,
            labels=output.label_ids,
            scores=scores,
            facts={
                "data": corpus.description,
                "columns": columns.description,
                "remarks": " ".join(corpus.remarks),
                "model": model_description,
            },
            tokens=tokens,
            health=health,
            curves=curves,
            losses=losses,
            problem_type=corpus.problem_type,
        )
    arguments.distributed_state.wait_for_everyone()
    check_reload(trainer, AutoModelForSequenceClassification, arguments.output_dir, test, output.predictions)
    if trainer.is_world_process_zero():
        print(f"Saved and reloaded with identical predictions: {arguments.output_dir}")


def load_classifier(model_name: str, classify: ClassifyArguments, corpus: CorpusSplits):
    implementation = classify.implementation
    if implementation == "auto":
        implementation = "toolkit" if model_type_of(model_name) in ("bert", "toolkit_bert") else "transformers"
    classes = {
        "toolkit": ToolkitBertForSequenceClassification,
        "transformers": AutoModelForSequenceClassification,
    }
    if implementation not in classes:
        raise InputError(f"`implementation` must be auto, toolkit or transformers, got {implementation}")
    model = load_pretrained(
        classes[implementation],
        model_name,
        classify.trust_remote_code,
        num_labels=len(corpus.label_names),
        id2label=dict(enumerate(corpus.label_names)),
        label2id={name: number for number, name in enumerate(corpus.label_names)},
        problem_type=corpus.problem_type,
        use_safetensors=True,
    )
    if implementation == "transformers":
        # their classifiers take the count of labels and ignore it, so that accumulation would multiply gradients
        model.accepts_loss_kwargs = False
    return model


if __name__ == "__main__":
    run_recipe(main)
