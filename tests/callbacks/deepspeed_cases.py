"""Ways to train with DeepSpeed, by name, the same for the processes that train and for the test that compares."""

from typing import Any

import torch
from float64_oracle import Classifier
from torch import nn

MAX_NORM = 0.1
MEASURED = [
    f"zero{stage}-{precision}-accumulation{accumulation}"
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16")
    for accumulation in (1, 3)
]
MEASURED += ["zero1-bf16-accumulation3-wide", "zero2-bf16-accumulation3-wide", "zero3-bf16-accumulation3-wide"]
MEASURED += [f"zero{stage}-fp32-accumulation1-unclipped" for stage in (0, 2)]
MEASURED += [f"zero{stage}-fp32-accumulation3-unused" for stage in (0, 1, 2, 3)]
SAMPLED = [f"zero{stage}-fp32-accumulation1-sampled" for stage in (0, 2, 3)]
OVERFLOWING = [f"zero{stage}-fp32-accumulation1-overflow" for stage in (0, 1, 2, 3)]
REFUSED = {
    "zero2-fp32-accumulation1-offload": "offloads to CPU or NVMe",
    "zero3-fp32-accumulation1-offload": "offloads to CPU or NVMe",
}
CASES = [*MEASURED, *SAMPLED, *OVERFLOWING, *REFUSED]


def variant_of(case: str) -> str:
    """What the name says beside stage, precision and accumulation."""
    return "".join(case.split("-")[3:])


def settings_of(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """DeepSpeed's settings and further arguments of Trainer."""
    stage, precision, accumulation, *_ = case.split("-")
    settings: dict[str, Any] = {
        "zero_optimization": {"stage": int(stage[-1]), "sub_group_size": 200},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "initial_scale_power": 10},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if variant_of(case) == "wide":
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if variant_of(case) == "offload":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    return settings, {
        "gradient_accumulation_steps": int(accumulation[-1]),
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "max_grad_norm": 0.0 if variant_of(case) == "unclipped" else MAX_NORM,
    }


class WithUnusedParameters(Classifier):
    """One layer is frozen, one is never used."""

    def __init__(self) -> None:
        super().__init__(layers=3)
        self.layers[0].requires_grad_(False)
        self.unused = nn.Linear(5, 7)


class Overflowing(Classifier):
    """The loss of its second batch is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        output = super().forward(input_ids, labels)
        self.calls += 1
        if self.calls == 2:
            output["loss"] = output["loss"] * torch.inf
        return output


def model_of(case: str) -> Classifier:
    """A fresh model."""
    return {"unused": WithUnusedParameters, "overflow": Overflowing}.get(variant_of(case), Classifier)()
