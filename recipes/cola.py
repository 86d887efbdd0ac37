"""Fine-tunes BERT on CoLA, the Corpus of Linguistic Acceptability, and reports the Matthews correlation.

    accelerate launch recipes/cola.py
    accelerate launch recipes/cola.py --data_dir path/to/cola/raw --mixed_precision bf16
    accelerate launch recipes/cola.py settings.yaml --learning_rate 3e-5

Without arguments it takes the real corpus and google-bert/bert-base-uncased from the hub where one answers, otherwise
the sample and the weights that were installed with `bert_toolkit[offline]`. Every flag of `TrainingArguments` works.
"""

from dataclasses import dataclass, field

from transformers import DataCollatorWithPadding, Trainer

from bert_toolkit import (
    compute_classification_metrics,
    flat_accuracy,
    matthews_correlation,
    matthews_correlation_interval,
)
from bert_toolkit.data.cola import load_cola
from bert_toolkit.reporting.classification import finish_classifier
from bert_toolkit.reporting.figures import draw_batch_scores
from bert_toolkit.reporting.finished_run import FinishedRun
from bert_toolkit.reporting.overview import print_classifier_overview
from bert_toolkit.training.arguments import ClassifierRunArguments
from bert_toolkit.training.class_weights import class_weighted_loss
from bert_toolkit.training.evaluation import class_logits, longest_first, predict_splits
from bert_toolkit.training.hyperparameter_search import search_hyperparameters
from bert_toolkit.training.launching import run_recipe, start_recipe
from bert_toolkit.training.layer_wise_learning_rate import use_layer_wise_learning_rates
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
from bert_toolkit.training.loading import load_classifier, load_tokenizer
from bert_toolkit.training.pretrained import choose_model
from bert_toolkit.training.rehearsal import check_token_ids, rehearse
from bert_toolkit.training.tokenized_rows import tokenize_corpus
from bert_toolkit.training.trainer_flags import check_classifier_flags, choose_learning_rate
from bert_toolkit.training.trainer_run import add_run_callbacks, train_and_save


@dataclass
class ColaArguments:
    """What to fine-tune on what."""

    dataset: str = field(default="auto", metadata={"help": "auto, hub (nyu-mll/glue, cola) or sample"})
    data_dir: str | None = field(default=None, metadata={"help": "folder in CoLA's raw layout; forces that data"})
    validation_fraction: float | None = field(
        default=None, metadata={"help": "split this fraction off the training rows for validation"}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "forces this model: folder or hub name"})
    implementation: str = field(
        default="auto", metadata={"help": "toolkit (ToolkitBert), transformers, or auto: toolkit where it is a BERT"}
    )
    max_length: int = field(default=64, metadata={"help": "longer sentences are cut to this number of tokens"})
    layer_wise_decay: float = field(default=1.0, metadata={"help": "learning rate factor from a layer to the lower"})


DEFAULTS = {
    "output_dir": "runs/cola",
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
    "metric_for_best_model": "matthews_correlation",
}


def main() -> None:
    cola, run, arguments = start_recipe(ColaArguments, DEFAULTS, ClassifierRunArguments)

    # data
    corpus = load_cola(cola.dataset, cola.data_dir, cola.validation_fraction, arguments.seed)
    model_name, model_description = choose_model(cola.model_name_or_path)
    tokenizer = load_tokenizer(model_name)

    # model
    model = load_classifier(model_name, corpus, cola.implementation)
    rehearse(model, tokenizer, corpus, cola.max_length, arguments)
    corpus = tokenize_corpus(corpus, tokenizer, cola.max_length, arguments.seed, run.max_train_samples)
    check_token_ids(model, corpus.train, corpus.validation, corpus.test)

    # arguments
    # bert-base: Devlin et al. 2019. Smaller models want larger steps: chosen by validation MCC on a split of CoLA's
    # training rows, see benchmarks/README.md.
    choose_learning_rate(arguments, model, wide=2e-5, narrow=1e-4)
    check_classifier_flags(arguments, corpus, ["accuracy", "matthews_correlation"])
    facts = {"data": corpus.description, "model": model_description}
    print_classifier_overview("CoLA fine-tuning", facts, corpus, cola.max_length, model, arguments)

    # trainer
    rows_of_a_pass = arguments.train_batch_size * arguments.world_size
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=LengthGroupedRows(corpus.train, corpus.train["length"], rows_of_a_pass, arguments.seed),
        eval_dataset=longest_first(corpus.validation, arguments.dataloader_drop_last),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_classification_metrics,
        preprocess_logits_for_metrics=class_logits,
        compute_loss_func=class_weighted_loss(corpus, run.class_weights, arguments.label_smoothing_factor),
    )
    callbacks = add_run_callbacks(trainer, run)
    if cola.layer_wise_decay != 1.0:
        use_layer_wise_learning_rates(trainer, cola.layer_wise_decay)
    facts |= search_hyperparameters(trainer, run.hyperparameter_search)
    train_and_save(trainer)

    # evaluation
    predictions = predict_splits(trainer, corpus)
    predicted, labels = predictions.logits.argmax(-1), predictions.labels
    batch = arguments.per_device_eval_batch_size
    batch_scores = [
        matthews_correlation(predicted[start : start + batch], labels[start : start + batch])
        for start in range(0, len(labels), batch)
    ]
    scores = {
        "accuracy": flat_accuracy(predicted, labels),
        "matthews_correlation": matthews_correlation(predicted, labels),
        "matthews_correlation_interval_95": matthews_correlation_interval(predicted, labels, seed=arguments.seed),
        "validation_accuracy": predictions.validation_metrics["validation_accuracy"],
        "validation_matthews_correlation": predictions.validation_metrics["validation_matthews_correlation"],
        "matthews_correlation_by_batch": batch_scores,
    }
    by_batch = draw_batch_scores(
        batch_scores,
        scores["matthews_correlation"],
        "Matthews correlation",
        f"CoLA: test rows in batches of {batch}",
    )

    # report
    finished = FinishedRun(
        trainer,
        callbacks,
        title="CoLA acceptability",
        summary="Tells acceptable from unacceptable English sentences.",
        facts=facts,
        scores=scores,
        curves=["matthews_correlation", "accuracy"],
        drawn={"matthews_correlation_by_batch": by_batch},
    )
    texts = {"source": corpus.test["source"][:], "sentence": corpus.test["sentence"][:]}
    finish_classifier(finished, corpus, predictions, texts)


if __name__ == "__main__":
    run_recipe(main)
