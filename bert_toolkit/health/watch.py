"""Training health of any PyTorch loop: what to call around a sampled step, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.health.behavior_probe import BehaviorProbe
from bert_toolkit.health.checkpoint_comparison import checkpoint_differences
from bert_toolkit.health.findings import Finding
from bert_toolkit.health.flow_watch import FlowWatch
from bert_toolkit.health.forward_statistics import ForwardStatistics, ForwardWatch, PendingForward
from bert_toolkit.health.history import HealthHistory, HealthSample
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.health.protocol import ProtocolWatch
from bert_toolkit.health.replicas import replica_facts
from bert_toolkit.health.sampled_values import SampledValues
from bert_toolkit.health.settings import RunSettings, innermost
from bert_toolkit.health.unregistered import UnregisteredModules
from bert_toolkit.health.weight_census import weight_census
from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord
from bert_toolkit.monitoring.parameter_roles import learning_rates, named_unique_parameters
from bert_toolkit.monitoring.update_ratios import UpdateRatioRecord
from bert_toolkit.processes import world_size


def is_probed(times: int, *, second: int = 4) -> bool:
    """Return whether a model's behavior is probed at this sample, counted from when this process began to watch.

    The first finds what is wrong from the start. A model whose layers begin as the identity shows only later that it
    sees order; and what fails now and then, or begins to fail, is met by one of ever rarer samples.

    Args:
        times: Number of samples that were taken before.
        second: Samples before the second probe, a power of two; later ones follow at the powers of two.
    """
    return times == 0 or (times >= second and times & (times - 1) == 0)


class HealthWatch:
    """A watcher that collects what the rules look at, on the steps that a caller samples, and has it judged.

    Around a sampled step call, in this order and on every rank: `start` before the forward pass, `before_step` right
    before the optimizer's step, `after_step` right after it, and `finish` with the records of gradients and updates.
    Between samples nothing is done; 256 values of each parameter are kept.

    Args:
        model: The module that is trained.
        optimizer: Its optimizer, if there is one yet.
        schedule: The scheduler of its learning rate.
        tokenizer: Knows the special tokens.
        last_step: The optimizer step at which the run will end; 0 where unknown.
        forward: Watch forward passes; off where hooks would disturb (`torch.compile`) or miss them (`DataParallel`).
        judge: Holds what was found before, where a history starts anew.
        partitioned: An engine keeps gradients, and parameters in part, where this class cannot see them; what it
            compares around the step itself is then left out.
        settings: Further fields of `RunSettings`, such as `label_smoothing`.

    Attributes:
        history: What was seen so far.
        judge: The findings so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        schedule: Any = None,
        tokenizer: Any = None,
        last_step: int = 0,
        forward: bool = True,
        judge: HealthJudge | None = None,
        partitioned: bool = False,
        **settings: Any,
    ) -> None:
        run = RunSettings.of(model, optimizer, schedule, tokenizer, last_step, **settings)
        self.history = HealthHistory(model, last_step, run)
        self.judge = judge or HealthJudge()
        self._model = model
        self._schedule = schedule
        self._forward = ForwardWatch(model, run.special_tokens) if forward else None
        self._flow = FlowWatch(model) if forward else None
        self._behavior = BehaviorProbe(model) if forward and not partitioned else None
        self._times = 0
        self._unregistered = UnregisteredModules(model)
        self.history.places = {} if self._flow is None else self._flow.places
        self.history.places["unregistered"] = self._unregistered.places
        self._protocol = None if partitioned else ProtocolWatch(model, run.unheld)
        self._values = SampledValues(model, self.history.names)
        self._has_begun = False
        self._drift: dict[str, Tensor] = {}
        self._replicated = not any(isinstance(p, DTensor) for _, p in named_unique_parameters(model))
        self._facts: dict[str, Tensor | float] = {}
        self._pending: PendingForward | None = None
        self._rates: dict[str, float] = {}

    def begin(self) -> list[Finding]:
        """Look at settings and weights before the first step; not needed for a run that is resumed.

        Returns:
            What is wrong already.
        """
        names = self.history.names
        self.history.start = self._values.census() | weight_census(self._model, names)
        self.history.start["differs"] = checkpoint_differences(self._model, names)
        return self.judge.judge_start(self.history)

    def start(self, steps_inside_backward: bool = False) -> None:
        """Watch the step that begins now.

        Args:
            steps_inside_backward: The optimizer will have stepped when `before_step` is called.
        """
        self._has_begun = steps_inside_backward and self._protocol is not None
        self._drift = self._values.before_step() if self._has_begun else {}
        if self._protocol is not None and not steps_inside_backward:
            self._protocol.start()
        if self._forward is not None:
            self._forward.start()
        if self._flow is not None:
            self._flow.start()

    def check(self) -> None:
        """Raise what went wrong in a hook of this step, which must not raise within somebody's forward pass."""
        if self._protocol is not None:
            self._protocol.guard.check()
        if self._forward is not None:
            self._forward.guard.check()
        if self._flow is not None:
            self._flow.check()

    def before_step(self, optimizer: Any) -> None:
        """Read what the backward pass has left, right before the optimizer's step.

        Args:
            optimizer: The optimizer, or Accelerate's wrapper of it.
        """
        facts: dict[str, Tensor | float] = {}
        if self._flow is not None:
            facts |= self._flow.stop()
        if self._behavior is not None and self._forward is not None and is_probed(self._times):
            # Every rank hands out the same facts, unknown or not.
            facts |= self._behavior.facts(self._forward.first_inputs or {})
        self._times += 1
        facts |= self._unregistered.facts(optimizer)
        if self._protocol is not None:
            facts |= self._protocol.facts(optimizer)
            self._protocol.stop()
            facts |= self._drift if self._has_begun else self._values.before_step()
        if self._protocol is not None and self._replicated and world_size() > 1:
            fingerprint = None if self._forward is None else self._forward.batch_fingerprint
            facts |= replica_facts(self._values.checksums(), fingerprint)
        self._facts = facts
        self._rates = learning_rates(self._model, optimizer)

    def after_step(self) -> None:
        """Read what the optimizer has done, right after its step."""
        if self._protocol is not None:
            self._facts |= self._values.after_step()
        if self._forward is not None:
            self._pending = self._forward.stop(self._facts)
        else:
            self._pending = PendingForward([], {}, False, [self._facts])
        self._facts = {}

    def finish(
        self,
        gradients: GradientFlowRecord,
        updates: UpdateRatioRecord,
        logged_loss: float = math.nan,
        learning_rates: Mapping[str, float] | None = None,
    ) -> list[Finding]:
        """Add the sample to the history and judge it.

        Args:
            gradients: Of this step.
            updates: Of this step.
            logged_loss: The loss that the training loop reported last, for models that return none.
            learning_rates: Parameter name to rate of this step; None for those of the optimizer of `before_step`.

        Returns:
            Findings that are new and that nothing else explains.
        """
        forward = ForwardStatistics() if self._pending is None else self._pending.finish()
        self._pending = None
        known: dict[str, float] = {}
        steps = getattr(self._schedule, "last_epoch", None)
        waits = type(innermost(self._schedule)).__name__ in ("ReduceLROnPlateau", "GreedyLR")  # for an evaluation
        if isinstance(steps, int) and not waits:
            known["schedule_steps"] = float(steps)
        rates = self._rates if learning_rates is None else dict(learning_rates)
        self.history.add(HealthSample(gradients, updates, rates, forward, logged_loss, known))
        return self.judge.judge(self.history)

    def forget(self) -> None:
        """Leave nothing behind of a step that was interrupted."""
        if self._protocol is not None:
            self._protocol.stop()
        self._values.forget()
        if self._forward is not None:
            self._forward.forget()
        if self._flow is not None:
            self._flow.forget()
        self._pending, self._facts = None, {}
