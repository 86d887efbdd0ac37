"""What monitoring costs, side by side on one model and the same batches.

    python benchmarks/monitoring_overhead.py --size minilm
    python benchmarks/monitoring_overhead.py --size base
    python benchmarks/monitoring_overhead.py --size large --rounds 2

and each once more with `--busy`, while another process multiplies matrices on as many threads.

Every round makes one training step under each way of monitoring, in an order that changes from round to round: none,
gradient flow and update ratios together on a step that is not sampled and on a sampled one (exact and sampled mode),
gradient flow and training health alone, a naive version with deep copies and numpy, a version that reads each number
with `.item()`, and histograms per parameter as wandb.watch makes them. Ours are the real callbacks, called in
Trainer's order, scalars to TensorBoard included, with large tensors in huge pages as in the recipes. Time is measured
around the work that each way adds (on a GPU after the device has finished), so that the noise of the step itself
stays out. Memory is the peak around the optimizer's step, less that of a step without monitoring.

Writes `results/monitoring_overhead_<size>[_busy].json` and, from the results that exist, `monitoring_overhead.md`.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, TrainerControl, TrainerState, TrainingArguments

from bert_toolkit import GradientFlowCallback, TrainingHealthCallback, UpdateRatioCallback
from bert_toolkit.training.launching import prepare_processes

HERE = Path(__file__).parent
SIZES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
NAMES = {"minilm": "MiniLM-L6 size", "base": "BERT-base size", "large": "BERT-large size (24 layers)"}
EVERY_STEP = 1
NEVER = 10**9  # the interval of a callback whose steps here are never sampled: it has seen step 1 before


class Way:
    """Nothing at all; the other ways add to it. Methods are called in Trainer's order."""

    def before_forward(self) -> None:
        pass

    def before_step(self) -> None:
        pass

    def after_step(self) -> None:
        pass

    def after_zero_grad(self) -> None:
        pass


class Ours(Way):
    """The callbacks, called as Trainer calls them."""

    def __init__(self, model: nn.Module, optimizer, folder: Path, callbacks: list):
        self.callbacks = callbacks
        self.args = TrainingArguments(str(folder), use_cpu=not torch.cuda.is_available(), report_to="none")
        self.state, self.control = TrainerState(max_steps=NEVER), TrainerControl()
        self.kwargs = {"model": model, "optimizer": optimizer}
        self.event("on_train_begin")
        self.state.global_step = 100  # past the first steps, which are sampled more densely
        self.marks: list[float] = []  # seconds of what the callbacks do within the forward and backward pass
        for callback in callbacks:
            if getattr(callback, "_watch", None) is not None:
                _time_calls(callback._watch._forward, "_on_forward", self.marks, next(model.parameters()).device)

    def event(self, name: str) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(self.args, self.state, self.control, **self.kwargs)

    def before_forward(self) -> None:
        self.event("on_step_begin")

    def before_step(self) -> None:
        self.event("on_pre_optimizer_step")

    def after_step(self) -> None:
        self.event("on_optimizer_step")

    def after_zero_grad(self) -> None:
        self.state.global_step += 1
        self.event("on_step_end")


def both(every_n_steps: int, mode: str = "exact") -> list:
    return [
        GradientFlowCallback(every_n_steps, figures=False),
        UpdateRatioCallback(every_n_steps, figures=False, mode=mode),
    ]


class DeepCopyAndNumpy(Way):
    """As in tutorials: copy the model, bring everything to numpy."""

    def __init__(self, model: nn.Module):
        self.model = model

    def before_step(self) -> None:
        self.before = copy.deepcopy(self.model.state_dict())
        self.gradients = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                g = np.abs(parameter.grad.cpu().numpy())
                self.gradients[name] = (g.mean(), g.max(), g.std(), (g == 0).mean())

    def after_step(self) -> None:
        self.ratios = {}
        for name, parameter in self.model.named_parameters():
            before, after = self.before[name].cpu().numpy(), parameter.detach().cpu().numpy()
            self.ratios[name] = np.linalg.norm(after - before) / (np.linalg.norm(before) + 1e-12)
        del self.before


class ItemPerNumber(Way):
    """The same numbers, each read from the device on its own."""

    def __init__(self, model: nn.Module):
        self.model = model

    @torch.no_grad()
    def before_step(self) -> None:
        self.before, self.gradients = {}, {}
        for name, parameter in self.model.named_parameters():
            self.before[name] = parameter.detach().clone()
            if parameter.grad is not None:
                g = parameter.grad.abs()
                zeros = (g == 0).float().mean()
                self.gradients[name] = (g.mean().item(), g.max().item(), g.std().item(), zeros.item())

    @torch.no_grad()
    def after_step(self) -> None:
        self.ratios = {}
        for name, parameter in self.model.named_parameters():
            update = (parameter - self.before[name]).norm().item()
            self.ratios[name] = update / (self.before[name].norm().item() + 1e-12)
        del self.before


class HistogramPerParameter(Way):
    """64 bins of every gradient between its minimum and maximum; no update ratios."""

    def __init__(self, model: nn.Module):
        self.model = model

    @torch.no_grad()
    def before_step(self) -> None:
        self.histograms = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                flat = parameter.grad.clone().reshape(-1).float()
                low, high = flat.min().item(), flat.max().item()
                self.histograms[name] = (low, high, flat.histc(bins=64, min=low, max=high).cpu().tolist())


def wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device: torch.device) -> int:
    """Start a new peak of memory and return what is held now, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key))


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")


def train_step(model: nn.Module, optimizer, batch: dict, way: Way) -> dict:
    """One step under one way: seconds of the whole step and of what the way added, bytes around the update."""
    device = batch["input_ids"].device
    marks: list[float] = getattr(way, "marks", [])
    marks.clear()
    start = wait(device)
    way.before_forward()
    added = wait(device) - start
    loss = model(**batch).loss
    for callback in getattr(way, "callbacks", ()):
        watch = callback._reader.gradient_flow._backward
        if watch is not None:  # what it does at the end of the backward pass is added work too
            _time_calls(watch, "_on_backward_end", marks, device)
            break  # the callbacks share it
    loss.backward()
    added += sum(marks)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    held = reset_peak(device)
    before = wait(device)
    way.before_step()
    added += wait(device) - before
    optimizer.step()
    before = wait(device)
    way.after_step()
    added += wait(device) - before
    extra = peak(device) - held
    model.zero_grad()
    before = wait(device)
    way.after_zero_grad()
    end = wait(device)
    return {"step": end - start, "added": added + end - before, "memory": extra}


def _time_calls(thing, name: str, marks: list[float], device: torch.device) -> None:
    original = getattr(thing, name)

    def timed(*args, **kwargs):
        begin = wait(device)
        original(*args, **kwargs)
        marks.append(wait(device) - begin)

    setattr(thing, name, timed)


def time_drawing(callbacks: list, records: int) -> float:
    """Seconds to draw the figures of both callbacks, with a history of that many records."""
    for callback in callbacks:
        callback.records = (callback.records * records)[:records]
        callback._output.figures = True
        callback._draw(records, at_end=True)  # the first time matplotlib is imported and fonts are found
    start = time.perf_counter()
    for callback in callbacks:
        callback._draw(records, at_end=True)
    return time.perf_counter() - start


def measure(size: str, batch_size: int, length: int, rounds: int) -> dict:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = BertForSequenceClassification(BertConfig(**SIZES[size])).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    batches = [
        {
            "input_ids": torch.randint(1000, 30000, (batch_size, length), device=device),
            "labels": torch.randint(0, 2, (batch_size,), device=device),
        }
        for _ in range(rounds + 1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        exact = Ours(model, optimizer, Path(folder) / "exact", both(EVERY_STEP))
        ways = {
            "no monitoring": Way(),
            "ours, step not sampled": Ours(model, optimizer, Path(folder) / "idle", both(NEVER)),
            "ours, exact": exact,
            "ours, sampled": Ours(model, optimizer, Path(folder) / "sampled", both(EVERY_STEP, "sampled")),
            "ours, gradient flow alone": Ours(
                model, optimizer, Path(folder) / "flow", [GradientFlowCallback(EVERY_STEP, figures=False)]
            ),
            "ours, training health": Ours(
                model, optimizer, Path(folder) / "health", [TrainingHealthCallback(EVERY_STEP)]
            ),
            "deep copy and numpy": DeepCopyAndNumpy(model),
            ".item() per number": ItemPerNumber(model),
            "histogram per parameter": HistogramPerParameter(model),
        }
        names = list(ways)
        found: dict[str, list[dict]] = {name: [] for name in names}
        for round_number, batch in enumerate(batches):
            turned = names[round_number % len(names) :] + names[: round_number % len(names)]
            for name in turned:
                result = train_step(model, optimizer, batch, ways[name])
                if round_number > 0:  # the first round pays for imports and for memory that is touched first
                    found[name].append(result)
        drawing = time_drawing(exact.callbacks, records=100)
    medians = {
        name: {key: statistics.median(entry[key] for entry in entries) for key in entries[0]}
        for name, entries in found.items()
    }
    step = medians["no monitoring"]["step"]
    base_memory = medians["no monitoring"]["memory"]
    for entry in medians.values():
        entry["share"] = entry["added"] / step
        entry["memory"] = max(entry["memory"] - base_memory, 0)
    trainable = [p for p in model.parameters() if p.requires_grad]
    return {
        "size": size,
        "batch": f"{batch_size} x {length}",
        "rounds": rounds,
        "parameters": sum(p.numel() for p in trainable),
        "tensors": len(trainable),
        "parameter_bytes": sum(p.numel() * p.itemsize for p in trainable),
        "step_seconds": step,
        "ways": medians,
        "drawing_seconds": drawing,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


@contextmanager
def other_work(busy: bool) -> Iterator[None]:
    """Another process that multiplies matrices on as many threads as this one, as long as it lasts."""
    if not busy:
        yield
        return
    code = "import torch\na = torch.rand(1024, 1024)\nwhile True:\n    a @ a"
    worker = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        worker.kill()
        worker.wait()


def table(result: dict, busy: dict | None) -> str:
    """A section of Markdown for one size, with a column of a busy machine where it was measured."""
    step = result["step_seconds"]
    lines = [
        f"## {NAMES[result['size']]}, batch {result['batch']}",
        "",
        f"{result['parameters'] / 1e6:.1f} M parameters in {result['tensors']} tensors, fp32, fused AdamW, clipping; "
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}, transformers "
        f"{result['transformers']}; medians of {result['rounds']} rounds. A step without monitoring takes "
        f"{step:.3g} s" + (f", {busy['step_seconds']:.3g} s while another process computes." if busy else "."),
        "",
        "| monitoring | added per sampled step | share of every step | every 10 steps | every 50 steps | share of "
        "every step, busy machine | extra peak memory around the update |",
        "|---|---|---|---|---|---|---|",
    ]
    idle = result["ways"]["ours, step not sampled"]["added"]
    for name, entry in result["ways"].items():
        shares = []
        for interval in (1, 10, 50):
            if name == "no monitoring" or (interval > 1 and not name.startswith("ours")):
                shares.append("–")
            elif name == "ours, step not sampled":
                shares.append(f"{idle / step:.4%}" if interval == 1 else "–")
            else:
                rest = idle if name.startswith("ours") else 0.0
                shares.append(f"{(entry['added'] + (interval - 1) * rest) / interval / step:.2%}")
        memory = "–" if name == "no monitoring" else f"{entry['memory'] / 2**20:,.0f} MiB"
        if name == "no monitoring" or busy is None or name not in busy["ways"]:
            shares.append("–")
        else:
            shares.append(f"{busy['ways'][name]['added'] / busy['step_seconds']:.2%}")
        lines.append(f"| {name} | {entry['added'] * 1e3:,.2f} ms | {' | '.join(shares)} | {memory} |")
    lines += [
        "",
        f"The parameters themselves take {result['parameter_bytes'] / 2**20:,.0f} MiB. Figures come on top: drawing "
        f"all four from 100 records takes {result['drawing_seconds']:.2f} s. Each callback draws for at most 0.1 % of "
        "the run's time, but at least five single-step figures in a run, and all of them at its end.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    prepare_processes()  # as every recipe does: on a CPU it settles how PyTorch takes large tensors
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--busy", action="store_true", help="while another process computes")
    options = parser.parse_args()
    with other_work(options.busy):
        result = measure(options.size, options.batch_size, options.length, options.rounds)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    name = f"monitoring_overhead_{options.size}{'_busy' if options.busy else ''}.json"
    (results / name).write_text(json.dumps(result, indent=2) + "\n")
    sections = {size: table(*found) for size in SIZES if (found := stored(results, size))}
    head, further, explanation = __doc__.split("\n\n")[1:4]
    introduction = f"# What monitoring costs\n\nMade by\n\n{head}\n\n{further}\n\n{explanation}\n"
    (HERE / "monitoring_overhead.md").write_text(introduction + "\n" + "\n".join(sections.values()))
    sys.stdout.write(sections.get(options.size, json.dumps(result["ways"], indent=1) + "\n"))


def stored(results: Path, size: str) -> tuple[dict, dict | None] | None:
    """What was measured of one size on a quiet and on a busy machine; None without the former."""
    quiet, busy = (results / f"monitoring_overhead_{size}{ending}.json" for ending in ("", "_busy"))
    if not quiet.exists():
        return None
    return json.loads(quiet.read_text()), json.loads(busy.read_text()) if busy.exists() else None


if __name__ == "__main__":
    main()
