"""Loops without Trainer: the optimizer's own step is seen, with numbers equal to those of plain float64 PyTorch."""

import json

import numpy as np
import pytest
import torch
from float64_oracle import Classifier, check_gradients, check_update, clip_coefficient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bert_toolkit import GradientFlowCallback, InputError, MonitoringCallback, TrainingHealthCallback, watch_loop
from bert_toolkit.monitoring import GradientFlowRecord
from bert_toolkit.monitoring.record_file import load_records


def batches(count, size=8):
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "input_ids": torch.randint(0, 20, (size, 5), generator=generator),
            "labels": torch.randint(0, 3, (size,), generator=generator),
        }
        for _ in range(count)
    ]


class Recorded:
    """What happened in one step, kept by the loop itself."""

    def __init__(self, model):
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.raw = {name: p.grad.detach().clone() for name, p in model.named_parameters()}

    def used(self, model):
        self.gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters()}

    def done(self, model):
        self.after = {name: p.detach().clone() for name, p in model.named_parameters()}


def loop(model, optimizer, steps, max_norm=0.1):
    """A loop that knows nothing of the monitoring; what it did in each step."""
    seen = {}
    for step, batch in enumerate(batches(steps), start=1):
        model(**batch)["loss"].backward()
        seen[step] = Recorded(model)
        if max_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        seen[step].used(model)
        optimizer.step()
        seen[step].done(model)
        optimizer.zero_grad()
    return seen


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_norm", [0.0, 0.1, 100.0])
def test_exact_values_without_a_call_in_the_loop(tmp_path, name, max_norm):
    model = Classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    with watch_loop(model, optimizer, every_n_steps=3, output_dir=tmp_path, figures=False) as watching:
        seen = loop(model, optimizer, 6, max_norm)
    flow, ratios = watching.gradient_flow.records, watching.update_ratios.records
    assert [r.step for r in flow] == [r.step for r in ratios] == [1, 2, 3, 6]
    assert watching.step == 6
    for gradients, updates in zip(flow, ratios, strict=True):
        step = seen[gradients.step]
        check_gradients(gradients, step.gradients)
        check_update(updates, step)
        assert gradients.clip_coefficient == pytest.approx(clip_coefficient(step.raw, max_norm), rel=1e-5)


def test_training_is_bit_equal_and_hooks_go():
    found = []
    for watched in (False, True):
        model = Classifier()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if watched:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir("/tmp")
                with watch_loop(model, optimizer, every_n_steps=1, output_dir="/tmp/unused", figures=False):
                    loop(model, optimizer, 5)
            assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
            assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
            assert not model._forward_hooks
        else:
            loop(model, optimizer, 5)
        found.append(dict(model.named_parameters()))
    assert all(torch.equal(values, found[1][name]) for name, values in found[0].items())


def test_same_files_as_with_trainer(tmp_path):
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch_loop(model, optimizer, every_n_steps=3, output_dir=tmp_path, tensorboard=True) as watching:
        loop(model, optimizer, 6)
    assert sorted(path.name for path in (tmp_path / "monitoring").iterdir()) == [
        "gradient_flow.npz",
        "gradients.png",
        "gradients_over_time.png",
        "run.json",
        "training_health.jsonl",
        "training_health.npz",
        "update_ratio.npz",
        "update_ratios.png",
        "update_ratios_over_time.png",
    ]
    saved = load_records(tmp_path / "monitoring" / "gradient_flow.npz", GradientFlowRecord)
    assert [record.step for record in saved] == [1, 2, 3, 6]
    (folder,) = (tmp_path / "runs").iterdir()
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    reader.Reload()
    written = reader.Scalars("gradient_flow/max/layer.1")
    at = saved[0].names.index("layers.1.weight")
    assert [event.step for event in written] == [1, 2, 3, 6]
    np.testing.assert_allclose([event.value for event in written], [record.max[at] for record in saved], rtol=1e-6)
    assert reader.Images("monitoring/update_ratios")
    assert watching.health.history.step.tolist() == [1]


def test_losses_that_the_loop_computes_itself(tmp_path):
    class Plain(Classifier):
        def forward(self, input_ids):
            return super().forward(input_ids, torch.zeros(len(input_ids), dtype=torch.long))["logits"]

    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    told, reported = [], []
    with watch_loop(
        model,
        optimizer,
        every_n_steps=2,
        health=TrainingHealthCallback(every_n_steps=1),
        output_dir=tmp_path,
        report_to=lambda scalars, step: reported.append((step, scalars)),
        figures=False,
    ) as watching:
        for batch in batches(4):
            halves = []
            for part in (slice(0, 4), slice(4, 8)):
                loss = nn.functional.cross_entropy(model(batch["input_ids"][part]), batch["labels"][part])
                (loss / 2).backward()
                watching.log(loss)
                halves.append(loss.item())
            told.append(sum(halves) / 2)
            optimizer.step()
            optimizer.zero_grad()
        watching.log_evaluation({"matthews_correlation": 0.25, "eval_accuracy": 0.5})
    np.testing.assert_allclose(watching.health.history.loss, told, rtol=1e-6)
    assert watching.health.history.evaluations == [(4, {"eval_matthews_correlation": 0.25, "eval_accuracy": 0.5})]
    assert {step: s["train/loss"] for step, s in reported if "train/loss" in s} == pytest.approx(
        dict(enumerate(told, start=1)), rel=1e-6
    )
    assert [step for step, scalars in reported if "update_ratio/head" in scalars] == [1, 2, 4]


def test_a_fault_is_named_and_may_stop_the_loop(tmp_path, caplog):
    model = Classifier()
    model.layers[1].weight.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if not n.startswith("layers.1")], lr=1e-2)
    health = TrainingHealthCallback(every_n_steps=1, on_finding="stop")
    with watch_loop(model, optimizer, health=health, output_dir=tmp_path, figures=False) as watching:
        for batch in batches(30):
            model(**batch)["loss"].backward()
            optimizer.step()
            model.zero_grad()
            if watching.should_stop:
                break
    assert watching.step < 30
    (finding,) = watching.health.findings
    assert finding.rule == "not_updated" and "layers.1.weight" in finding.parameters
    lines = (tmp_path / "monitoring" / "training_health.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["finding", "verdict"]


@pytest.mark.parametrize("clip", [False, True])
def test_accelerate_with_accumulation_and_clipping(tmp_path, clip):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.GradientState._reset_state()  # which trainers of earlier tests share
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Classifier()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True))
    coefficients, seen = [], []
    with watch_loop(model, optimizer, every_n_steps=1, output_dir=tmp_path, figures=False) as watching:
        for batch in batches(8):
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                if accelerator.sync_gradients and clip:
                    norm = accelerator.clip_grad_norm_(model.parameters(), 0.1)
                    coefficients.append(min(1.0, 0.1 / (float(norm) + 1e-6)))
                if accelerator.sync_gradients:
                    seen.append({n: p.grad.detach().clone() for n, p in model.named_parameters()})
                optimizer.step()
                optimizer.zero_grad()
    assert watching.step == 4
    for record, gradients in zip(watching.gradient_flow.records, seen, strict=True):
        check_gradients(record, gradients)
    found = [record.clip_coefficient for record in watching.gradient_flow.records]
    np.testing.assert_allclose(found, coefficients if clip else [1.0] * 4, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("max_norm", [0.0, 0.1])
def test_gradient_scaler(tmp_path, fused, max_norm):
    """Gradients are those without the scale, whether the loop, the scaler or the optimizer removes it."""
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    expected = []
    with watch_loop(model, optimizer, 1, output_dir=tmp_path, scaler=scaler, figures=False) as watching:
        for number, batch in enumerate(batches(4)):
            loss = model(**batch)["loss"] * (torch.inf if number == 2 else 1.0)
            scaler.scale(loss).backward()
            raw = {n: p.grad.detach() / scaler.get_scale() for n, p in model.named_parameters()}
            if max_norm:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            expected.append((raw, clip_coefficient(raw, max_norm)))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    # Without a fused optimizer the scaler does not take the step at all, so that nobody sees it.
    seen = [0, 1, 2, 3] if fused else [0, 1, 3]
    records = watching.gradient_flow.records
    assert len(records) == len(seen)
    assert [record.skipped for record in records] == [number == 2 for number in seen]
    for record, number in zip(records, seen, strict=True):
        if number != 2:
            raw, coefficient = expected[number]
            check_gradients(record, raw, coefficient)
            assert record.clip_coefficient == pytest.approx(coefficient, rel=1e-5)


def test_compiled_model(tmp_path):
    model = Classifier()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch_loop(compiled, optimizer, every_n_steps=2, output_dir=tmp_path, figures=False) as watching:
        for batch in batches(2):
            compiled(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert watching.gradient_flow.records[0].names == tuple(name for name, _ in model.named_parameters())


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_no_operation_on_steps_that_are_not_sampled(tmp_path):
    counts = []
    for watched in (False, True):
        model = Classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch_loop(model, optimizer, every_n_steps=100, output_dir=tmp_path) as watching:
            if not watched:
                watching.__exit__(None, None, None)
            loop(model, optimizer, 2)
            counter = CountOperations()
            with counter:
                loop(model, optimizer, 2)  # steps 3 and 4
        counts.append(counter.count)
    assert counts[0] == counts[1]


def test_resumed_loop_goes_on_with_the_records(tmp_path):
    def part(steps, first_step):
        model = Classifier()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with watch_loop(
            model, optimizer, every_n_steps=2, output_dir=tmp_path, first_step=first_step, figures=False
        ) as watching:
            loop(model, optimizer, steps)
        return watching

    part(5, 0)
    resumed = part(4, 4)
    assert resumed.step == 8
    assert [record.step for record in resumed.gradient_flow.records] == [1, 2, 4, 6, 8]


def test_a_loop_that_breaks_leaves_its_records_and_no_hooks(tmp_path):
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with (
        pytest.raises(RuntimeError, match="the loop's own"),
        watch_loop(model, optimizer, every_n_steps=1, output_dir=tmp_path, figures=False),
    ):
        loop(model, optimizer, 2)
        model(**batches(1)[0])["loss"].backward()
        raise RuntimeError("the loop's own")
    assert len(load_records(tmp_path / "monitoring" / "gradient_flow.npz", GradientFlowRecord)) == 2
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks and not model._forward_hooks
    lines = (tmp_path / "monitoring" / "training_health.jsonl").read_text(encoding="utf-8")
    assert "verdict" not in lines, "a run that broke off has no verdict"


def test_callbacks_of_ones_own(tmp_path):
    class Steps(MonitoringCallback):
        name, title, early_steps = "steps", "Steps", ()

        def measure(self, reading):
            return reading.step

    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    own = Steps(every_n_steps=2)
    with watch_loop(model, optimizer, output_dir=tmp_path, figures=False, callbacks=[own]):
        loop(model, optimizer, 5)
    assert own.records == [2, 4]


def test_wrong_arguments():
    model = Classifier()
    with pytest.raises(InputError, match="optimizer must be a torch.optim.Optimizer .* got Classifier"):
        watch_loop(model, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="every_n_steps"):
        watch_loop(model, optimizer, every_n_steps=-1)
    with pytest.raises(InputError, match="got a second one"):
        watch_loop(model, optimizer, health=TrainingHealthCallback(), callbacks=[TrainingHealthCallback()])


@pytest.mark.parametrize("health", [True, False])
def test_zero_steps_are_health_alone(tmp_path, health):
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch_loop(model, optimizer, 0, health, tmp_path) as watching:
        loop(model, optimizer, 3)
        watching.log_evaluation({"accuracy": 0.5})
    assert watching.gradient_flow is watching.update_ratios is None
    files = {"run.json", "training_health.jsonl", "training_health.npz"} if health else set()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == files


def test_watchers_of_ones_own_take_the_place_of_the_usual_ones(tmp_path):
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    flow, health = GradientFlowCallback(2, figures=False), TrainingHealthCallback(3)
    with watch_loop(model, optimizer, output_dir=tmp_path, figures=False, callbacks=[flow, health]) as watching:
        loop(model, optimizer, 3)
    assert watching.gradient_flow is flow and watching.health is health
    assert [record.step for record in flow.records] == [1, 2]


@pytest.mark.parametrize("by_name", [False, True])
def test_closures_are_read_after_their_first_call(tmp_path, caplog, by_name):
    model, first, befores, afters = Classifier(), {}, {}, {}
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    with watch_loop(model, optimizer, every_n_steps=1, output_dir=tmp_path, figures=False) as watching:
        for number, batch in enumerate(batches(3), start=1):
            befores[number] = {n: p.detach().clone() for n, p in model.named_parameters()}

            def closure(batch=batch, number=number):
                optimizer.zero_grad()
                loss = model(**batch)["loss"]
                loss.backward()
                first.setdefault(number, {n: p.grad.clone() for n, p in model.named_parameters()})
                return loss

            optimizer.step(closure=closure) if by_name else optimizer.step(closure)
            afters[number] = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert "no parameter has a gradient" not in caplog.text
    assert [record.step for record in watching.gradient_flow.records] == [1, 2, 3]
    for record, change in zip(watching.gradient_flow.records, watching.update_ratios.records, strict=True):
        check_gradients(record, first[record.step])
        for name, update in zip(change.names, change.update_norm, strict=True):
            moved = (afters[change.step][name].double() - befores[change.step][name].double()).norm()
            assert update == pytest.approx(float(moved), rel=1e-5, abs=1e-12)
