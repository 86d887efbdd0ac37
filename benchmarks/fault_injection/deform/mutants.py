"""The catalogue as mutants, and a survey of what each does to a model: something, nothing, or the same as another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from defaultplusplus.deform import OPERATORS, get_injector, list_operators
from defaultplusplus.deform.injection import FaultInjector
from torch import nn
from transformers import set_seed

from benchmarks.fault_injection.deform.subjects import Subject
from benchmarks.fault_injection.deform.texts import TASKS, Sources, Task, collate

CLEAN = "clean"
ACTS = "acts"


@dataclass(frozen=True)
class Mutant:
    """An operator at a value of its parameter.

    Args:
        operator: Three letters.
        value: None where the operator has no parameter.
    """

    operator: str
    value: float | str | None

    @property
    def name(self) -> str:
        """As results and files call it."""
        return self.operator if self.value is None else f"{self.operator}-{self.value}"

    @property
    def component(self) -> str:
        """The part of a transformer that the catalogue counts it to."""
        return str(OPERATORS[self.operator].component.value)

    def injector(self, model: nn.Module) -> FaultInjector:
        """The context in which the model is broken."""
        return get_injector(self.operator, param_value=self.value)(model)


def mutants(scope: str) -> list[Mutant]:
    """Every operator of a scope at every value, in the catalogue's order."""
    return [Mutant(op.op_id, value) for op in list_operators(scope) for value in (op.param_grid or (None,))]


def fingerprint(subject: Subject, task: Task, sources: Sources, mutant: Mutant | None) -> str:
    """Losses, gradients and evaluation of two training steps without an optimizer, to the last bit."""
    set_seed(0)
    model = subject.build(task, sources)
    batch = collate(subject.rows(task, sources)[0][:16])
    digest = hashlib.sha256()

    def note(value: torch.Tensor | None) -> None:
        digest.update(b"none" if value is None else value.detach().numpy().tobytes())

    def look() -> None:
        set_seed(1)
        for _ in range(2):
            output = model.train()(**batch)
            output.loss.backward()
            note(output.loss)
            for parameter in model.parameters():
                note(parameter.grad)
        output = model.eval()(**batch)
        note(output.logits if task.classes else output.loss)

    if mutant is None:
        look()
    else:
        with mutant.injector(model):
            look()
    return digest.hexdigest()


def survey(subject: Subject, sources: Sources) -> dict[str, str]:
    """What each mutant does to a model, by its name.

    Returns:
        `acts`; `same as clean` or `same as NAME` where two steps are equal to the last bit; `cannot be applied: ...`
        or `breaks the step: ...` with the error.
    """
    task = next(task for task in TASKS.values() if task.scope == subject.scope)
    known = {fingerprint(subject, task, sources, None): CLEAN}
    verdicts: dict[str, str] = {}
    for mutant in mutants(subject.scope):
        try:
            seen = fingerprint(subject, task, sources, mutant)
        except (ValueError, RuntimeError) as error:
            how = "cannot be applied" if "no compatible" in str(error) else "breaks the step"
            verdicts[mutant.name] = f"{how}: {str(error).splitlines()[0]}"
            continue
        other = known.get(seen)
        # Two operators with the same effect stay two: the catalogue counts them to different components
        same = other is not None and other.partition("-")[0] in (CLEAN, mutant.operator)
        verdicts[mutant.name] = f"same as {other}" if same else ACTS
        known.setdefault(seen, mutant.name)
    return verdicts


def read_survey(path: Path) -> dict[str, dict[str, str]]:
    """Verdicts by subject; none where there is no file yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
