"""Fine-tunes BERT to classify anybody's texts: one class per text, several labels at once, or a number to predict.

    accelerate launch recipes/classify.py --train_data reviews.csv
    accelerate launch recipes/classify.py --train_data pairs.tsv --text_columns premise hypothesis --label_columns gold
    accelerate launch recipes/classify.py --train_data folder_of_classes --test_fraction 0.1 --mixed_precision bf16
    accelerate launch recipes/classify.py --hub_dataset nyu-mll/glue --hub_config mrpc

Data are CSV, TSV, JSON, JSON lines or Parquet files, folders with a folder of text files for each class, or a dataset
on the hub; docs/classify.md shows each. Every flag of `TrainingArguments` works. `python -m bert_toolkit.predict`
labels other files with the saved model.
"""

from dataclasses import dataclass, field

from transformers import DataCollatorWithPadding, EvalPrediction, Trainer

from bert_toolkit import matthews_correlation_interval
from bert_toolkit.data.labeled_tables import load_labeled_tables
from bert_toolkit.data.labels import SINGLE
from bert_toolkit.metrics.task_scores import METRICS
from bert_toolkit.reporting.classification import finish_classifier
from bert_toolkit.reporting.finished_run import FinishedRun
from bert_toolkit.reporting.overview import print_classifier_overview
from bert_toolkit.training.arguments import ClassifierRunArguments
from bert_toolkit.training.class_weights import class_weighted_loss
from bert_toolkit.training.evaluation import class_logits, longest_first, predict_splits
from bert_toolkit.training.hyperparameter_search import search_hyperparameters
from bert_toolkit.training.launching import run_recipe, start_recipe
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
from bert_toolkit.training.loading import load_classifier, load_tokenizer
from bert_toolkit.training.pretrained import choose_model
from bert_toolkit.training.rehearsal import check_token_ids, rehearse
from bert_toolkit.training.tokenized_rows import tokenize_corpus
from bert_toolkit.training.trainer_flags import check_classifier_flags, choose_best_metric, choose_learning_rate
from bert_toolkit.training.trainer_run import add_run_callbacks, train_and_save


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
        default="auto", metadata={"help": "auto, or {single,multi}_label_classification, or regression"}
    )
    label_separator: str | None = field(
        default=None, metadata={"help": "what stands between several labels of a cell"}
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "fraction of train_data that validates"})
    test_fraction: float = field(default=0.0, metadata={"help": "fraction of train_data that is tested"})
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


DEFAULTS = {
    "output_dir": "runs/classify",
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "num_train_epochs": 4,
    "learning_rate": None,  # by the size of the model, see below
    "weight_decay": 0.01,  # Trainer leaves biases and LayerNorm out
    "warmup_steps": 0.1,  # a fraction of all steps
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "auto",  # by the type of the labels, see METRICS
}


def main() -> None:
    classify, run, arguments = start_recipe(ClassifyArguments, DEFAULTS, ClassifierRunArguments)

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
    tokenizer = load_tokenizer(model_name, classify.trust_remote_code)

    # model
    model = load_classifier(model_name, corpus, classify.implementation, classify.trust_remote_code)
    rehearse(model, tokenizer, corpus, classify.max_length, arguments)
    corpus = tokenize_corpus(corpus, tokenizer, classify.max_length, arguments.seed, run.max_train_samples)
    check_token_ids(model, corpus.train, corpus.validation, corpus.test)
    # what a pipeline and bert_toolkit.predict need to know of the data
    tokenizer.model_max_length = classify.max_length
    model.config.text_columns = list(columns.text)

    # arguments
    compute_metrics, best, curves = METRICS[corpus.problem_type]
    choose_best_metric(arguments, best)
    check_classifier_flags(arguments, corpus, curves)
    choose_learning_rate(arguments, model, wide=2e-5, narrow=1e-4)  # as for CoLA
    facts = {"data": corpus.description, "columns": columns.description, "model": model_description}
    print_classifier_overview("Text classification", facts, corpus, classify.max_length, model, arguments)

    # trainer
    rows_of_a_pass = arguments.train_batch_size * arguments.world_size
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=LengthGroupedRows(corpus.train, corpus.train["length"], rows_of_a_pass, arguments.seed),
        eval_dataset=longest_first(corpus.validation, arguments.dataloader_drop_last),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=class_logits,
        compute_loss_func=class_weighted_loss(corpus, run.class_weights, arguments.label_smoothing_factor),
    )
    callbacks = add_run_callbacks(trainer, run, batch_losses=True)
    facts |= search_hyperparameters(trainer, run.hyperparameter_search)
    train_and_save(trainer)

    # evaluation
    predictions = predict_splits(trainer, corpus)
    scores = compute_metrics(EvalPrediction(predictions.logits, predictions.labels))
    if corpus.problem_type == SINGLE:
        predicted = predictions.logits.argmax(-1)
        interval = matthews_correlation_interval(predicted, predictions.labels, seed=arguments.seed)
        scores["matthews_correlation_interval_95"] = interval
    scores |= {f"validation_{name}": predictions.validation_metrics[f"validation_{name}"] for name in curves}

    # report
    finished = FinishedRun(
        trainer,
        callbacks,
        title="Text classification",
        summary=f"Fine-tuned on {corpus.description}.",
        facts=facts,
        scores=scores,
        curves=curves,
    )
    texts = {name: corpus.test[name][:] for name in ("place", "text", "text_pair") if name in corpus.test.features}
    finish_classifier(finished, corpus, predictions, texts, classify.trust_remote_code)


if __name__ == "__main__":
    run_recipe(main)
