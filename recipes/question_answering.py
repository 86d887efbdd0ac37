"""Fine-tunes BERT to answer questions by a part of a text, as in SQuAD, and reports exact match and F1.

    accelerate launch recipes/question_answering.py --train_data train-v1.1.json --validation_data dev-v1.1.json
    accelerate launch recipes/question_answering.py --train_data my_questions.json --mixed_precision bf16

Data are JSON files in the layout of SQuAD 1.1 or 2.0, where questions may have no answer (`is_impossible`). Long texts
are cut into windows that overlap. Every flag of `TrainingArguments` works.
"""

from dataclasses import dataclass, field

from transformers import DataCollatorWithPadding, Trainer

from bert_toolkit.data.squad import load_questions
from bert_toolkit.errors import InputError
from bert_toolkit.reporting.answering import AnswerMetrics, finish_answerer, predict_answers, span_logits
from bert_toolkit.reporting.finished_run import FinishedRun
from bert_toolkit.reporting.overview import print_answerer_overview
from bert_toolkit.training.evaluation import longest_first
from bert_toolkit.training.launching import run_recipe, start_recipe
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
from bert_toolkit.training.loading import load_answerer, load_tokenizer
from bert_toolkit.training.pretrained import choose_model
from bert_toolkit.training.question_windows import tokenize_questions
from bert_toolkit.training.rehearsal import check_max_length, rehearse_rows
from bert_toolkit.training.trainer_flags import check_answerer_flags, choose_best_metric, choose_learning_rate
from bert_toolkit.training.trainer_run import add_run_callbacks, train_and_save


@dataclass
class AnsweringArguments:
    """What to fine-tune on what."""

    train_data: str | None = field(default=None, metadata={"help": "a JSON file in the layout of SQuAD"})
    validation_data: str | None = field(default=None, metadata={"help": "likewise; default: split off train_data"})
    test_data: str | None = field(default=None, metadata={"help": "likewise; default: the validation questions"})
    validation_fraction: float = field(default=0.1, metadata={"help": "fraction of the texts that validates"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "forces this model: folder or hub name"})
    implementation: str = field(
        default="auto", metadata={"help": "toolkit (ToolkitBert), transformers, or auto: toolkit where it is a BERT"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python files that lie beside the model"})
    max_length: int = field(default=384, metadata={"help": "tokens of a window, question included"})
    doc_stride: int = field(default=128, metadata={"help": "tokens that a window shares with the one before"})
    max_answer_length: int = field(default=30, metadata={"help": "longer answers (in tokens) are not given"})
    null_score_threshold: float = field(
        default=0.0, metadata={"help": "no answer where that scores higher than the best by more than this"}
    )


DEFAULTS = {
    "output_dir": "runs/question_answering",
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "num_train_epochs": 2,
    "learning_rate": None,  # by the size of the model, see below
    "weight_decay": 0.01,  # Trainer leaves biases and LayerNorm out
    "warmup_steps": 0.1,  # a fraction of all steps
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "auto",  # F1 of answers
}


def main() -> None:
    answering, run, arguments = start_recipe(AnsweringArguments, DEFAULTS)

    # data
    corpus = load_questions(
        answering.train_data,
        answering.validation_data,
        answering.test_data,
        answering.validation_fraction,
        arguments.seed,
    )
    if answering.max_answer_length < 1:
        raise InputError(f"`max_answer_length` must be at least 1, got {answering.max_answer_length}")
    model_name, model_description = choose_model(answering.model_name_or_path)
    tokenizer = load_tokenizer(model_name, answering.trust_remote_code)

    # model
    model = load_answerer(model_name, answering.implementation, answering.trust_remote_code)
    check_max_length(answering.max_length, tokenizer, model)
    train, validation, test = tokenize_questions(
        corpus, tokenizer, answering.max_length, answering.doc_stride, arguments.seed, run.max_train_samples
    )
    collate = DataCollatorWithPadding(tokenizer)
    rehearse_rows(model, train, collate, arguments)
    tokenizer.model_max_length = answering.max_length

    # arguments
    threshold = answering.null_score_threshold if corpus.some_have_none else None
    metrics = AnswerMetrics(corpus.validation, validation, answering.max_answer_length, threshold)
    test_metrics = metrics
    if corpus.test is not corpus.validation:
        test_metrics = AnswerMetrics(corpus.test, test, answering.max_answer_length, threshold)
    choose_best_metric(arguments, "answer_f1")
    check_answerer_flags(arguments, len(validation), metrics.names)
    choose_learning_rate(arguments, model, wide=3e-5, narrow=1e-4)  # bert-base: Devlin et al. 2019
    facts = {"data": corpus.description, "model": model_description}
    splits = {"train": (corpus.train, train), "validation": (corpus.validation, validation)}
    splits |= {} if test_metrics is metrics else {"test": (corpus.test, test)}
    print_answerer_overview(facts, splits, corpus.remarks, model, arguments)

    # trainer
    rows_of_a_pass = arguments.train_batch_size * arguments.world_size
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=LengthGroupedRows(train, train["length"], rows_of_a_pass, arguments.seed),
        eval_dataset=longest_first(validation),
        processing_class=tokenizer,
        data_collator=collate,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=span_logits,
    )
    callbacks = add_run_callbacks(trainer, run, batch_losses=True)
    train_and_save(trainer)

    # evaluation
    answers, validation_metrics = predict_answers(trainer, metrics, test_metrics)
    scores = test_metrics.summary(test_metrics.scores(answers))
    scores |= {f"validation_{name}": validation_metrics[f"validation_{name}"] for name in metrics.names}

    # report
    finished = FinishedRun(
        trainer,
        callbacks,
        title="Question answering",
        summary=f"Fine-tuned on {corpus.description}.",
        facts=facts,
        scores=scores,
        curves=metrics.names,
    )
    finish_answerer(finished, corpus, test_metrics, answers, answering.trust_remote_code)


if __name__ == "__main__":
    run_recipe(main)
