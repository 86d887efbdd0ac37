"""Floating-point work of pre-training a BERT, and the peak of the device that does it."""

from __future__ import annotations

import time

import torch
from transformers import PretrainedConfig

# Dense peak of the tensor cores in bf16/fp16 without sparsity, FLOP/s, from the vendors' data sheets.
GPU_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def pretraining_flops(
    config: PretrainedConfig, tokens: float, length: float, predictions: float, sequences: float
) -> float:
    """Return the FLOPs that one training step needs: a multiplication and an addition each, backward = twice forward.

    Counted: matrix products of the layers, attention scores and their products with the values, the masked-LM head on
    predicted tokens only, the pooler. Not counted: padding, look-ups, normalization, recomputation.

    Args:
        config: Has `hidden_size`, `intermediate_size`, `num_hidden_layers`, `vocab_size`.
        tokens: Tokens without padding.
        length: Tokens that each of them attends to.
        predictions: Predicted tokens.
        sequences: Sequences.

    Returns:
        FLOPs, not FLOP/s.
    """
    size, layers = config.hidden_size, config.num_hidden_layers
    per_token = layers * (4 * size**2 + 2 * size * config.intermediate_size + 2 * size * length)
    head = predictions * (size**2 + size * config.vocab_size) + sequences * size**2
    return 6.0 * (tokens * per_token + head)


def device_peak(device: torch.device, mixed_precision: str) -> tuple[float, str] | None:
    """Return the peak of one device in FLOP/s, and where the figure is from.

    Args:
        device: CPU (measured here with this process's threads, half a second) or CUDA (from `GPU_PEAKS`).
        mixed_precision: "no", "bf16" or "fp16". With "no" a GPU's peak is unknown here, as it depends on TF32.

    Returns:
        Peak and description, or None where no peak is known.
    """
    if device.type == "cpu":
        dtype = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
        peak = _measured_matmul_peak(dtype)
        name = str(dtype).removeprefix("torch.")
        return peak, f"{peak / 1e9:,.0f} GFLOP/s, {name} matrix product measured on {torch.get_num_threads()} threads"
    if device.type == "cuda" and mixed_precision in ("bf16", "fp16"):
        name = torch.cuda.get_device_name(device)
        for key, peak in GPU_PEAKS.items():
            if key in name:
                return peak, f"{peak / 1e12:,.0f} TFLOP/s, data sheet of {key}, {mixed_precision} dense"
    return None


def _measured_matmul_peak(dtype: torch.dtype) -> float:
    size = 512  # a millisecond or two, so that some products are never interrupted on a busy machine
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    a @ b
    fastest, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < 0.5:
        start = time.perf_counter()
        a @ b
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
