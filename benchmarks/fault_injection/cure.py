"""Does the advice help? What the first finding of a broken training says is done, blindly, and the training restarted.

    python -m benchmarks.fault_injection.cure run       # every planted fault, one seed; goes on where it was stopped
    python -m benchmarks.fault_injection.cure run --only gpt2/layer_frozen
    python -m benchmarks.fault_injection.cure report    # benchmarks/cure.md

For each rule stands here what its remedy says, as a change of settings, weights or program that knows the finding and
not the fault. The training begins anew with it; where another finding comes, its remedy is added, three in all. Where
a text says to try several values, each is tried, and the one kept whose training loss ends lowest. A training is
cured where its loss on fixed batches falls by at least 90 % of what the healthy training with the same seed gains.
Needs the extras of `python -m benchmarks.fault_injection`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from benchmarks.fault_injection.faults import FAULTS
from benchmarks.fault_injection.results import build
from benchmarks.fault_injection.trainings import MODELS, Run, train
from bert_toolkit import TrainingHealthCallback
from bert_toolkit.health.findings import Finding

RESULTS = Path(__file__).parents[1] / "results" / "cure.jsonl"
PAGE = Path(__file__).parents[1] / "cure.md"
SEED, ROUNDS, ENOUGH, BATCHES = 3, 3, 0.9, 8

Remedy = Callable[[Run, Finding, Run], None]
"""Changes a broken run, given a finding and a training as it was before anybody broke it (what a person has as well:
the model's own initialization, its checkpoint, a collator from the library)."""

REMEDIES: dict[str, Remedy] = {}

TRIED = {"update_ratio_low": (1.0, 3.0, 10.0)}
"""By what the rate is multiplied in turn, where the text says so."""


def remedy(*rules: str) -> Callable[[Remedy], Remedy]:
    """Register the function below as what the texts of these rules say."""

    def register(function: Remedy) -> Remedy:
        REMEDIES.update(dict.fromkeys(rules, function))
        return function

    return register


def named(run: Run, finding: Finding) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a finding names."""
    return [(name, p) for name, p in run.model.named_parameters() if name in finding.parameters]


def with_rates(run: Run, factor: float) -> None:
    """Multiply the learning rate of every parameter group."""
    run.settings["learning_rate"] *= factor
    build_optimizer = run.optimizer
    if build_optimizer is None:
        return

    def built(model: Any, rate: float) -> torch.optim.Optimizer:
        optimizer = build_optimizer(model, rate)
        for group in optimizer.param_groups:
            if group["lr"] != rate:  # those that follow the setting have been changed with it
                group["lr"] *= factor
        return optimizer

    run.optimizer = built


def times(finding: Finding) -> float:
    """By how much the remedy says that a rate is to change: the middle of what it gives, else ten."""
    found = re.search(r"rate (\d+) to (\d+) times", finding.remedy)
    return math.sqrt(float(found[1]) * float(found[2])) if found else 10.0


@remedy("update_ratio_high", "loss_diverging", "exploding_gradients", "constant_prediction")
def slower(run: Run, finding: Finding, intact: Run) -> None:
    """Lower the rate, warm up over a tenth of the steps, clip."""
    with_rates(run, 1.0 / times(finding))
    run.settings.update(warmup_steps=run.settings["max_steps"] // 10, max_grad_norm=1.0)


@remedy("update_ratio_low")
def faster(run: Run, finding: Finding, intact: Run) -> None:
    """Raise the rate by what the text says."""
    found = re.search(r"about ([\d,]+) times", finding.remedy)
    with_rates(run, float(found[1].replace(",", "")) if found else 10.0)


@remedy("clipped_every_step", "gradient_spike")
def usual_clipping(run: Run, finding: Finding, intact: Run) -> None:
    """The usual limit."""
    run.settings["max_grad_norm"] = 1.0


@remedy("implausible_setting")
def usual_setting(run: Run, finding: Finding, intact: Run) -> None:
    """Set what the message names to what is usual: here to the defaults of the training."""
    for name in ("max_grad_norm", "weight_decay", "label_smoothing_factor"):
        if name in finding.seen and name in intact.settings:
            run.settings[name] = intact.settings[name]
    if "clip" in finding.seen:
        run.settings["max_grad_norm"] = intact.settings["max_grad_norm"]
    if re.search(r"maximize|learning rate|\blr\b|rate", finding.seen):
        run.settings["learning_rate"] = intact.settings["learning_rate"]
        run.optimizer = None


@remedy("gradients_cleared")
def zero_grad_in_its_place(run: Run, finding: Finding, intact: Run) -> None:
    """Nothing to move here: the loop is Trainer's, and it clears gradients after the step."""


@remedy("step_ascends")
def usual_optimizer(run: Run, finding: Finding, intact: Run) -> None:
    """An optimizer whose step has the right sign."""
    run.optimizer = None


@remedy("frozen_layer", "frozen_kind")
def thawed(run: Run, finding: Finding, intact: Run) -> None:
    """Gradients for what is named."""
    for _, parameter in named(run, finding):
        parameter.requires_grad_(True)


@remedy("not_updated")
def all_held(run: Run, finding: Finding, intact: Run) -> None:
    """Compare param_groups with the model's parameters: every one in a group that moves."""
    build_optimizer = run.optimizer
    if build_optimizer is None:
        run.settings.update(lr_scheduler_type="linear", warmup_steps=run.settings["max_steps"] // 10)
        return

    def built(model: Any, rate: float) -> torch.optim.Optimizer:
        optimizer = build_optimizer(model, rate)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in model.parameters() if id(p) not in held]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] or rate
        if missing:
            optimizer.add_param_group({"params": missing, "lr": rate})
        return optimizer

    run.optimizer = built


@remedy("layer_out_of_line")
def in_line(run: Run, finding: Finding, intact: Run) -> None:
    """Compare rate, scale and hooks of the layer with the others, and make them alike."""
    build_optimizer = run.optimizer
    for _, parameter in named(run, finding):
        parameter._backward_hooks = None
    if build_optimizer is not None:

        def built(model: Any, rate: float) -> torch.optim.Optimizer:
            optimizer = build_optimizer(model, rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            return optimizer

        run.optimizer = built


@remedy("no_gradient", "module_output_changed")
def without_hooks(run: Run, finding: Finding, intact: Run) -> None:
    """Remove what cuts the graph or changes outputs around the named parameters."""
    owners = {name.rpartition(".")[0] for name, _ in named(run, finding)}
    for path, module in run.model.named_modules():
        near = any(owner.startswith(path) or path.startswith(owner.rpartition(".")[0]) for owner in owners)
        if path and near:
            module._forward_hooks.clear()


@remedy("initial_scale", "not_as_in_checkpoint", "constant_weights", "norms_out_of_scale", "kind_out_of_scale")
def own_initialization(run: Run, finding: Finding, intact: Run) -> None:
    """The model's own initialization, or its checkpoint, for what is named; for all where nothing is."""
    weights = dict(intact.model.named_parameters())
    with torch.no_grad():
        for name, parameter in named(run, finding) or run.model.named_parameters():
            if name in weights and weights[name].shape == parameter.shape:
                parameter.copy_(weights[name])


@remedy("dead_units")
def living_units(run: Run, finding: Finding, intact: Run) -> None:
    """Check the bias, which begins near 0; where that is well, use GELU and lower the rate."""
    parameters = dict(run.model.named_parameters())
    biases = [parameters[n.replace("weight", "bias")] for n in finding.parameters if n.endswith("weight")]
    low = [bias for bias in biases if float(bias.detach().amax()) < -1.0]
    for bias in low:
        nn.init.zeros_(bias)
    if not low:
        replace_modules(run.model, nn.ReLU, nn.GELU)
        with_rates(run, 0.1)


@remedy("vanishing_gradients")
def open_activations(run: Run, finding: Finding, intact: Run) -> None:
    """Activations that do not saturate, and weights with a gain for them; or smaller steps, where the text says so."""
    if finding.remedy.startswith("lower the learning rate"):
        slower(run, finding, intact)
        return
    replaced = replace_modules(run.model, nn.Sigmoid, nn.GELU) + replace_modules(run.model, nn.Tanh, nn.GELU)
    for module in run.model.modules() if replaced else ():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)


@remedy("nonfinite")
def clean_data(run: Run, finding: Finding, intact: Run) -> None:
    """Look for NaN where anomaly detection points: at what stands around the model's parts."""
    for module in run.model.modules():
        module._forward_hooks.clear()
    if finding.step > 1 and not run.callbacks:
        slower(run, finding, intact)


@remedy("loss_scale_overflow")
def no_fp16(run: Run, finding: Finding, intact: Run) -> None:
    """Train without fp16."""
    run.scaler = None


@remedy("rounded_away")
def weights_in_fp32(run: Run, finding: Finding, intact: Run) -> None:
    """Keep weights in fp32, with inputs as they come."""
    run.model.float()
    run.collator = intact.collator


@remedy("identical_inputs", "fully_masked_inputs", "loss_flat")
def batches_as_the_library_makes_them(run: Run, finding: Finding, intact: Run) -> None:
    """Print a batch, compare it with the raw rows, and collate them as the library does."""
    run.collator = intact.collator


@remedy("wrong_loss_sign")
def right_sign(run: Run, finding: Finding, intact: Run) -> None:
    """Negate the loss."""
    run.model.register_forward_hook(_negate)


def _negate(module: nn.Module, args: tuple, output: Any) -> Any:
    output["loss"] = -output["loss"]
    return output


def replace_modules(model: nn.Module, old: type[nn.Module], new: Callable[[], nn.Module]) -> int:
    """Put a new module in the place of each of a class; returns how many there were."""
    places = [(parent, name) for parent in model.modules() for name, m in parent.named_children() if type(m) is old]
    for parent, name in places:
        setattr(parent, name, new())
    return len(places)


@torch.no_grad()
def loss_on_fixed_batches(run: Run, intact: Run) -> float:
    """Mean loss on fixed batches as the intact training makes them, without what was hooked onto the broken model."""
    torch.manual_seed(0)
    model = run.model.eval().float()
    size = len(intact.dataset)
    rows = [intact.dataset[i * size // (16 * BATCHES)] for i in range(16 * BATCHES)]
    rows = [row for start in range(16) for row in rows[start::16]]  # classes that lie together are mixed
    losses = []
    for start in range(0, len(rows), 16):
        output = model.forward(**intact.collator(rows[start : start + 16]))
        losses.append(float(output["loss"]))
    return sum(losses) / len(losses)


@cache
def healthy(kind: str) -> tuple[float, float]:
    """Loss on the fixed batches before and after the healthy training."""
    run = intact_run(kind)
    before = loss_on_fixed_batches(run, intact_run(kind))
    run = intact_run(kind)
    train(run, SEED, None)
    return before, loss_on_fixed_batches(run, intact_run(kind))


def intact_run(kind: str) -> Run:
    """The training that nobody has broken."""
    transformers.set_seed(1000 + SEED)
    run = MODELS[kind](SEED)
    run.settings["model"] = kind
    return run


def outcome(run: Run, kind: str) -> float:
    """What a finished training has gained, as a part of what the healthy one gains; -1 where its loss is no number."""
    before, after = healthy(kind)
    loss = loss_on_fixed_batches(run, intact_run(kind))
    return round((before - loss) / (before - after), 3) if math.isfinite(loss) else -1.0


def job(kind: str, name: str) -> dict[str, Any]:
    """Break a training, then follow the advice."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    run = build(kind, name, SEED)
    train(run, SEED, None)
    row: dict[str, Any] = {"kind": kind, "name": name, "broken": outcome(run, kind)}
    followed: list[tuple[Finding, float]] = []
    row["advice"] = []
    for _ in range(ROUNDS + 1):
        attempts = []
        for factor in TRIED.get(followed[-1][0].rule, (1.0,)) if followed else (1.0,):
            if followed:
                followed[-1] = followed[-1][0], factor
            run = treated(kind, name, followed)
            health = TrainingHealthCallback(every_n_steps=run.every_n_steps)
            run.callbacks.append(health)
            train(run, SEED, None)
            attempts.append((loss_at_the_end(health), factor, outcome(run, kind), health.judge.findings))
        _, factor, row["treated"], findings = min(attempts, key=lambda attempt: attempt[0])
        row["findings"] = [f.rule for f in findings]
        if followed:
            followed[-1] = followed[-1][0], factor
        if (followed and row["treated"] >= ENOUGH) or len(followed) == ROUNDS:
            break
        new = next(iter(findings), None)
        if new is None or (followed and new.rule == followed[-1][0].rule and new.value == followed[-1][0].value):
            break
        followed.append((new, 1.0))
        row["advice"].append(new.rule)
    return row


def treated(kind: str, name: str, followed: list[tuple[Finding, float]]) -> Run:
    """The broken training with what was advised so far, and by what the rate is multiplied beside."""
    run = build(kind, name, SEED)
    for finding, factor in followed:
        REMEDIES[finding.rule](run, finding, intact_run(kind))
        if factor != 1.0:
            with_rates(run, factor)
    transformers.set_seed(1000 + SEED)
    return run


def loss_at_the_end(health: TrainingHealthCallback) -> float:
    """Median of the last training losses, as a person sees them; infinite where one is no number or none was seen."""
    if health.history is None or not len(health.history):
        return math.inf
    loss = float(np.median(health.history.loss[-10:]))
    return loss if math.isfinite(loss) else math.inf


def tried(kind: str, name: str) -> dict[str, Any]:
    """As `job`; an error ends this fault alone."""
    try:
        return job(kind, name)
    except Exception as error:
        return {"kind": kind, "name": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}


def read_rows(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The latest row of each fault; none where there is no file yet."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["kind"], row["name"]): row for row in rows}


WHY_NOT = {
    "learning_rate_div1000": "these trainings bear larger steps than the largest that the text says to try",
    "exploding_without_clipping": "the units die before steps are judged; the remedy for them does not lower the rate",
    "bf16_stall": "the rate is too low as well, which in fp32 is told only where the run is longer",
    "layer_gradient_x1000": "the hook is gone and the loss a little above that of the healthy training",
}
"""By fault, why following the advice did not cure it."""


def report(rows: list[dict[str, Any]]) -> str:
    """The page: how many harmful faults were cured, and every case."""
    harmful = [row for row in rows if "error" not in row and row["broken"] < ENOUGH]
    advised = [row for row in harmful if row["advice"]]
    cured = [row for row in advised if row["treated"] >= ENOUGH]
    first = [row for row in cured if len(row["advice"]) == 1]
    assert __doc__ is not None
    lines = [
        "# Does the advice help?",
        "",
        *__doc__.splitlines()[2:],
        "",
        f"Of {len(rows)} planted faults {len(harmful)} cost more than a tenth of what the training gains; for "
        f"{len(advised)} of these training health gave advice, and following it cured {len(cured)}, {len(first)} of "
        "them with the first remedy.",
        "",
        "| training | fault | gained, broken | advice followed, in this order | gained, treated | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['kind']} | {row['name']} | | | | {row['error']} |")
            continue
        verdict = "cured" if row["treated"] >= ENOUGH else "not cured"
        if row["broken"] >= ENOUGH:
            verdict = "did no harm" if row["treated"] >= ENOUGH else "did no harm; the advice does"
        elif not row["advice"]:
            verdict = "no finding"
        advice = ", ".join(row["advice"]) or "none"
        lines.append(
            f"| {row['kind']} | {row['name']} | {row['broken']:.2f} | {advice} | {row['treated']:.2f} | {verdict} |"
        )
    failed = dict.fromkeys(row["name"] for row in advised if row["treated"] < ENOUGH)
    lines += ["", "Not cured:", "", *(f"- {name}: {WHY_NOT.get(name, 'not known')}." for name in failed)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line and do what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--only", default="", help="regular expression on model/fault")
    parser.add_argument("--again", action="store_true", help="run even what has a result")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "run":
        cells = [(model, name) for name, fault in FAULTS.items() for model in fault.models]
        known = {} if arguments.again else read_rows(arguments.results)
        due = [cell for cell in cells if cell not in known and re.search(arguments.only, "/".join(cell))]
        with ProcessPoolExecutor(arguments.jobs) as pool, arguments.results.open("a", encoding="utf-8") as file:
            for future in [pool.submit(tried, *cell) for cell in due]:
                row = future.result()
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(*row.values(), flush=True)
        return
    rows = read_rows(arguments.results)
    arguments.results.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
    PAGE.write_text(report(list(rows.values())), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
