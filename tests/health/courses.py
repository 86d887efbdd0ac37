"""A healthy training of a small stack, as arrays that tests spoil."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from bert_toolkit.health.forward_statistics import ForwardStatistics
from bert_toolkit.health.history import HealthHistory, HealthSample
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.health.settings import RunSettings
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
        self.settings = RunSettings()
        self.facts: dict[str, np.ndarray] = {}

    def at(self, *parts: str) -> np.ndarray:
        return np.flatnonzero([all(part in name for part in parts) for name in self.names])

    def history(self, samples: int | None = None) -> HealthHistory:
        history = HealthHistory(self.model, self.samples * self.every, self.settings)
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
                        label_counts=self.label_counts if self.label_counts.ndim == 1 else self.label_counts[i],
                        integer_labels=self.integer_labels,
                        several_losses=self.several_losses,
                        identical_inputs=bool(self.identical[i]),
                        masked_share=self.masked[i],
                        facts={name: values[i] for name, values in self.facts.items()},
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
