"""How the cost of watching a step grows with the model: 22 million to 1.3 billion parameters.

    python benchmarks/monitoring_scale.py
    python benchmarks/monitoring_scale.py --sizes 22 110 --rounds 3

A stack of linear layers with random weights and gradients stands for each model, since only the number and the size
of tensors matter: nothing is trained, and the update adds a constant. Timed is what the monitors do on a sampled
step: gradient flow, update ratios of a sample and of all elements. A size whose parameters, gradients and copy do not
fit the free memory is left out, and said so. Writes `results/monitoring_scale.json` and `monitoring_scale.md` with
its picture.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monitoring_overhead import processor
from torch import nn

from bert_toolkit.monitoring.gradient_flow import GradientFlowMonitor
from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor
from bert_toolkit.training.launching import prepare_processes

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "images" / "monitoring_scale.png"
# Millions of parameters -> width of the layers and their number, as in models of that size.
SHAPES = {22: (384, 13), 110: (768, 16), 340: (1024, 27), 770: (1280, 39), 1300: (2048, 26)}
_PER_LAYER = 12  # a layer of a transformer has 12 times the square of its width
COPIES = 3  # parameters, gradients and what is remembered of the parameters


class Layer(nn.Module):
    """Matrices and biases of one layer of a transformer."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = nn.ModuleList([nn.Linear(width, width) for _ in range(4)])
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])


def free_bytes() -> int:
    """Memory that this machine can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measure(millions: int, rounds: int) -> dict | None:
    """Median seconds of each way for a model of this size, None where it does not fit."""
    width, layers = SHAPES[millions]
    if COPIES * 4 * _PER_LAYER * width * width * layers > 0.9 * free_bytes():
        return None
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.ModuleList([Layer(width) for _ in range(layers)])})
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    flow = GradientFlowMonitor(model)
    ratios = {mode: UpdateRatioMonitor(model, mode=mode) for mode in ("sampled", "exact")}

    @torch.no_grad()
    def updated(monitor: UpdateRatioMonitor) -> float:
        begin = time.perf_counter()
        monitor.before_step()
        spent = time.perf_counter() - begin
        torch._foreach_add_(parameters, 1e-4)
        begin = time.perf_counter()
        monitor.after_step(1)
        return spent + time.perf_counter() - begin

    def looked() -> float:
        begin = time.perf_counter()
        flow.observe(1)
        return time.perf_counter() - begin

    ways: dict[str, Callable[[], float]] = {
        "gradient flow": looked,
        "update ratios, sampled": lambda: updated(ratios["sampled"]),
        "update ratios, exact": lambda: updated(ratios["exact"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, way in ways.items():
            spent = way()
            if round_number:  # the first round touches memory for the first time
                seconds[name].append(spent)
    return {
        "parameters": sum(p.numel() for p in parameters),
        "tensors": len(parameters),
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
    }


def draw(results: list[dict]) -> None:
    """Milliseconds against parameters, both on logarithmic axes, beside a straight line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes = [result["parameters"] for result in results]
    for name in results[0]["seconds"]:
        axes.loglog(sizes, [1e3 * result["seconds"][name] for result in results], "o-", label=name)
    largest = 1e3 * results[-1]["seconds"]["update ratios, exact"]
    axes.loglog(sizes, [largest * size / sizes[-1] for size in sizes], "k:", label="in proportion to the parameters")
    axes.set(xlabel="parameters", ylabel="milliseconds per sampled step")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=120)


def page(results: list[dict], left_out: list[int], device: str) -> str:
    """The table as Markdown."""
    names = list(results[0]["seconds"])
    lines = [
        "# Cost of watching by the size of the model",
        "",
        "Made by `python benchmarks/monitoring_scale.py`. " + " ".join(__doc__.split("\n\n")[2].split()),
        "",
        f"fp32, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds per step.",
        "",
        "| parameters | tensors | " + " | ".join(names) + " | exact, per million parameters |",
        "|---" * (len(names) + 3) + "|",
    ]
    for result in results:
        cells = " | ".join(f"{1e3 * result['seconds'][name]:,.1f}" for name in names)
        per_million = 1e9 * result["seconds"]["update ratios, exact"] / result["parameters"]
        lines.append(f"| {result['parameters'] / 1e6:,.0f} M | {result['tensors']} | {cells} | {per_million:.2f} |")
    lines += ["", f"![cost against size](../docs/images/{PICTURE.name})", ""]
    if left_out:
        lines += [f"Left out, as they did not fit the free memory: {', '.join(f'{size} M' for size in left_out)}.", ""]
    return "\n".join(lines)


def main() -> None:
    prepare_processes()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = {size: measure(size, options.rounds) for size in sorted(options.sizes)}
    results = [result for result in found.values() if result is not None]
    if not results:
        sys.exit("error: none of these sizes fits the free memory")
    left_out = [size for size, result in found.items() if result is None]
    (HERE / "results" / "monitoring_scale.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(results)
    text = page(results, left_out, processor())
    (HERE / "monitoring_scale.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
