"""Fine-tunes BERT to give every word a tag: names of persons and places (NER), parts of speech, anything per word.

    accelerate launch recipes/token_classification.py --train_data train.conll --validation_data dev.conll
    accelerate launch recipes/token_classification.py --train_data tagged.jsonl --mixed_precision bf16

Data are files of CoNLL columns (the word first, the tag to learn last, a blank line after each sentence) or of JSON
with lists `tokens` and `tags`. Tags that mark entities (BIO, IOB1, BIOES, BILOU) are scored by entities: type, first
and last word must be right. The first token of a word is tagged. Every flag of `TrainingArguments` works.
"""

from dataclasses import dataclass, field

from transformers import DataCollatorForTokenClassification, EvalPrediction, Trainer

from bert_toolkit.data.tagged_sentences import load_tagged_sentences
from bert_toolkit.reporting.finished_run import FinishedRun
from bert_toolkit.reporting.overview import print_tagger_overview
from bert_toolkit.reporting.tagging import TagMetrics, finish_tagger, likeliest_tags, predict_tags
from bert_toolkit.training.evaluation import longest_first
from bert_toolkit.training.launching import run_recipe, start_recipe
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
from bert_toolkit.training.loading import load_tagger, load_tokenizer
from bert_toolkit.training.pretrained import choose_model
from bert_toolkit.training.rehearsal import check_max_length, rehearse_rows
from bert_toolkit.training.tokenized_words import tokenize_sentences
from bert_toolkit.training.trainer_flags import check_tagger_flags, choose_best_metric, choose_learning_rate
from bert_toolkit.training.trainer_run import add_run_callbacks, train_and_save


@dataclass
class TaggingArguments:
    """What to fine-tune on what."""

    train_data: str | None = field(default=None, metadata={"help": "a file of CoNLL columns or JSON"})
    validation_data: str | None = field(default=None, metadata={"help": "likewise; default: split off train_data"})
    test_data: str | None = field(default=None, metadata={"help": "likewise; default: the validation sentences"})
    validation_fraction: float = field(default=0.1, metadata={"help": "fraction of train_data that validates"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "forces this model: folder or hub name"})
    implementation: str = field(
        default="auto", metadata={"help": "toolkit (ToolkitBert), transformers, or auto: toolkit where it is a BERT"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python files that lie beside the model"})
    max_length: int = field(default=128, metadata={"help": "longer sentences are cut to this number of tokens"})


DEFAULTS = {
    "output_dir": "runs/token_classification",
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
    "metric_for_best_model": "auto",  # F1 of entities, or accuracy where tags mark none
}


def main() -> None:
    tagging, run, arguments = start_recipe(TaggingArguments, DEFAULTS)

    # data
    corpus = load_tagged_sentences(
        tagging.train_data, tagging.validation_data, tagging.test_data, tagging.validation_fraction, arguments.seed
    )
    model_name, model_description = choose_model(tagging.model_name_or_path)
    tokenizer = load_tokenizer(model_name, tagging.trust_remote_code, of_words=True)

    # model
    model = load_tagger(model_name, corpus.tag_names, tagging.implementation, tagging.trust_remote_code)
    check_max_length(tagging.max_length, tokenizer, model)
    corpus = tokenize_sentences(corpus, tokenizer, tagging.max_length, arguments.seed, run.max_train_samples)
    collate = DataCollatorForTokenClassification(tokenizer)
    rehearse_rows(model, corpus.train, collate, arguments)
    tokenizer.model_max_length = tagging.max_length

    # arguments
    metrics = TagMetrics(corpus)
    choose_best_metric(arguments, metrics.best)
    check_tagger_flags(arguments, len(corpus.validation), metrics.names)
    choose_learning_rate(arguments, model, wide=5e-5, narrow=3e-4)  # each word is a label
    facts = {"data": corpus.description, "model": model_description}
    print_tagger_overview(facts, corpus, tagging.max_length, model, arguments)

    # trainer
    rows_of_a_pass = arguments.train_batch_size * arguments.world_size
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=LengthGroupedRows(corpus.train, corpus.train["length"], rows_of_a_pass, arguments.seed),
        eval_dataset=longest_first(corpus.validation, arguments.dataloader_drop_last),
        processing_class=tokenizer,
        data_collator=collate,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=likeliest_tags,
    )
    callbacks = add_run_callbacks(trainer, run, batch_losses=True)
    train_and_save(trainer)

    # evaluation
    predictions = predict_tags(trainer, corpus)
    scores = metrics(EvalPrediction((predictions.predicted, predictions.probability), predictions.labels))
    scores |= {f"validation_{name}": predictions.validation_metrics[f"validation_{name}"] for name in metrics.names}

    # report
    finished = FinishedRun(
        trainer,
        callbacks,
        title="Token classification",
        summary=f"Fine-tuned on {corpus.description}.",
        facts=facts,
        scores=scores,
        curves=metrics.names[:2],
    )
    finish_tagger(finished, corpus, predictions, tagging.trust_remote_code)


if __name__ == "__main__":
    run_recipe(main)
