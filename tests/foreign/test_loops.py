"""Training loops of other libraries: Lightning, Fabric, closures."""

import pytest
import torch
from float64_oracle import Classifier, check_gradients, check_update
from torch.utils.data import DataLoader
from watched_program import StepSpy

from bert_toolkit import GradientFlowMonitor, UpdateRatioMonitor, watch_loop


def batches(count: int = 4, size: int = 8) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "input_ids": torch.randint(0, 20, (size, 5), generator=generator),
            "labels": torch.randint(0, 3, (size,), generator=generator),
        }
        for _ in range(count)
    ]


def check(flow, updates, spy, steps):
    assert [record.step for record in flow] == [record.step for record in updates] == steps
    for gradients, change in zip(flow, updates, strict=True):
        check_gradients(gradients, spy.steps[gradients.step].gradients)
        check_update(change, spy.steps[change.step])


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def closures(model: torch.nn.Module, optimizer: torch.optim.Optimizer):
    """Steps whose loss and gradients are computed inside, as L-BFGS and Lightning do it."""
    for batch in batches():

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = model(**batch)["loss"]
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("name", ["lbfgs", "adamw"])
def test_training_by_closures_is_bit_equal(tmp_path, name):
    make = {
        "lbfgs": lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4),
        "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    }[name]
    alone, watched = Classifier(), Classifier()
    closures(alone, make(alone))
    optimizer = make(watched)
    with watch_loop(watched, optimizer, every_n_steps=1, output_dir=tmp_path, figures=False) as watching:
        closures(watched, optimizer)
    assert equal(alone, watched)
    assert watching.step == 4
    assert not [finding for finding in watching.health.findings if finding.severity == "error"]


def test_closures_of_an_ordinary_optimizer_are_seen(tmp_path):
    """AdamW calls its closure once, before it reads the gradients: these are the ones to record."""
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    used = {}

    def keep(module_optimizer, args, kwargs):
        used[len(used) + 1] = {n: p.grad.clone() for n, p in model.named_parameters()}

    spy = StepSpy()
    with watch_loop(model, optimizer, every_n_steps=1, output_dir=tmp_path, figures=False) as watching:
        spy.on_loop(model, optimizer)
        optimizer.register_step_post_hook(keep)  # the closure's gradients are still there
        closures(model, optimizer)
    assert [record.step for record in watching.gradient_flow.records] == [1, 2, 3, 4]
    for record in watching.gradient_flow.records:
        check_gradients(record, used[record.step])
    for record in watching.update_ratios.records:
        check_update(record, spy.steps[record.step])


@pytest.mark.filterwarnings("ignore")
def test_fabric(tmp_path):
    lightning = pytest.importorskip("lightning")
    models = []
    for watched in (False, True):
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        net = Classifier()
        adam = torch.optim.AdamW(net.parameters(), lr=1e-2)
        model, optimizer = fabric.setup(net, adam)
        loader = fabric.setup_dataloaders(DataLoader(batches(), batch_size=None))
        spy = StepSpy()

        def loop(fabric=fabric, model=model, optimizer=optimizer, loader=loader):
            for batch in loader:
                optimizer.zero_grad()
                fabric.backward(model(**batch)["loss"])
                fabric.clip_gradients(model, optimizer, max_norm=0.1)
                optimizer.step()

        if watched:
            with watch_loop(net, adam, every_n_steps=2, output_dir=tmp_path, figures=False) as watching:
                spy.on_loop(net, adam)
                loop()
            check(watching.gradient_flow.records, watching.update_ratios.records, spy, [1, 2, 4])
            assert not watching.health.findings
        else:
            loop()
        models.append(net)
    assert equal(*models)


def lightning_module(lightning, net):
    """A LightningModule as tutorials write it."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, number):
            loss = self.net(**batch)["loss"]
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    return Module()


def fit(lightning, folder, module, callbacks=()):
    lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.1,
        default_root_dir=folder,
        callbacks=list(callbacks),
    ).fit(module, DataLoader(batches(), batch_size=None))


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_monitors(tmp_path):
    """The monitors of a plain loop in a Lightning callback of a few lines."""
    lightning = pytest.importorskip("lightning")
    alone, net = Classifier(), Classifier()
    fit(lightning, tmp_path, lightning_module(lightning, alone))
    module = lightning_module(lightning, net)
    flow, updates, spy = [], [], StepSpy()

    class Monitoring(lightning.Callback):
        def on_train_start(self, trainer, module):
            self.flow, self.updates = GradientFlowMonitor(module), UpdateRatioMonitor(module)
            optimizer = trainer.optimizers[0]
            optimizer.register_step_post_hook(self.after_step)

        def on_before_optimizer_step(self, trainer, module, optimizer):
            step = trainer.global_step + 1
            spy.on_pre_optimizer_step(None, trainer_state(step), None, module)
            flow.append(self.flow.observe(step))
            self.updates.before_step()

        def after_step(self, *unused):
            step = len(updates) + 1
            updates.append(self.updates.after_step(step))
            spy.on_optimizer_step(None, trainer_state(step), None, module)

    fit(lightning, tmp_path, module, [Monitoring()])
    assert equal(alone, net)
    check(flow, updates, spy, [1, 2, 3, 4])


def trainer_state(step):
    """What the spy asks of Trainer's state."""
    return type("State", (), {"global_step": step - 1})


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_watch_loop(tmp_path):
    """Lightning runs forward and backward inside the optimizer's step, as a closure."""
    lightning = pytest.importorskip("lightning")
    alone, net = Classifier(), Classifier()
    fit(lightning, tmp_path, lightning_module(lightning, alone))
    module = lightning_module(lightning, net)
    seen: list = []
    spy, used = StepSpy(), {}

    class Watching(lightning.Callback):
        def on_train_start(self, trainer, module):
            optimizer = trainer.optimizers[0]
            self.watching = watch_loop(module, optimizer, every_n_steps=2, output_dir=tmp_path, figures=False)
            seen.append(self.watching.__enter__())
            spy.on_loop(module, optimizer)

        def on_before_optimizer_step(self, trainer, module, optimizer):
            used[trainer.global_step + 1] = {n: p.grad.clone() for n, p in module.named_parameters()}

        def on_train_end(self, trainer, module):
            self.watching.__exit__(None, None, None)

    fit(lightning, tmp_path, module, [Watching()])
    assert equal(alone, net)
    (watching,) = seen
    assert [record.step for record in watching.gradient_flow.records] == [1, 2, 4]
    for record in watching.gradient_flow.records:
        # Lightning clips after this event, inside the closure
        total = sum(float(g.double().square().sum()) for g in used[record.step].values()) ** 0.5
        check_gradients(record, used[record.step], factor=min(1.0, 0.1 / (total + 1e-6)))
    for record in watching.update_ratios.records:
        check_update(record, spy.steps[record.step])
    assert not [finding for finding in watching.health.findings if finding.severity == "error"]
