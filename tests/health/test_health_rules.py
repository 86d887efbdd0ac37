"""Every health rule fires on what it is for and stays silent on healthy courses that look alike."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import test_flow
import test_watched_loops
import torch
from torch import nn

from bert_toolkit.health import rules
from bert_toolkit.health.findings import message
from bert_toolkit.health.forward_statistics import ForwardStatistics
from bert_toolkit.health.history import LONGEST, HealthHistory, HealthSample
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord
from bert_toolkit.monitoring.update_ratios import UpdateRatioRecord


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)


class Stack(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(5))
        self.head = nn.Linear(16, 3)
        self.to(dtype)


@dataclass
class Course:
    """A healthy training of `Stack`, whose arrays (samples, parameters) and (samples,) a test may spoil."""

    samples: int = 60
    every: int = 10
    model: Stack = field(default_factory=Stack)
    classes: int = 3
    config: float | None = None

    def __post_init__(self):
        random = np.random.default_rng(0)
        n, self.names = self.samples, [name for name, _ in self.model.named_parameters()]
        shape = (n, len(self.names))
        self.gradient = 0.01 * np.exp(0.5 * random.standard_normal(shape))
        self.zero_share = np.zeros(shape)
        self.zero_share[:, 0] = 0.8  # word embeddings: rows that are not in the batch
        self.ratio = 1e-3 * np.exp(0.3 * random.standard_normal(shape))
        self.weight = np.full(shape, 0.1)
        self.changed_share = np.ones(shape)
        warmup = np.minimum(1.0, np.arange(n) / 6)
        decay = 1.0 - np.arange(n) / n
        self.rate = np.repeat((1e-3 * warmup * decay)[:, None], shape[1], axis=1)
        self.ratio[0] = 0.0  # the first step of a warm-up from zero
        self.loss = 1.1 * np.exp(-np.arange(n) / 25) + 0.05 * random.standard_normal(n) + 0.05
        self.clip = np.full(n, 0.4)
        self.skipped = np.zeros(n, dtype=bool)
        self.top_share = np.full(n, 0.5)
        self.integer_labels = True
        self.several_losses = False
        self.identical = np.zeros(n, dtype=bool)
        self.masked = np.zeros(n)
        self.label_counts = np.array([10.0, 10.0, 12.0])
        self.nonfinite: dict[int, list[str]] = {}
        self.unheld: set[str] = set()
        self.missing: set[str] = set()
        self.loss_nonfinite = np.zeros(n, dtype=bool)

    def at(self, *parts: str) -> np.ndarray:
        return np.flatnonzero([all(part in name for part in parts) for name in self.names])

    def history(self, samples: int | None = None) -> HealthHistory:
        history = HealthHistory(self.model, self.samples * self.every)
        history.initializer_range = self.config
        count = {name: p.numel() for name, p in self.model.named_parameters()}
        trainable = {name: p.requires_grad for name, p in self.model.named_parameters()}
        for i in range(samples or self.samples):
            step = max(1, i * self.every)
            there = [j for j, n in enumerate(self.names) if trainable[n] and n not in self.missing]
            names = tuple(self.names[j] for j in there)
            held = [j for j, n in enumerate(self.names) if trainable[n]]
            rms = self.gradient[i, there] * self.clip[i]
            size = np.array([count[n] for n in names], dtype=float)
            bad = tuple(self.nonfinite.get(i, ()))
            history.add(
                HealthSample(
                    GradientFlowRecord(
                        step=step,
                        names=names,
                        count=size,
                        mean=rms,
                        max=rms,
                        std=np.zeros(len(there)),
                        zero_share=self.zero_share[i, there],
                        clip_coefficient=self.clip[i],
                        nonfinite=bad,
                        missing=tuple(n for n in self.names if n in self.missing and trainable[n]),
                        skipped=bool(self.skipped[i]),
                    ),
                    UpdateRatioRecord(
                        step=step,
                        names=tuple(self.names[j] for j in held),
                        ratio=self.ratio[i, held],
                        update_norm=self.ratio[i, held],
                        parameter_norm=self.weight[i, held] * np.sqrt([count[self.names[j]] for j in held]),
                        changed_share=self.changed_share[i, held],
                        skipped=bool(self.skipped[i]),
                    ),
                    {self.names[j]: self.rate[i, j] for j in held if self.names[j] not in self.unheld},
                    ForwardStatistics(
                        loss=self.loss[i],
                        loss_nonfinite=bool(self.loss_nonfinite[i]),
                        classes=self.classes,
                        top_share=self.top_share[i],
                        label_counts=self.label_counts,
                        integer_labels=self.integer_labels,
                        several_losses=self.several_losses,
                        identical_inputs=bool(self.identical[i]),
                        masked_share=self.masked[i],
                    ),
                )
            )
        return history

    def judged(self) -> HealthJudge:
        judge, history = HealthJudge(), self.history()
        for length in range(1, len(history) + 1):
            history.shorten(length)
            judge.judge(history)
        return judge


def rule_names(judge: HealthJudge) -> list[str]:
    return [finding.rule for finding in judge.findings]


# --- one fault per rule: (name of the rule, how to spoil the course, what must be named) ---------------------------


def identical_inputs(c):
    c.identical[20:] = True


def fully_masked_inputs(c):
    c.masked[:] = 1.0


def wrong_loss_sign(c):
    c.loss = -np.linspace(1.1, 30, c.samples)


def nonfinite_everywhere(c):
    c.nonfinite = {30: c.names}
    c.loss_nonfinite[30] = True


def nonfinite_below_layer_2(c):
    # Backward goes from the loss down: what is below the culprit is bad too.
    c.nonfinite = {30: [n for n in c.names if n.startswith(("words", "layers.0", "layers.1", "layers.2"))]}


def loss_scale_overflow(c):
    c.skipped[10::2] = True


def loss_scale_never_found(c):
    c.skipped[:] = True


def no_gradient(c):
    c.missing = {"layers.1.up.weight", "layers.1.up.bias"}


def zero_gradient(c):
    at = c.at("layers.1.norm")
    c.gradient[:, at], c.zero_share[:, at] = 0.0, 1.0


def frozen_layer(c):
    c.model.layers[2].requires_grad_(False)


def not_in_optimizer(c):
    at = c.at("layers.3.up")
    c.ratio[:, at] = 0.0
    c.changed_share[:, at] = 0.0
    c.unheld = {c.names[j] for j in at}


def rate_zero_in_group(c):
    at = c.at("layers.3")
    c.ratio[:, at], c.rate[:, at] = 0.0, 0.0


def rate_zero_for_all(c):
    c.ratio[:], c.rate[:] = 0.0, 0.0


def upper_half_frozen(c):
    c.model.layers[3].requires_grad_(False)
    c.model.layers[4].requires_grad_(False)


def rounded_away(c):
    c.model.to(torch.bfloat16)
    c.changed_share[:] = 0.1


def initial_scale_large(c):
    c.weight[:] = 3.0


def initial_scale_small(c):
    c.weight[:] = 0.005


def initial_scale_of_layer(c):
    c.weight[:, c.at("layers.2.up.weight")] *= 10


def layer_moves_too_far(c):
    c.ratio[10:, c.at("layers.2", "weight")] *= 50


def layer_gradient_too_large(c):
    c.gradient[:, c.at("layers.2", "weight")] *= 100


def update_ratio_high(c):
    c.ratio[1:, c.at("weight")] = 0.4


def update_ratio_high_without_learning(c):
    c.ratio[1:, c.at("weight")] = 0.06
    c.loss = np.full(c.samples, 1.1)


def units_killed_by_large_steps(c):
    c.ratio[1:8, c.at("weight")] = 0.08
    dead_units(c)
    c.zero_share[:10, c.at("layers")] = 0.0


def units_killed_behind_sparse_inputs(c):
    units_killed_by_large_steps(c)
    c.zero_share[:10, c.at("layers", "up.weight")] = 0.6  # the inputs' zeros; the biases show that units live


def update_ratio_low(c):
    c.ratio[1:] = 2e-7


def update_ratio_low_without_learning(c):
    c.ratio[1:] = 1e-5
    c.loss = 1.1 + 0.02 * np.random.default_rng(0).standard_normal(c.samples)


def update_ratio_low_in_an_endless_warmup(c):
    c.rate = np.repeat((1e-6 * np.arange(c.samples) / c.samples)[:, None], c.rate.shape[1], axis=1)
    c.ratio[1:] = 1e-6 * np.arange(1, c.samples)[:, None] / c.samples
    c.loss = 1.1 + 0.02 * np.random.default_rng(0).standard_normal(c.samples)


def dead_units(c):
    c.zero_share[:, c.at("layers.1.up")] = 0.97
    c.zero_share[:, c.at("layers.0.up")] = 0.95


def vanishing_gradients(c):
    for layer in range(5):
        c.gradient[:, c.at(f"layers.{layer}.")] *= 0.01 ** (4 - layer)


def exploding_gradients(c):
    c.gradient[30:] *= 1e4


def gradient_spike(c):
    c.gradient[40] *= 1e4
    c.loss[40] *= 1e4  # one outlier must not look like a loss that does not fall


def clipped_every_step(c):
    c.clip[:] = 1e-3


def loss_above_start(c):
    c.loss[20:] = 4.0


def loss_given_back(c):
    c.loss[40:] = 1.0


def loss_flat_at_class_entropy(c):
    c.loss = 1.12 + 0.05 * np.random.default_rng(0).standard_normal(c.samples)


def loss_flat_at_uniform_guess(c):
    c.classes, c.label_counts = 1000, np.zeros(0)
    c.loss = math.log(1000) + 0.05 * np.random.default_rng(0).standard_normal(c.samples)


def constant_prediction(c):
    c.top_share[:] = 1.0
    c.loss = 1.12 + 0.05 * np.random.default_rng(0).standard_normal(c.samples)


def one_class_only(c):
    c.label_counts = np.array([0.0, 0.0, 20.0])
    c.top_share[:] = 1.0
    c.loss[:] = 0.001


FAULTS = [
    ("constant_label", one_class_only, None),
    ("identical_inputs", identical_inputs, None),
    ("fully_masked_inputs", fully_masked_inputs, None),
    ("wrong_loss_sign", wrong_loss_sign, None),
    ("nonfinite", nonfinite_everywhere, None),
    ("nonfinite", nonfinite_below_layer_2, "layers.2."),
    ("loss_scale_overflow", loss_scale_overflow, None),
    ("loss_scale_overflow", loss_scale_never_found, None),
    ("no_gradient", no_gradient, "layers.1.up"),
    ("no_gradient", zero_gradient, "layers.1.norm"),
    ("frozen_layer", frozen_layer, "layers.2."),
    ("frozen_layer", upper_half_frozen, "layers."),
    ("not_updated", not_in_optimizer, "layers.3.up"),
    ("not_updated", rate_zero_in_group, "layers.3."),
    ("not_updated", rate_zero_for_all, ""),
    ("rounded_away", rounded_away, ""),
    ("initial_scale", initial_scale_large, None),
    ("initial_scale", initial_scale_small, None),
    ("initial_scale", initial_scale_of_layer, "layers.2.up.weight"),
    ("layer_out_of_line", layer_moves_too_far, "layers.2.up.weight"),
    ("layer_out_of_line", layer_gradient_too_large, "layers.2.up.weight"),
    ("update_ratio_high", update_ratio_high, None),
    ("update_ratio_high", update_ratio_high_without_learning, None),
    ("update_ratio_high", units_killed_by_large_steps, None),
    ("update_ratio_high", units_killed_behind_sparse_inputs, None),
    ("update_ratio_low", update_ratio_low, None),
    ("update_ratio_low", update_ratio_low_without_learning, None),
    ("update_ratio_low", update_ratio_low_in_an_endless_warmup, None),
    ("dead_units", dead_units, "layers.1.up.weight"),
    ("vanishing_gradients", vanishing_gradients, "layers."),
    ("exploding_gradients", exploding_gradients, ""),
    ("gradient_spike", gradient_spike, ""),
    ("clipped_every_step", clipped_every_step, None),
    ("loss_diverging", loss_above_start, None),
    ("loss_diverging", loss_given_back, None),
    ("loss_flat", loss_flat_at_class_entropy, None),
    ("loss_flat", loss_flat_at_uniform_guess, None),
    ("constant_prediction", constant_prediction, None),
]


@pytest.mark.parametrize(("rule", "spoil", "named"), FAULTS, ids=[spoil.__name__ for _, spoil, _ in FAULTS])
def test_rule_fires_alone_and_names_the_place(rule, spoil, named):
    course = Course()
    spoil(course)
    judge = course.judged()
    assert rule_names(judge) == [rule]
    finding = judge.findings[0]
    if named is None:
        assert finding.parameters == ()
    else:
        assert finding.parameters
        assert all(named in name for name in finding.parameters)
    assert rule in {known.name for known in rules.RULES}
    text = message(finding)
    for part in (finding.seen, finding.cause, finding.remedy, finding.where):
        assert part in text


def test_every_rule_has_a_course_that_makes_it_fire():
    in_loops = {rule for loops in (test_watched_loops, test_flow) for rule, _, _ in loops.FAULTS.values()}
    elsewhere = {
        # test_health_watch.py, with a scheduler, an evaluation and two processes
        *("schedule_out_of_step", "training_mode_in_evaluation"),
        *("replicas_differ", "gradients_not_averaged", "ranks_share_rows"),
    }
    assert {rule for rule, _, _ in FAULTS} | in_loops | elsewhere == {rule.name for rule in rules.RULES}


# --- healthy courses ----------------------------------------------------------------------------------------------


def as_it_is(c):
    pass


def frozen_from_the_input(c):
    c.model.words.requires_grad_(False)
    c.model.layers[0].requires_grad_(False)
    c.model.layers[1].requires_grad_(False)


def only_the_head_trains(c):
    c.model.requires_grad_(False)
    c.model.head.requires_grad_(True)


def only_biases_train(c):
    for name, parameter in c.model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


def lora_begins_at_zero(c):
    at = c.at("layers.1.up.weight")
    c.weight[0, at], c.ratio[0, at] = 0.0, np.nan
    c.gradient[0, c.at("layers.0.up.weight")] = 0.0


def embeddings_mostly_zero(c):
    c.zero_share[:, 0] = 0.99


def relu_layers_half_silent(c):
    c.zero_share[:, c.at("layers", "up")] = 0.5


def cosine_to_zero(c):
    c.rate *= (np.cos(np.linspace(0, np.pi, c.samples)) * 0.5 + 0.5)[:, None]
    c.ratio *= (np.cos(np.linspace(0, np.pi, c.samples)) * 0.5 + 0.5)[:, None]


def rate_zero_at_the_end(c):
    c.rate[55:], c.ratio[55:] = 0.0, 0.0


def layer_wise_rates(c):
    for layer in range(5):
        at = c.at(f"layers.{layer}.")
        c.rate[:, at] *= 0.5 ** (4 - layer)
        c.ratio[:, at] *= 0.5 ** (4 - layer)


def norms_round_away_late_in_a_decay(c):
    c.ratio[52:, c.at("norm.weight")] = 0.0
    c.rate[52:] *= 0.01


def scatter_grows_while_learning(c):
    random = np.random.default_rng(3)
    c.loss = np.linspace(0.7, 0.5, c.samples) + np.linspace(0.01, 0.2, c.samples) * random.standard_normal(c.samples)


def noisy_small_batches(c):
    random = np.random.default_rng(1)
    c.gradient *= np.exp(1.2 * random.standard_normal(c.samples))[:, None]
    c.loss += 0.4 * random.standard_normal(c.samples)


def learned_by_heart(c):
    # Gradients and loss go to zero, but for a few examples now and then.
    random = np.random.default_rng(2)
    c.gradient *= np.exp(-np.arange(c.samples) / 6 + 2 * random.standard_normal(c.samples))[:, None]
    c.loss = 1.1 * np.exp(-np.arange(c.samples) / 5)


def clipped_often(c):
    c.clip[:] = 0.1


def scale_search_of_the_scaler(c):
    c.skipped[:2] = True


def one_overflow_later(c):
    c.skipped[35] = True


def pretrained_gpt2_scale(c):
    c.weight[:] = 0.14 * 6


def fresh_narrow_transformer(c):
    c.config = 0.02
    c.weight[:] = 0.02
    c.weight[:, c.at("norm.weight")] = 1.0


def fresh_small_weights_grow_fast(c):
    c.ratio[1:8] = 0.12


def fresh_head_on_a_frozen_encoder(c):
    only_the_head_trains(c)
    c.ratio[1:20, c.at("head")] = 0.04
    c.loss = 0.7 - 0.002 * np.arange(c.samples) + 0.1 * np.random.default_rng(5).standard_normal(c.samples)


def large_steps_long_ago(c):
    c.ratio[1:6, c.at("weight")] = 0.04
    c.loss = 0.7 - 0.001 * np.arange(c.samples) + 0.1 * np.random.default_rng(5).standard_normal(c.samples)


def batches_of_two(c):
    # What a healthy fine-tuning with batches of two gave: examples are either easy or wrong.
    c.loss = np.linspace(0.7, 0.12, c.samples)
    c.loss[45:50] = [0.674, 0.182, 0.169, 0.787, 1.615]


def plateau_of_word_frequencies(c):
    c.classes, c.label_counts = 1000, np.zeros(0)
    c.loss = 5.9 + 0.05 * np.random.default_rng(0).standard_normal(c.samples)


def converged_before(c):
    c.loss = 0.3 + 0.05 * np.random.default_rng(0).standard_normal(c.samples)


def slow_start_then_learns(c):
    c.loss[:] = 1.1
    c.loss[25:] = np.linspace(1.1, 0.5, c.samples - 25)


def noisy_and_slow_but_falling(c):
    random = np.random.default_rng(4)
    c.loss = np.r_[np.full(20, 1.1), np.linspace(1.1, 0.9, c.samples - 20)] + 0.08 * random.standard_normal(c.samples)


def warmup_over_most_of_the_run(c):
    rising = np.minimum(1.0, np.arange(c.samples) / 45)
    c.rate = np.repeat((1e-3 * rising)[:, None], c.rate.shape[1], axis=1)
    c.ratio[1:] = 1e-3 * rising[1:, None]
    c.loss = 1.1 * np.exp(-np.cumsum(rising) / 25) + 0.05 * np.random.default_rng(0).standard_normal(c.samples) + 0.05


def regression(c):
    c.integer_labels, c.classes, c.label_counts = False, 1, np.zeros(0)
    c.loss = 0.4 + 0.05 * np.random.default_rng(0).standard_normal(c.samples)


def next_sentences_with_a_large_weight(c):
    """Words at 4.4 nats and ten times the loss of next sentences, near the 10.3 of a guess among all words."""
    loss_flat_at_uniform_guess(c)
    c.several_losses = True


def negative_log_density(c):
    c.integer_labels, c.classes, c.label_counts = False, 1, np.zeros(0)
    c.loss = np.linspace(1.0, -2.0, c.samples)


def bf16_weights_with_large_steps(c):
    c.model.to(torch.bfloat16)
    c.changed_share[:] = 0.8


def loss_unknown(c):
    c.loss[:] = np.nan
    c.classes, c.label_counts, c.integer_labels = 0, np.zeros(0), False


HEALTHY = [
    as_it_is,
    frozen_from_the_input,
    only_the_head_trains,
    only_biases_train,
    lora_begins_at_zero,
    embeddings_mostly_zero,
    relu_layers_half_silent,
    cosine_to_zero,
    rate_zero_at_the_end,
    layer_wise_rates,
    norms_round_away_late_in_a_decay,
    scatter_grows_while_learning,
    noisy_small_batches,
    learned_by_heart,
    clipped_often,
    scale_search_of_the_scaler,
    one_overflow_later,
    pretrained_gpt2_scale,
    fresh_narrow_transformer,
    fresh_small_weights_grow_fast,
    fresh_head_on_a_frozen_encoder,
    large_steps_long_ago,
    batches_of_two,
    plateau_of_word_frequencies,
    converged_before,
    slow_start_then_learns,
    noisy_and_slow_but_falling,
    warmup_over_most_of_the_run,
    regression,
    next_sentences_with_a_large_weight,
    negative_log_density,
    bf16_weights_with_large_steps,
    loss_unknown,
]


@pytest.mark.parametrize("change", HEALTHY, ids=lambda change: change.__name__)
@pytest.mark.parametrize("every", [1, 10])
def test_healthy_courses_raise_no_alarm(change, every):
    course = Course(every=every)
    change(course)
    judge = course.judged()
    assert [message(finding) for finding in judge.findings] == []


# --- findings -----------------------------------------------------------------------------------------------------


def test_symptoms_are_folded_under_their_cause():
    course = Course()
    nonfinite_everywhere(course)
    exploding_gradients(course)
    course.loss[32:] = 50.0
    judge = course.judged()
    assert rule_names(judge) == ["nonfinite"] or rule_names(judge) == ["exploding_gradients"]
    assert [f.rule for f in judge.symptoms(rule_names(judge)[0])]


def test_a_finding_is_reported_once_and_kept_up_to_date():
    course = Course()
    no_gradient(course)
    judge, history, reported = HealthJudge(), course.history(), []
    for length in range(1, len(history) + 1):
        history.shorten(length)
        reported += judge.judge(history)
    assert len(reported) == 1
    case = judge.cases["no_gradient"]
    assert reported[0].step == case.finding.step == history.step[4]
    assert case.samples == 5
    assert case.last_step == history.step[-1]


def test_a_fault_that_spreads_keeps_its_place():
    course = Course()
    course.ratio[10:, course.at("layers.2", "weight")] *= 50
    course.ratio[20:, course.at("layers.2", "weight")] /= 50
    course.ratio[20:, course.at("layers.3", "weight")] *= 50
    judge = course.judged()
    case = judge.cases["layer_out_of_line"]
    assert case.finding.parameters == ("layers.2.up.weight",)
    assert "layer.2" in case.finding.seen
    assert case.last_step == 590


def test_two_faults_are_two_findings():
    course = Course()
    frozen_layer(course)
    not_in_optimizer(course)
    assert sorted(rule_names(course.judged())) == ["frozen_layer", "not_updated"]


def test_history_is_bounded_and_keeps_the_start_and_the_recent_samples():
    course = Course(samples=3 * LONGEST, every=2)
    history = course.history()
    assert len(history) <= LONGEST
    assert history.step[0] == 1
    assert history.step[-20:].tolist() == [2 * i for i in range(3 * LONGEST - 20, 3 * LONGEST)]
    assert (np.diff(history.step) > 0).all()


def test_history_comes_back_from_its_file(tmp_path):
    course = Course()
    history, again = course.history(), HealthHistory(course.model, 600)
    history.save(tmp_path / "h.npz")
    assert again.load(tmp_path / "h.npz", last_step=300)
    assert again.step.tolist() == [s for s in history.step if s <= 300]
    np.testing.assert_array_equal(again.gradient, history.gradient[: len(again)])
    other = HealthHistory(nn.Linear(3, 3), 600)
    assert not other.load(tmp_path / "h.npz", last_step=300)


def test_gradients_are_undone_of_clipping():
    course = Course(samples=3)
    np.testing.assert_allclose(course.history().gradient, course.gradient, rtol=1e-12)


def test_prior_loss_is_the_entropy_of_labels():
    course = Course(samples=3)
    course.label_counts = course.label_counts * 1000
    shares = course.label_counts / course.label_counts.sum()
    assert course.history().prior_loss[-1] == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-4)


def test_prior_loss_of_few_labels_is_not_too_low():
    random = np.random.default_rng(0)
    estimates = []
    for _ in range(200):
        course = Course(samples=1)
        course.label_counts = np.bincount(random.integers(0, 3, 12), minlength=3).astype(float)
        estimates.append(course.history().prior_loss[-1])
    # Twelve labels of three classes: the plain estimate is 0.09 too low on average.
    assert np.mean(estimates) == pytest.approx(math.log(3), abs=0.03)
