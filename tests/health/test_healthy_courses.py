"""Health rules stay silent on healthy courses that look like faults, and the judge puts symptoms under causes."""

import math

import numpy as np
import pytest
import torch
from courses import Course, rule_names
from test_health_rules import (
    exploding_gradients,
    frozen_layer,
    loss_flat_at_uniform_guess,
    no_gradient,
    nonfinite_everywhere,
    not_in_optimizer,
)
from torch import nn

from bert_toolkit.health.findings import message
from bert_toolkit.health.history import LONGEST, HealthHistory
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.health.settings import RunSettings


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


def policy_whose_loss_has_no_level(c):
    # An advantage times a log-probability: of either sign, and zero once the best action is taken.
    c.integer_labels, c.classes, c.label_counts = False, 4, np.zeros(0)
    c.loss = 0.1 * np.random.default_rng(6).standard_normal(c.samples)
    c.ratio[:25, c.at("weight")] = 0.05


def first_steps_far_beyond_the_weights(c):
    """Targets of hundreds of thousands: weights of 0.1 grow by all of their norm, and the loss falls later."""
    regression(c)
    c.ratio[:8, c.at("weight")] = np.array([1.2, 0.6, 0.27, 0.21, 0.17, 0.13, 0.11, 0.09])[:, None]
    noise = np.exp(0.2 * np.random.default_rng(7).standard_normal(c.samples))
    c.loss = 1e11 * noise * np.where(np.arange(c.samples) < 10, 1.0, 0.3)


def large_steps_while_the_loss_falls_with_one_jump(c):
    c.integer_labels, c.classes, c.label_counts = True, 1000, np.zeros(0)
    c.ratio[1:8, c.at("weight")] = np.array([0.16, 0.19, 0.17, 0.14, 0.23, 0.5, 0.33])[:, None]
    c.loss[:8] = [6.7, 6.72, 6.52, 6.19, 6.05, 5.99, 7.14, 6.23]
    c.loss[8:] = 6.0 - 0.01 * np.arange(c.samples - 8)


def gradients_of_a_layer_grow_in_training(c):
    c.gradient[20:, c.at("layers.0.")] *= 60


def large_loss_clipped_by_a_usual_limit(c):
    regression(c)
    c.settings = RunSettings(optimizer="AdamW")
    c.gradient *= 1e5
    c.clip[:] = 1e-4


def easy_and_wrong_batches_after_learning(c):
    c.loss[:30] = np.linspace(0.69, 0.66, 30)
    c.loss[30:] = np.tile([0.26, 0.42, 0.04, 0.05, 1.49, 1.31, 0.53, 0.04, 1.51, 0.08], 3)


def gain_hidden_by_the_labels_of_the_batches(c):
    """One label in twenty: which batches have one decides their loss, and what is learned is a fifth of that."""
    rare = np.random.default_rng(8).binomial(16, 0.05, c.samples)
    c.classes, c.label_counts = 2, np.stack([16.0 - rare, rare], axis=1)
    c.loss = 0.8 * (-rare * np.log(0.05) - (16 - rare) * np.log(0.95)) / 16


def sorted_by_length(c):
    """Long texts, which come last, all have one label; short ones have either."""
    c.facts = {"examples": np.full(c.samples, 8.0), "top_label_fraction": np.full(c.samples, 0.6)}
    c.facts["top_label_fraction"][45:] = 1.0


def tagger_whose_class_0_is_the_id_of_padding(c):
    c.settings = RunSettings(config={"vocab_size": 1000})
    c.label_counts = np.zeros(0)
    c.facts = {"label_pad_run": np.full(c.samples, 0.5), "labels_on_padding": np.zeros(c.samples)}


def labels_on_padding_that_the_loss_leaves_out(c):
    c.facts = {"labels_on_padding": np.ones(c.samples), "counted_padding": np.zeros(c.samples)}


def decoder_with_longer_texts_than_the_encoder(c):
    c.settings = RunSettings(config={"is_encoder_decoder": True})
    c.facts = {"labels_on_padding": np.ones(c.samples), "counted_padding": np.ones(c.samples)}


def prompts_of_a_frozen_body(c):
    """Large steps of a small fresh part on a plateau, after which the loss falls."""
    c.model.requires_grad_(False)
    for name in ("layers.4.up", "head"):
        c.model.get_submodule(name).requires_grad_(True)
    c.model.layers[4].up.weight = nn.Parameter(c.model.layers[4].up.weight[:8])
    c.model.words = nn.Embedding(400, 16).requires_grad_(False)
    c.ratio[1:30, c.at("weight")] = 0.05
    c.loss[:30] = 1.1 + 0.05 * np.random.default_rng(9).standard_normal(30)


def too_noisy_to_tell_yet(c):
    """A little is known at 60 % of the run, less than the noise of small batches; most is learned in the rest."""
    c.classes, c.label_counts = 2, np.array([8.0, 8.0])
    c.loss = 0.68 + 0.2 * np.random.default_rng(11).standard_normal(c.samples)
    c.loss[42:] -= np.linspace(0.1, 0.4, c.samples - 42)


HEALTHY = [
    too_noisy_to_tell_yet,
    prompts_of_a_frozen_body,
    policy_whose_loss_has_no_level,
    first_steps_far_beyond_the_weights,
    large_steps_while_the_loss_falls_with_one_jump,
    gradients_of_a_layer_grow_in_training,
    large_loss_clipped_by_a_usual_limit,
    easy_and_wrong_batches_after_learning,
    gain_hidden_by_the_labels_of_the_batches,
    sorted_by_length,
    tagger_whose_class_0_is_the_id_of_padding,
    labels_on_padding_that_the_loss_leaves_out,
    decoder_with_longer_texts_than_the_encoder,
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


def test_facts_of_other_names_in_an_older_file_harm_nothing(tmp_path):
    course = Course()
    course.facts = {"labelled_fraction": np.full(course.samples, 0.2)}
    history, again = course.history(), HealthHistory(course.model, 600)
    history.save(tmp_path / "h.npz")
    assert again.load(tmp_path / "h.npz", last_step=600) and len(again) == len(history)
    judge = HealthJudge()
    judge.judge(again)
    assert not judge.findings
    assert np.isnan(again.fact("labeled_fraction")).all()


def test_disk_that_is_full_leaves_the_file_of_before_and_nothing_else(tmp_path, monkeypatch):
    history = Course().history()
    history.save(tmp_path / "h.npz")
    before = (tmp_path / "h.npz").read_bytes()

    def fail(file, **arrays):
        file.write(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="no space"):
        history.save(tmp_path / "h.npz")
    assert list(tmp_path.iterdir()) == [tmp_path / "h.npz"]
    assert (tmp_path / "h.npz").read_bytes() == before


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
