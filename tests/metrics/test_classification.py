"""Metrics against scikit-learn, and what they refuse."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from bert_toolkit import metrics
from bert_toolkit.errors import InputError
from bert_toolkit.metrics import (
    ClassificationMetrics,
    compute_classification_metrics,
    flat_accuracy,
    matthews_correlation,
    matthews_correlation_interval,
)
from bert_toolkit.metrics.evaluate_modules import FlatAccuracy, MatthewsCorrelation


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class ids of 1 to 300 examples and 2 to 9 classes, from unrelated to nearly equal, often one-sided."""
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 300)), int(rng.integers(2, 10))
    labels = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, rng.choice([0.1, 1, 10]))))
    noise = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, rng.choice([0.1, 1, 10]))))
    return np.where(rng.random(n) < rng.random(), labels, noise), labels


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("seed", range(0, 1000, 50))
def test_equals_scikit_learn_on_1000_random_cases(seed):
    for case in range(seed, seed + 50):
        predictions, labels = random_case(case)
        assert flat_accuracy(predictions, labels) == accuracy_score(labels, predictions)
        assert matthews_correlation(predictions, labels) == pytest.approx(
            matthews_corrcoef(labels, predictions), abs=1e-12
        )


def test_perfect_and_reversed_predictions_are_exactly_one_and_minus_one():
    labels = np.array([0, 1, 1, 0, 1, 1, 1])
    assert matthews_correlation(labels, labels) == 1.0
    assert matthews_correlation(1 - labels, labels) == -1.0


@pytest.mark.parametrize("predictions, labels", [([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([0], [0])])
def test_undefined_correlation_is_zero(predictions, labels):
    assert matthews_correlation(predictions, labels) == 0.0


def test_counts_do_not_overflow():
    """Ten billion examples: the products have 40 digits, far beyond int64."""
    counts = metrics.ClassificationCounts({0: 6 * 10**9, 1: 4 * 10**9}, {0: 5 * 10**9, 1: 5 * 10**9}, 9 * 10**9)
    assert counts.matthews_correlation == pytest.approx(0.8164965809277261)  # as 6/4 against 5/5 with 9 of 10 right
    assert matthews_corrcoef([0] * 5 + [1] * 5, [0] * 6 + [1] * 4) == pytest.approx(counts.matthews_correlation)


FLOATS = [np.float16, np.float32, np.float64, np.longdouble]
TORCH_FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS + TORCH_FLOATS, ids=str)
def test_logits_of_every_float_type(dtype):
    rng = np.random.default_rng(3)
    logits, labels = rng.integers(-8, 8, (40, 3)), rng.integers(0, 3, 40)
    typed = torch.tensor(logits).to(dtype) if isinstance(dtype, torch.dtype) else logits.astype(dtype)
    typed_labels = torch.tensor(labels) if isinstance(dtype, torch.dtype) else labels
    assert flat_accuracy(typed, typed_labels) == accuracy_score(labels, logits.argmax(1))
    assert matthews_correlation(typed, labels) == pytest.approx(matthews_corrcoef(labels, logits.argmax(1)))


@pytest.mark.parametrize("as_type", [list, np.array, torch.tensor], ids=["list", "numpy", "torch"])
@pytest.mark.parametrize("dtype", [int, bool, float])
def test_class_ids_of_every_kind(as_type, dtype):
    predictions, labels = [1, 0, 1, 1], [1, 0, 0, 1]
    ids = as_type([dtype(value) for value in predictions])
    assert flat_accuracy(ids, as_type([dtype(value) for value in labels])) == 0.75
    assert matthews_correlation(ids, labels) == pytest.approx(matthews_corrcoef(labels, predictions))


def test_bfloat16_class_ids_and_tensors_that_require_gradients():
    assert flat_accuracy(torch.tensor([1.0, 0.0], dtype=torch.bfloat16), [1, 1]) == 0.5
    assert flat_accuracy(torch.tensor([[0.0, 1.0]], requires_grad=True), [1]) == 1.0


def test_inputs_stay_unchanged():
    logits, labels = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([1, -100])
    compute_classification_metrics(EvalPrediction(logits, labels))
    np.testing.assert_array_equal(logits, [[1.0, 2.0], [3.0, 0.0]])
    np.testing.assert_array_equal(labels, [1, -100])


@pytest.mark.parametrize("as_type", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_padded_token_labels_do_not_count(as_type):
    """Trainer pads ragged batches with -100 in labels and in logits."""
    logits = np.random.default_rng(0).normal(size=(4, 6, 3))
    labels = np.random.default_rng(1).integers(0, 3, (4, 6))
    labels[2, 3:] = labels[3, 1:] = -100
    logits[2, 3:] = logits[3, 1:] = -100
    kept = labels != -100
    result = compute_classification_metrics(EvalPrediction(as_type(logits), as_type(labels)))
    assert result["accuracy"] == accuracy_score(labels[kept], logits.argmax(-1)[kept])
    assert result["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels[kept], logits.argmax(-1)[kept]))
    ids = np.where(kept, logits.argmax(-1), -100)
    assert compute_classification_metrics(EvalPrediction(as_type(ids), as_type(labels))) == result


def test_nan_counts_only_where_labeled():
    logits = np.array([[0.0, 1.0], [np.nan, 0.0]])
    assert flat_accuracy(logits, [1, -100]) == 1.0
    with pytest.raises(InputError, match="1 of 2 predictions hold NaN logits: the model has diverged"):
        flat_accuracy(logits, [1, 0])


@pytest.mark.parametrize("as_type", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "predictions, labels, message",
    [
        ([[0.1, float("nan")]], [0], "NaN logits"),
        ([[0.3], [0.7]], [0, 1], "one column, a regression output"),
        ([0.3, 0.7], [0, 1], r"predictions must be class ids \(whole numbers\), got 0\.3"),
        ([0, 1], [0.25, 1.0], r"labels must be class ids \(whole numbers\), got 0\.25"),
        ([float("inf"), 1.0], [0, 1], "got inf"),
        ([float("nan"), 1.0], [0, 1], "got nan"),
        ([[0.2, 1.5]], [0.5], "labels must be class ids"),
        ([[0.2, 1.5], [1.0, 0.1]], [[0.0, 1.0], [1.0, 1.0]], "a multi-label or regression output"),
        ([[0.2, 1.5], [1.0, 0.1]], [[0, 1], [1, 1]], "a multi-label or regression output"),
        ([[0.2, 1.5]], [2], r"labels must lie in 0\.\.1 for logits of 2 classes"),
        ([[0.2, 1.5]], [-1], "-1 marks hidden labels of a test set"),
        ([[0.2, 1.5]], [0, 1], r"predictions of shape \(1, 2\) do not fit labels of shape \(2,\)"),
        ([0, 1, 1], [0, 1], "do not fit"),
        ([0, 1], [-100, -100], "no labeled example"),
        ([], [], "no labeled example"),
    ],
)
def test_refuses(predictions, labels, message, as_type):
    for metric in (flat_accuracy, matthews_correlation):
        with pytest.raises(InputError, match=message):
            metric(as_type(predictions), as_type(labels))


def test_refuses_text_and_ragged_lists():
    with pytest.raises(InputError, match="predictions must be class ids, got <U3"):
        flat_accuracy(["cat", "dog"], [0, 1])
    with pytest.raises(InputError, match="predictions must form a rectangular array"):
        flat_accuracy([[0.1, 0.2], [0.3]], [0, 1])


def test_eval_prediction_with_hidden_states_or_several_heads():
    logits, hidden = np.array([[0.0, 1.0], [1.0, 0.0]]), np.zeros((2, 4, 8))
    labels = np.array([1, 1])
    assert compute_classification_metrics(EvalPrediction((logits, hidden), (labels,)))["accuracy"] == 0.5
    with pytest.raises(InputError, match=r"one array of labels, got 2.*label_names"):
        compute_classification_metrics(EvalPrediction((logits, hidden), (labels, labels)))
    with pytest.raises(InputError, match="have no labels"):
        compute_classification_metrics(EvalPrediction(logits, None))


@pytest.mark.parametrize("as_type", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_streaming_equals_whole_arrays_and_starts_afresh(as_type):
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(97, 4)), rng.integers(0, 4, 97)
    labels[30:40] = -100  # batches 3 and 4 of 10 are partly and wholly unlabeled
    streaming = ClassificationMetrics()
    for _evaluation in range(2):
        for start in range(0, 97, 10):
            batch = EvalPrediction(as_type(logits[start : start + 10]), as_type(labels[start : start + 10]))
            result = streaming(batch, compute_result=start == 90)
            assert (result == {}) == (start < 90)
        assert result == compute_classification_metrics(EvalPrediction(logits, labels))


def test_streaming_recovers_after_an_error():
    streaming = ClassificationMetrics()
    streaming(EvalPrediction(np.array([0, 0]), np.array([1, 1])))
    with pytest.raises(InputError, match="NaN"):
        streaming(EvalPrediction(np.array([[np.nan, 0.0]]), np.array([1])))
    result = streaming(EvalPrediction(np.array([1, 0]), np.array([1, 0])), compute_result=True)
    assert result == {"accuracy": 1.0, "matthews_correlation": 1.0}


@pytest.mark.parametrize("head", [BertForSequenceClassification, BertForTokenClassification])
def test_inside_trainer_whole_and_streaming_agree_with_scikit_learn(head, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
        output_hidden_states=head is BertForSequenceClassification,  # predictions become a tuple
    )
    model = head(config)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(23):
        length = int(rng.integers(3, 9))
        ids = rng.integers(1, 50, length).tolist()
        token_level = head is BertForTokenClassification
        rows.append({"input_ids": ids, "labels": rng.integers(0, 3, length).tolist() if token_level else ids[0] % 3})

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        def pad(name: str, value: int) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in batch], True, value)

        labels = pad("labels", -100) if token_level else torch.tensor([row["labels"] for row in batch])
        ids = pad("input_ids", 0)
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

    results = {}
    for streaming in (False, True):
        trainer = Trainer(
            model,
            TrainingArguments(
                output_dir=str(tmp_path),
                per_device_eval_batch_size=5,
                batch_eval_metrics=streaming,
                use_cpu=True,
                disable_tqdm=True,
            ),
            data_collator=collate,
            eval_dataset=rows,
            compute_metrics=ClassificationMetrics() if streaming else compute_classification_metrics,
        )
        for _twice in range(2):
            results[streaming] = trainer.evaluate()
    for key in ("eval_accuracy", "eval_matthews_correlation"):
        assert results[False][key] == results[True][key]

    predicted, actual = [], []
    model.eval()
    with torch.no_grad():
        for row in rows:
            choice = model(torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
            predicted += np.atleast_1d(choice.numpy()).tolist()
            actual += row["labels"] if token_level else [row["labels"]]
    assert results[True]["eval_accuracy"] == pytest.approx(accuracy_score(actual, predicted))
    assert results[True]["eval_matthews_correlation"] == pytest.approx(matthews_corrcoef(actual, predicted))


class TestInterval:
    def test_equals_resampling_of_indices(self):
        """The multinomial draw has the distribution of drawing examples: the ends agree within sampling error."""
        predictions, labels = random_case(1)
        n = len(labels)
        rng = np.random.default_rng(9)
        resampled = []
        for _ in range(2000):
            drawn = rng.integers(0, n, n)
            resampled.append(matthews_corrcoef(labels[drawn], predictions[drawn]))
        expected = np.quantile(resampled, [0.025, 0.975])
        actual = matthews_correlation_interval(predictions, labels, resamples=2000)
        # standard error of a 2.5 % quantile from 2000 draws: sqrt(.025*.975/2000)/density, about 0.06 sd
        np.testing.assert_allclose(actual, expected, atol=0.2 * np.std(resampled))

    def test_covers_the_true_value_in_95_of_100_samples(self):
        """200 samples of 300 from a population with known correlation: coverage 0.95 has a binomial sd of 1.5 %."""
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, (200, 300))
        predictions = np.where(rng.random((200, 300)) < 0.75, labels, 1 - labels)
        truth = 0.5  # balanced classes, 75 % right: 2 * 0.75 - 1
        covered = 0
        for p, t in zip(predictions, labels, strict=True):
            low, high = matthews_correlation_interval(p, t, resamples=500)
            covered += low <= truth <= high
        assert 0.90 <= covered / 200 <= 0.99

    def test_is_seeded(self):
        predictions, labels = random_case(4)
        first = matthews_correlation_interval(predictions, labels, seed=7)
        assert first == matthews_correlation_interval(predictions, labels, seed=7)
        assert first != matthews_correlation_interval(predictions, labels, seed=8)

    def test_contains_the_estimate_and_narrows_with_less_confidence(self):
        predictions, labels = random_case(2)
        low, high = matthews_correlation_interval(predictions, labels)
        assert low < matthews_correlation(predictions, labels) < high
        inner = matthews_correlation_interval(predictions, labels, confidence=0.5)
        assert low < inner[0] < inner[1] < high

    @pytest.mark.parametrize("predictions", [[1, 1, 1, 1], [0, 1, 0, 1]], ids=["constant", "perfect"])
    def test_without_spread(self, predictions):
        low, high = matthews_correlation_interval(predictions, [0, 1, 0, 1] * (len(predictions) // 4), resamples=50)
        # a perfect prediction resampled to one class counts as 0.0, so only the upper end is certain
        assert (low, high) == (0.0, 0.0) if predictions[0] == 1 else high == 1.0

    def test_two_rows_give_constant_resamples_but_no_nan(self):
        low, high = matthews_correlation_interval([0, 1], [0, 1])
        assert (low, high) == (0.0, 1.0)

    @pytest.mark.parametrize("confidence", [0, 1, -0.5, 95])
    def test_refuses_confidence(self, confidence):
        with pytest.raises(InputError, match=r"`confidence` must lie in \(0, 1\)"):
            matthews_correlation_interval([0, 1], [0, 1], confidence=confidence)

    def test_refuses_no_resamples_and_empty_input(self):
        with pytest.raises(InputError, match="`resamples` must be at least 1, got 0"):
            matthews_correlation_interval([0, 1], [0, 1], resamples=0)
        with pytest.raises(InputError, match="no labeled example"):
            matthews_correlation_interval([0, 1], [-100, -100])


MODULES = {"accuracy": FlatAccuracy, "matthews_correlation": MatthewsCorrelation}
ORACLES = {"accuracy": accuracy_score, "matthews_correlation": matthews_corrcoef}


class TestEvaluateModules:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))

    @pytest.mark.parametrize("name", MODULES)
    def test_compute_and_batches(self, name):
        predictions, labels = random_case(11)
        expected = pytest.approx(ORACLES[name](labels, predictions))
        module = MODULES[name]()
        assert module.compute(predictions=predictions, references=labels)[name] == expected
        for start in range(0, len(labels), 50):
            part = slice(start, start + 50)
            module.add_batch(predictions=predictions[part].tolist(), references=torch.tensor(labels[part]))
        assert module.compute()[name] == expected
        for prediction, label in zip(predictions, labels, strict=True):
            module.add(prediction=prediction, reference=label)
        assert module.compute()[name] == expected

    @pytest.mark.parametrize("name", MODULES)
    def test_logits(self, name):
        logits = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        labels = np.arange(50) % 3
        result = MODULES[name]().compute(predictions=logits, references=labels)[name]
        assert result == pytest.approx(ORACLES[name](labels, logits.argmax(1)))

    def test_fractions_are_refused_not_cut_to_class_zero(self):
        with pytest.raises(InputError, match="got 0.5"):
            MatthewsCorrelation().compute(predictions=[0.5, 1.0], references=[0, 1])

    def test_combine(self):
        combined = evaluate.combine([FlatAccuracy(), MatthewsCorrelation()])
        predictions, labels = random_case(12)
        result = combined.compute(predictions=predictions, references=labels)
        assert result == {name: pytest.approx(oracle(labels, predictions)) for name, oracle in ORACLES.items()}

    def test_load_from_path(self, tmp_path):
        """In a process of its own, as `evaluate.load` copies the file into a module cache that is read at import."""
        folder = Path(metrics.__file__).parent / "evaluate_modules"
        code = (
            "import evaluate, sys;"
            "modules = [evaluate.load(path) for path in sys.argv[1:]];"
            "print([m.compute(predictions=[0, 1, 1, 1], references=[0, 1, 0, 1]) for m in modules])"
        )
        paths = [str(folder / "flat_accuracy.py"), str(folder / "matthews_correlation.py")]
        environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        output = subprocess.run(
            [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True, env=environment
        )
        accuracy, correlation = ast.literal_eval(output.stdout)
        assert accuracy == {"accuracy": 0.75}
        assert correlation["matthews_correlation"] == pytest.approx(matthews_corrcoef([0, 1, 0, 1], [0, 1, 1, 1]))
