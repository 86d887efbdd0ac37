"""What a run on questions leaves: exact match and F1, an answer to every question, figures, card, results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, EvalPrediction, Trainer

from bert_toolkit.data.corpus_splits import Origin
from bert_toolkit.data.squad import QuestionSplits
from bert_toolkit.metrics.answer_scores import answer_scores
from bert_toolkit.reporting import figures, overview, results
from bert_toolkit.reporting.finished_run import FinishedRun, close_run, write_report
from bert_toolkit.reporting.reload_check import rows_to_check
from bert_toolkit.training.evaluation import longest_first, plain_prediction, rows_in_order
from bert_toolkit.training.question_windows import Answer, answers_of

if TYPE_CHECKING:
    from datasets import Dataset


def span_logits(outputs: tuple[torch.Tensor, ...], labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of first and last token among a model's outputs, for `Trainer(preprocess_logits_for_metrics=)`.

    Args:
        outputs: A tuple that begins with them: encoder-decoders give hidden states too.
        labels: Not needed.

    Returns:
        Two tensors (B, T).
    """
    return outputs[0].float(), outputs[1].float()


@dataclass(frozen=True)
class AnswerMetrics:
    """Answers and their scores, for `Trainer(compute_metrics=)`.

    Args:
        questions: Rows with `context` and `answers`.
        windows: Their windows; Trainer evaluates `longest_first(windows)`.
        max_answer_length: Tokens of an answer at most.
        null_threshold: See `answers_of`.
    """

    questions: Dataset
    windows: Dataset
    max_answer_length: int
    null_threshold: float | None

    @property
    def names(self) -> list[str]:
        """The names of the scores that every evaluation has, the best first."""
        return ["answer_f1", "exact_match"]

    def answers(self, predictions: Any) -> list[Answer]:
        """Return an answer to each question.

        Args:
            predictions: Logits of first and last token, (n, T) each, as Trainer gives them.
        """
        start, end = (rows_in_order(array, self.windows) for array in predictions)
        contexts = self.questions["context"][:]
        return answers_of(start, end, self.windows, contexts, self.max_answer_length, self.null_threshold)

    def scores(self, answers: Sequence[Answer]) -> np.ndarray:
        """Return exact match and F1 of each answer, (n, 2).

        Args:
            answers: To the questions, in their order.
        """
        right = self.questions["answers"][:]
        return np.array([answer_scores(given.text, texts) for given, texts in zip(answers, right, strict=True)])

    def summary(self, scores: np.ndarray) -> dict[str, float]:
        """Return means over all questions, and over those with and without an answer where there are both.

        Args:
            scores: As `scores` gives them.
        """
        exact, f1 = scores.mean(0).tolist()
        has_answer = np.array([bool(texts) for texts in self.questions["answers"][:]])
        found = {"answer_f1": f1, "exact_match": exact}
        if has_answer.any() and not has_answer.all():
            of_answered = scores[has_answer].mean(0).tolist()
            found |= {"has_answer_f1": of_answered[1], "has_answer_exact_match": of_answered[0]}
            found["no_answer_accuracy"] = float(scores[~has_answer, 0].mean())
        return found

    def __call__(self, evaluation: EvalPrediction) -> dict[str, float]:
        """Scores of an evaluation.

        Args:
            evaluation: Logits of all windows.
        """
        return self.summary(self.scores(self.answers(evaluation.predictions)))


def predict_answers(
    trainer: Trainer, validation: AnswerMetrics, test: AnswerMetrics
) -> tuple[list[Answer], dict[str, float]]:
    """Evaluate on the validation questions and answer the test questions; the same questions only once.

    Args:
        trainer: Has finished training; its `compute_metrics` is `validation`.
        validation: Of the validation questions.
        test: Of the test questions, or `validation` itself.

    Returns:
        Answers to the test questions, and metrics of the validation questions with the prefix `validation_`.
    """
    with plain_prediction(trainer):
        metrics = trainer.evaluate(metric_key_prefix="validation") if test is not validation else {}
        trainer.compute_metrics = test
        prefix = "validation" if test is validation else "test"
        output = trainer.predict(longest_first(test.windows), metric_key_prefix=prefix)
        trainer.compute_metrics = validation
        if test is validation:
            metrics = dict(output.metrics or {})
            trainer.log(metrics)
    return test.answers(output.predictions), metrics


def finish_answerer(
    run: FinishedRun,
    corpus: QuestionSplits,
    metrics: AnswerMetrics,
    answers: Sequence[Answer],
    trust_remote_code: bool = False,
) -> None:
    """Print the result tables, write all files of a finished run, and check that the saved model reloads.

    Every process calls it; the main one prints and writes. The corpus' remarks go to card and results.

    Args:
        run: The run, whose model is saved.
        corpus: Questions.
        metrics: Of the test questions.
        answers: To the test questions.
        trust_remote_code: Whether Python files that lie beside the model may be run.

    Raises:
        ReloadError: The saved model predicts something else.
    """
    scored = "validation" if corpus.test is corpus.validation else "test"
    run = run.with_remarks(corpus.remarks, Origin(corpus.description, scored=scored))
    close_run(
        run,
        lambda: _write_outputs(run, metrics, answers),
        AutoModelForQuestionAnswering,
        rows_to_check(metrics.windows),
        trust_remote_code,
    )


def _write_outputs(run: FinishedRun, metrics: AnswerMetrics, answers: Sequence[Answer]) -> None:
    scores, rows = metrics.scores(answers), metrics.questions
    overview.print_settings({**run.all_facts(), **{k: f"{v:.4f}" for k, v in run.numbers.items()}}, "Result")
    texts = [answer.text for answer in answers]
    columns: Mapping[str, Sequence[object]] = {
        "place": rows["place"][:],
        "question": rows["question"][:],
        "label": [" | ".join(dict.fromkeys(right)) for right in rows["answers"][:]],
        "prediction": texts,
        "exact_match": [int(exact) for exact in scores[:, 0]],
        "answer_f1": [float(f1) for f1 in scores[:, 1]],
        "probability": [answer.probability for answer in answers],
    }
    results.write_predictions(run.output_dir, columns)
    drawn = {
        "learning_curves": figures.draw_learning_curves(run.trainer.state.log_history, run.curves, run.title),
    }
    write_report(run, "question-answering", drawn | run.loss_figures(), {"questions": len(texts)})
    if len(texts) > 1 and len(set(texts)) == 1:
        print(
            f"warning: every question was answered {texts[0]!r}: the model has learned nothing; try another learning "
            "rate, more questions or a larger model",
            flush=True,
        )
