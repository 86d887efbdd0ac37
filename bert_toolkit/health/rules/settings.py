"""Rules on settings that cannot be meant, told before the first step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from bert_toolkit.health.findings import Finding, Severity
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.registry import BEHAVIOR, COURSE, FLOW, OUTCOME, STEPS, rule
from bert_toolkit.health.settings import GroupSettings, RunSettings

# Optimizers whose step is about as long as the rate, whatever the size of the gradient.
ADAM_LIKE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "AdamW8bit", "Adam8bit", "FusedAdam", "Lamb", "LAMB")


_LARGER = (
    r"accuracy|(^|_)(f1|mcc|auc|map|mrr|bleu|r2)($|_)|matthews|precision|recall|rouge|exact_match|pearson|spearman"
)
_SMALLER = r"(^|_)(loss|perplexity|wer|cer|mse|rmse|mae|nll)$"
_FEW = 100_000  # elements: prompts and other small sets of parameters are trained with rates of up to 1


class _Doubt(NamedTuple):
    severity: Severity
    value: float
    limit: float
    what: str
    usual: str


@rule(
    needs="settings",
    explains=(COURSE, OUTCOME, FLOW, STEPS, BEHAVIOR, "nonfinite", "not_updated", "initial_scale"),
    cause="a typing error, another unit (percent for a fraction), or a value that was meant for another setting",
    remedy="set it to a usual value; the message names the range and where it comes from",
)
def implausible_setting(history: HealthHistory) -> Finding | None:
    """A setting lies so far from every published use that it cannot be meant.

    Judged before the first step, and SGD's rate at the first samples. Ranges are wide: what a paper has
    used on purpose is silent. All doubtful settings stand in one message.

    | setting | doubted | usual, and its source |
    |---|---|---|
    | dropout | 0.7 and more, unless the config's class has it by default | 0.1, 0.5 at most (Srivastava et al. 2014) |
    | label smoothing | 0.5 and more | 0.1 (Szegedy et al. 2016) |
    | weight decay | above 1; Lion: above 20 | 0.01 to 0.1 (Loshchilov & Hutter 2019), 1 (Power et al. 2022) |
    | Adam's beta1, beta2 | beta1 0.999 and more, beta2 below 0.5 | 0.9 and 0.95 to 0.999 (Kingma & Ba 2015) |
    | Adam's epsilon | 1e-3 and more | 1e-8 to 1e-6 |
    | learning rate of Adam | 0.1 and more for 100,000 parameters and more; 1e-8 and less | 1e-5 to 1e-2 |
    | learning rate of SGD | 1e-4 and less, where steps move matrices by < 1e-4 | 1e-3 to 0.1 (He et al. 2016) |
    | schedule | zero for more than a fifth of the run; never above a tenth of the rate | ends with the run |
    | epsilon of LayerNorm | 1e-2 and more | 1e-12 to 1e-5 |
    | scaling of adapters | above 64, below 1/64, or 0 | alpha / r of 0.5 to 4 (Hu et al. 2021) |
    | max_grad_norm | 1e-3 and less | 0.1 to 10 |
    | greater_is_better | True for a loss or an error rate, False for a score | as its name says |
    """
    if len(history) > 5:
        return None
    doubts = [*_doubts(history.settings), *_doubtful_sgd(history)]
    if not doubts:
        return None
    worst = min(doubts, key=lambda doubt: ("error", "warning", "note").index(doubt.severity))
    return implausible_setting.finding(
        history,
        value=worst.value,
        threshold=worst.limit,
        seen="; ".join(f"{doubt.what} (usual: {doubt.usual})" for doubt in doubts[:6]),
        severity=worst.severity,
    )


def _doubts(settings: RunSettings) -> Iterator[_Doubt]:
    yield from _doubtful_regularization(settings)
    held = sum(group.parameters for group in settings.groups)
    for group in settings.groups:
        for doubt in _doubtful_group(settings.optimizer, group):
            if (
                group.values.get("lr") != 0 or 2 * group.parameters > held
            ):  # a part may be kept as it is by a rate of 0
                yield doubt
    yield from _doubtful_schedule(settings)
    metric = settings.best_metric.lower()
    if metric and re.search(_SMALLER if settings.greater_is_better else _LARGER, metric):
        which = "largest" if settings.greater_is_better else "smallest"
        what = f"the best checkpoint is the one with the {which} {metric}"
        yield _Doubt("error", float(settings.greater_is_better), 0.0, what, "the other way round")
    eps = {name: value for name, value in settings.norm_eps.items() if value >= 1e-2}
    if eps:
        name, value = max(eps.items(), key=lambda item: item[1])
        yield _Doubt(
            "error", value, 1e-2, f"epsilon of {len(eps)} normalizations ({name}) is {value:g}", "1e-12 to 1e-5"
        )
    scales = {
        name: value for name, value in settings.adapter_scaling.items() if value == 0 or not 1 / 64 <= abs(value) <= 64
    }
    if scales:
        name, value = next(iter(scales.items()))
        yield _Doubt("error", value, 64, f"adapters are scaled by {value:g} ({name})", "alpha / r of 0.5 to 4")


def _doubtful_regularization(settings: RunSettings) -> Iterator[_Doubt]:
    high = {name: p for name, p in settings.dropouts.items() if p >= 0.7 and p not in settings.default_dropouts}
    if high:
        name, p = max(high.items(), key=lambda item: item[1])
        severity: Severity = "error" if p >= 0.8 else "warning"
        yield _Doubt(severity, p, 0.7, f"dropout is {p:g} ({name})", "0.1, at most 0.5")
    if settings.label_smoothing >= 0.5:
        smoothing = settings.label_smoothing
        yield _Doubt("error", smoothing, 0.5, f"label smoothing is {smoothing:g}", "0.1")
    limit = settings.max_grad_norm
    if limit is not None and 0 < limit <= 1e-3:
        yield _Doubt("error", limit, 1e-3, f"gradients are clipped to a norm of {limit:g}", "0.1 to 10")


def _doubtful_group(optimizer: str, group: GroupSettings) -> Iterator[_Doubt]:
    values = group.values
    rate, decay = values.get("lr", math.nan), values.get("weight_decay", 0.0)
    largest = 20.0 if "lion" in optimizer.lower() else 1.0
    if decay > largest or decay < 0:
        yield _Doubt("error", decay, largest, f"weight decay is {decay:g}", "0.01 to 0.1")
    if values.get("maximize", 0.0):
        yield _Doubt("error", 1, 0, "the optimizer maximizes the loss (maximize=True)", "False")
    if optimizer in ADAM_LIKE:
        yield from _doubtful_adam(values, rate, group.parameters)
    elif optimizer == "SGD" and values.get("momentum", 0.0) >= 1.0:
        yield _Doubt("error", values["momentum"], 1.0, f"momentum is {values['momentum']:g}", "0.9")
    if rate == 0 and not values.get("relative_step", 0.0):  # Adafactor may choose its own
        yield _Doubt("error", 0.0, 0.0, "the learning rate is 0", "above 0")
    elif rate < 0:
        yield _Doubt("error", rate, 0.0, f"the learning rate is negative, {rate:g}", "above 0")


def _doubtful_sgd(history: HealthHistory) -> Iterator[_Doubt]:
    """A rate of SGD says nothing without the size of gradients, so the first step that it makes is looked at."""
    settings = history.settings
    if settings.optimizer != "SGD" or not len(history):
        return
    rate = max((group.values.get("lr", 0.0) for group in settings.groups), default=0.0)
    moving = np.flatnonzero((history.largest_ratio > 0) & (history.rate > 0))
    if not len(moving) or not 0 < rate <= 1e-4:
        return
    if not settings.planned_rates and (len(history) < 2 or history.rate.max() > 1.01 * rate):
        return  # cycles may begin at their lowest
    first = moving[0]
    ratio = float(history.largest_ratio[first] * rate / history.rate[first])
    if ratio < 1e-4:
        what = f"SGD's learning rate is {rate:g}, a rate for Adam: steps move matrices by {ratio:.1g}"
        yield _Doubt("error", rate, 1e-4, what, "1e-3 to 0.1")


def _doubtful_adam(values: Mapping[str, float], rate: float, parameters: int) -> Iterator[_Doubt]:
    beta1, beta2, eps = (
        values.get(name, default) for name, default in (("beta1", 0.9), ("beta2", 0.999), ("eps", 0.0))
    )
    if beta1 >= 0.999:
        yield _Doubt("error", beta1, 0.999, f"Adam's beta1 is {beta1:g}", "0.9")
    if beta2 < 0.5 or beta2 >= 1.0:
        yield _Doubt("error", beta2, 0.5, f"Adam's beta2 is {beta2:g}", "0.95 to 0.999")
    if eps >= 1e-3:
        severity: Severity = "error" if eps >= 1e-2 else "warning"
        yield _Doubt(severity, eps, 1e-3, f"Adam's epsilon is {eps:g}", "1e-8 to 1e-6")
    if rate >= 0.1 and parameters > _FEW:
        yield _Doubt("error", rate, 0.1, f"Adam's learning rate is {rate:g}", "1e-5 to 1e-2")
    elif 0 < rate <= 1e-8:
        yield _Doubt("error", rate, 1e-8, f"Adam's learning rate is {rate:g}", "1e-5 to 1e-2")


def _doubtful_schedule(settings: RunSettings) -> Iterator[_Doubt]:
    rates = settings.planned_rates
    if not rates or max(rates) <= 0:
        return
    off = sum(rate <= 1e-6 * max(rates) for rate in rates[1:]) / (len(rates) - 1)
    if off > 0.2:
        yield _Doubt(
            "error", off, 0.2, f"the schedule gives a rate of 0 for {off:.0%} of the run", "ends with the run"
        )
    if max(rates) < 0.1:
        what = f"the schedule never exceeds {max(rates):.2g} of the learning rate: a warm-up far longer than the run"
        yield _Doubt("error", max(rates), 0.1, what, "a warm-up of 5 to 10 % of the steps")
