"""Every health rule fires on what it is for; test_healthy_courses.py has what it must not fire on."""

import math

import numpy as np
import pytest
import test_attention
import test_flow
import test_losses_and_targets
import test_watched_loops
import test_weights_at_the_start
import torch
from courses import Course, rule_names

from bert_toolkit.health import rules
from bert_toolkit.health.findings import message

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
    c.loss = 1.3 + 0.05 * np.random.default_rng(0).standard_normal(c.samples)


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


def test_gradients_that_vanish_in_mid_run_are_laid_to_the_steps():
    def finding(from_sample):
        course = Course()
        for layer in range(5):
            course.gradient[from_sample:, course.at(f"layers.{layer}.")] *= 0.01 ** (4 - layer)
        return course.judged().cases["vanishing_gradients"].finding

    assert "activations" in finding(0).cause and "activation" in finding(0).remedy
    assert "steps that were too large" in finding(20).cause
    assert finding(20).remedy.startswith("lower the learning rate")


def test_gradients_of_skipped_steps_are_not_taken_for_cleared():
    history = test_watched_loops.FAULTS["cleared"][2]().run().history
    assert rules.protocol.gradients_cleared(history) is not None
    history.skipped[-1] = True
    assert rules.protocol.gradients_cleared(history) is None


def test_every_rule_has_a_course_that_makes_it_fire():
    in_loops = {
        rule
        for loops in (
            test_watched_loops,
            test_flow,
            test_losses_and_targets,
            test_weights_at_the_start,
            test_attention,
        )
        for rule, _, _ in loops.FAULTS.values()
    }
    elsewhere = {
        # test_behavior_probe.py
        *("future_visible", "padding_matters", "order_not_seen", "padding_not_hidden", "noise_in_evaluation"),
        "rows_mixed",
        *(
            "evaluation_unchanged",
            "score_contradicts_loss",
            "evaluation_below_chance",
            "learned_by_heart",
        ),  # test_evaluations.py
        *("not_as_in_checkpoint", "frozen_fresh_body"),  # test_weights_at_the_start.py
        # test_trained_models.py
        *("fresh_head_frozen", "fresh_kind", "worse_than_guessing", "zero_head", "tokenizer_of_another_model"),
        "adapters_frozen",
        # test_health_watch.py, with a scheduler, an evaluation and two processes
        *("schedule_out_of_step", "training_mode_in_evaluation"),
        *("replicas_differ", "gradients_not_averaged", "ranks_share_rows"),
    }
    assert {rule for rule, _, _ in FAULTS} | in_loops | elsewhere == {rule.name for rule in rules.RULES}


def test_short_run_that_never_learned_is_told_in_its_last_quarter():
    course = Course(samples=25)
    course.loss = 1.12 + 0.05 * np.random.default_rng(2).standard_normal(25)
    findings = course.judged().findings
    assert [finding.rule for finding in findings] == ["loss_flat"] and findings[0].step >= 0.75 * 250
    slow = Course(samples=25)
    slow.loss = np.linspace(1.12, 0.98, 25) + 0.05 * np.random.default_rng(0).standard_normal(25)
    assert slow.judged().findings == []
