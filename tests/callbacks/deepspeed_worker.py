"""Trains under DeepSpeed in two gloo processes and saves what was recorded and what DeepSpeed itself holds.

See test_deepspeed.py. What DeepSpeed holds is read by its public functions between backward and step, by a spy that
shares nothing with the package.
"""

import logging
import os
import sys
from pathlib import Path

os.environ |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "OMP_NUM_THREADS": "1"}

import torch
from accelerate.state import AcceleratorState, PartialState
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from deepspeed_cases import CASES, model_of, settings_of, variant_of
from float64_oracle import arguments, rows
from safetensors.torch import save_file
from torch import distributed as dist
from transformers import Trainer, TrainerCallback

import bert_toolkit
from bert_toolkit.monitoring.record_file import save_records


class Spy(TrainerCallback):
    """Keeps, for every step of the engine, gradients before it and parameters around it, whole and in fp32."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.Tensor] = {}
        self.step, self.batch = 0, 0
        self.trainer: Trainer | None = None

    def on_train_begin(self, args, state, control, model, **kwargs):
        engine = self.trainer.accelerator.deepspeed_engine_wrapped.engine
        original = engine.step
        model.register_forward_pre_hook(self.see_inputs, with_kwargs=True)

        def step(*arguments, **keywords):
            self.step += 1
            trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
            self.keep("before", {n: whole_parameter(engine, p) for n, p in trained})
            gradients = {n: safe_get_full_grad(p) for n, p in trained}
            self.keep("gradient", {n: g for n, g in gradients.items() if g is not None})
            original(*arguments, **keywords)
            self.keep("after", {n: whole_parameter(engine, p) for n, p in trained})
            self.batch = 0

        engine.step = step

    def see_inputs(self, module, arguments, inputs):
        for key, value in inputs.items():
            if isinstance(value, torch.Tensor):
                self.seen[f"{self.step + 1}/input {key} {self.batch}/"] = value.clone()
        self.batch += 1

    def keep(self, what, tensors):
        for name, tensor in tensors.items():
            self.seen[f"{self.step}/{what}/{name}"] = tensor.detach().float().clone().contiguous()


def whole_parameter(engine, parameter):
    whole = safe_get_full_fp32_param(parameter)
    if whole is not None:
        return whole
    for low, high in zip(
        getattr(engine.optimizer, "fp16_groups", ()), getattr(engine.optimizer, "fp32_groups", ()), strict=True
    ):
        for ours, master in zip(low, high, strict=True):
            if ours is parameter:
                return master
    return parameter


def train(out: Path, case: str) -> None:
    settings, changes = settings_of(case)
    spy = Spy()
    args = arguments(
        out / "run",
        deepspeed=settings,
        per_device_train_batch_size=2,
        max_steps=3,
        optim="adamw_torch",
        weight_decay=0.01,
        **changes,
    )
    trainer = Trainer(model_of(case), args, train_dataset=rows(), callbacks=[spy])
    spy.trainer = trainer
    folder = out / f"rank{dist.get_rank()}"
    folder.mkdir(parents=True)
    told = logging.FileHandler(folder / "notices.txt")
    logging.getLogger("bert_toolkit").addHandler(told)
    mode = "sampled" if variant_of(case) == "sampled" else "exact"
    health = bert_toolkit.TrainingHealthCallback(every_n_steps=1)
    watching = bert_toolkit.watch(trainer, every_n_steps=1, health=health, figures=False, mode=mode)
    trainer.train()
    logging.getLogger("bert_toolkit").removeHandler(told)
    save_file(spy.seen, folder / "seen.safetensors")
    (folder / "verdict.txt").write_text(health.verdict)
    flow, update = watching.gradient_flow, watching.update_ratios
    if not flow.records:
        return
    save_records(folder / "gradients.npz", flow.records, flow.parameters)
    save_records(folder / "updates.npz", update.records, update.parameters)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    for case in sys.argv[2:] or CASES:
        train(out / case, case)
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
