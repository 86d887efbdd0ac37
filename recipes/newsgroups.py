"""Sorts posts into newsgroups with a fine-tuned BERT, its training watched in TensorBoard.

    accelerate launch recipes/newsgroups.py --data_dir path/to/20news-bydate.tar.gz
    accelerate launch recipes/newsgroups.py --data_dir path/to/20news-bydate.tar.gz --warmup_steps 0.7
    tensorboard --logdir runs/newsgroups/runs

The four groups alt.atheism, comp.graphics, sci.space and talk.religion.misc are a well-known small task; pass
`--categories` for others, `--categories all` for all twenty. `--warmup_steps` below 1 is the fraction of the steps
that warm up. Without `--data_dir` the posts come from scikit-learn's cache or from the hub. Every flag of
`TrainingArguments` works.
"""

from dataclasses import dataclass, field

from transformers import DataCollatorWithPadding, Trainer

from bert_toolkit import (
    compute_classification_metrics,
    flat_accuracy,
    matthews_correlation,
    matthews_correlation_interval,
)
from bert_toolkit.data.newsgroups import CATEGORIES, load_newsgroups
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
from bert_toolkit.training.trainer_flags import check_classifier_flags
from bert_toolkit.training.trainer_run import add_run_callbacks, train_and_save


@dataclass
class NewsgroupsArguments:
    """What to fine-tune on what."""

    dataset: str = field(default="auto", metadata={"help": "auto, scikit-learn (its cache) or hub"})
    data_dir: str | None = field(
        default=None, metadata={"help": "folder of 20news-bydate-train and -test, or 20news-bydate*.tar.gz"}
    )
    categories: list[str] = field(
        default_factory=lambda: list(CATEGORIES), metadata={"help": "newsgroups to tell apart, or all"}
    )
    remove: list[str] = field(
        default_factory=list, metadata={"help": "headers, footers, quotes: parts that give a group away"}
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "fraction of the training posts for validation"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "forces this model: folder or hub name"})
    max_length: int = field(default=256, metadata={"help": "longer posts are cut to this number of tokens"})


DEFAULTS = {
    "output_dir": "runs/newsgroups",
    "monitor_every": 10,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "num_train_epochs": 5,
    "learning_rate": 3e-5,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_strategy": "steps",
    "save_steps": 100,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
}


def main() -> None:
    newsgroups, run, arguments = start_recipe(NewsgroupsArguments, DEFAULTS, ClassifierRunArguments)

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
    tokenizer = load_tokenizer(model_name)

    # model
    model = load_classifier(model_name, corpus)
    rehearse(model, tokenizer, corpus, newsgroups.max_length, arguments)
    corpus = tokenize_corpus(corpus, tokenizer, newsgroups.max_length, arguments.seed, run.max_train_samples)
    check_token_ids(model, corpus.train, corpus.validation, corpus.test)

    # arguments
    check_classifier_flags(arguments, corpus, ["accuracy", "matthews_correlation"])
    facts = {"data": corpus.description, "model": model_description, "warm-up": arguments.warmup_steps}
    print_classifier_overview("20 newsgroups", facts, corpus, newsgroups.max_length, model, arguments)

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
    facts |= search_hyperparameters(trainer, run.hyperparameter_search)
    train_and_save(trainer)

    # evaluation
    predictions = predict_splits(trainer, corpus)
    predicted, labels = predictions.logits.argmax(-1), predictions.labels
    scores = {
        "accuracy": flat_accuracy(predicted, labels),
        "matthews_correlation": matthews_correlation(predicted, labels),
        "matthews_correlation_interval_95": matthews_correlation_interval(predicted, labels, seed=arguments.seed),
        "validation_accuracy": predictions.validation_metrics["validation_accuracy"],
        "validation_matthews_correlation": predictions.validation_metrics["validation_matthews_correlation"],
    }

    # report
    finished = FinishedRun(
        trainer,
        callbacks,
        title="20 newsgroups",
        summary="Sorts Usenet posts of 1993 into newsgroups.",
        facts=facts,
        scores=scores,
        curves=["accuracy", "matthews_correlation"],
    )
    finish_classifier(finished, corpus, predictions, texts={"post": corpus.test["source"][:]})


if __name__ == "__main__":
    run_recipe(main)
