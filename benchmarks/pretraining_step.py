r"""A pre-training step side by side: transformers' BertForPreTraining and ours, in Trainer, on equal data.

    python benchmarks/pretraining_step.py
    python benchmarks/pretraining_step.py --sizes 12/768/256/128 12/768/64/512 --padding 0 0.5 --bf16 --dropout 0 \
        --compile

All arms start from the same weights and see the same batches with the same optimizer. Their losses are compared step
by step without dropout; then they are timed with it, in turns. A size is layers/width/batch/length; heads are 64 wide.
Sizes measured earlier under the same heading stay in the JSON file and the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertConfig, BertForPreTraining, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from bert_toolkit import ToolkitBertConfig, ToolkitBertForPreTraining
from bert_toolkit.pretraining.flops import device_peak, pretraining_flops
from bert_toolkit.pretraining.trainer import PreTrainingTrainer

VOCABULARY = 30522
MLM_PROBABILITY = 0.15
HERE = Path(__file__).parent


def examples(count: int, length: int, padding: float) -> list[dict[str, torch.Tensor]]:
    """Random pairs, 15 % of their tokens to predict.

    With padding p, lengths are uniform between (1 - 2 p) x length and length: a fraction p of all tokens is padding.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        shortest = max(8, round(length * (1 - 2 * padding)))
        real = int(torch.randint(shortest, length + 1, (), generator=generator))
        ids = torch.randint(1000, VOCABULARY, (length,), generator=generator)
        position = torch.arange(length)
        predicted = 1 + torch.randperm(real - 1, generator=generator)[: max(1, round(MLM_PROBABILITY * real))]
        labels = torch.full((length,), -100)
        labels[predicted] = ids[predicted]
        ids[predicted] = 103  # [MASK]
        ids[real:] = 0
        rows.append(
            {
                "input_ids": ids,
                "token_type_ids": ((position > real // 2) & (position < real)).long(),
                "attention_mask": (position < real).long(),
                "labels": labels,
                "next_sentence_label": torch.randint(0, 2, (), generator=generator),
            }
        )
    return rows


class StepClock(TrainerCallback):
    """Seconds of each optimizer step but the first, which warms up; and its loss, where losses are logged."""

    def __init__(self) -> None:
        """Has seen no step."""
        self.steps = 0

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks at the clock."""
        self.steps += 1
        if args.device.type == "cuda" and self.steps in (1, state.max_steps):
            torch.cuda.synchronize()
        if self.steps == 1:
            self.begin = time.perf_counter()
        self.end = time.perf_counter()

    @property
    def seconds_per_step(self) -> float:
        """Seconds per step, without the first."""
        return (self.end - self.begin) / (self.steps - 1)


def run(
    arm: str,
    model: torch.nn.Module,
    rows: list[dict],
    batch: int,
    steps: int,
    options: argparse.Namespace,
    log: bool = False,
) -> tuple[float, list[float]]:
    """Train a model for some steps; seconds per step, and the losses if they are logged."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=1e-4,
            bf16=options.bf16,
            torch_compile=arm.endswith("compiled"),
            train_sampling_strategy="sequential",
            logging_strategy="steps" if log else "no",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer_class = Trainer if arm == "transformers" else PreTrainingTrainer
        trainer = trainer_class(model=model, args=arguments, train_dataset=rows, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.seconds_per_step, losses


def models(layers: int, width: int, length: int, dropout: float, compiled: bool) -> dict[str, torch.nn.Module]:
    """One model for each arm, all with the same weights."""
    settings = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    torch.manual_seed(0)
    found = {"transformers": BertForPreTraining(BertConfig(**settings))}
    found["bert_toolkit"] = ToolkitBertForPreTraining(ToolkitBertConfig(**settings))
    if compiled:
        static = ToolkitBertConfig(**settings, max_predictions_per_sequence=max(1, round(MLM_PROBABILITY * length)))
        found["bert_toolkit, compiled"] = ToolkitBertForPreTraining(static)
    for model in found.values():
        model.load_state_dict(found["transformers"].state_dict())
    return found


def measure(size: str, padding: float, peak: float | None, options: argparse.Namespace) -> dict[str, Any]:
    """Compares losses, then times, of one size."""
    layers, width, batch, length = map(int, size.split("/"))
    rows = examples(batch * (options.steps + 1), length, padding)
    losses = {
        arm: run(arm, model, rows, batch, 4, options, log=True)[1]
        for arm, model in models(layers, width, length, 0.0, options.compile).items()
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in losses}
    memory = {}
    timed = models(layers, width, length, options.dropout, options.compile)
    for _ in range(options.rounds):
        for arm, model in timed.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            seconds[arm].append(run(arm, model, rows, batch, options.steps + 1, options)[0])
            if torch.cuda.is_available():
                memory[arm] = torch.cuda.max_memory_allocated() / 2**20

    step_rows = rows[:batch]
    real = [int(row["attention_mask"].sum()) for row in step_rows]
    flops = pretraining_flops(
        timed["bert_toolkit"].config,
        tokens=sum(real),
        length=sum(n * n for n in real) / sum(real),
        predictions=sum(int((row["labels"] != -100).sum()) for row in step_rows),
        sequences=batch,
    )
    result = {"size": size, "padding": 1 - sum(real) / (batch * length), "arms": {}}
    for arm in timed:
        median = statistics.median(seconds[arm])
        paired = [theirs / ours for theirs, ours in zip(seconds["transformers"], seconds[arm], strict=True)]
        result["arms"][arm] = {
            "seconds_per_step": median,
            "rounds": seconds[arm],
            "real_tokens_per_second": sum(real) / median,
            "speed_up": statistics.median(paired),
            "mfu": flops / median / peak if peak else None,
            "peak_memory_mib": memory.get(arm),
            "losses": losses[arm],
            "largest_loss_difference": max(
                abs(one / other - 1) for one, other in zip(losses[arm], losses["transformers"], strict=True)
            ),
        }
    return result


def table(results: list[dict]) -> str:
    """The results in Markdown."""
    lines = [
        "| layers/width/batch/length | padding | arm | ms/step | real tokens/s | × transformers | MFU "
        "| largest loss difference, 4 steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for arm, figures in result["arms"].items():
            mfu = f"{figures['mfu']:.0%}" if figures["mfu"] else "–"
            memory = f", {figures['peak_memory_mib']:,.0f} MiB" if figures["peak_memory_mib"] else ""
            lines.append(
                f"| {result['size']} | {result['padding']:.0%} | {arm}{memory} "
                f"| {figures['seconds_per_step'] * 1000:,.1f} | {figures['real_tokens_per_second']:,.0f} "
                f"| {figures['speed_up']:.2f} | {mfu} | {figures['largest_loss_difference']:.1e} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measures every size and adds it to those of before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2/128/32/128", "4/256/32/128", "12/768/8/128"])
    parser.add_argument("--padding", nargs="+", type=float, default=[0.0], help="of each size, or of all")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of an arm in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.1, help="0 lets a GPU leave out padding")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true", help="one more arm: static shapes, torch.compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=HERE / "results" / "pretraining_step.json")
    options = parser.parse_args()
    if len(options.padding) not in (1, len(options.sizes)):
        parser.error("--padding takes one value, or one for each size")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    paddings = options.padding if len(options.padding) > 1 else options.padding * len(options.sizes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = device_peak(device, "bf16" if options.bf16 else "no")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {options.threads} threads"
    heading = (
        f"{name}, {'bf16' if options.bf16 else 'fp32'}, dropout {options.dropout:g}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; medians of interleaved rounds"
    )
    record = json.loads(options.output.read_text()) if options.output.exists() else {}
    if record.get("heading") != heading:
        record = {"heading": heading, "machine": platform.machine(), "results": []}
    for size, padding in zip(options.sizes, paddings, strict=True):
        result = measure(size, padding, peak[0] if peak else None, options)
        result |= {"peak": peak, "rounds": options.rounds, "steps": options.steps}
        others = [old for old in record["results"] if (old["size"], old["padding"]) != (size, result["padding"])]
        record["results"] = [*others, result]
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{size}: done", flush=True)
    print(f"\n{heading}" + (f"; MFU against {peak[1]}" if peak else "") + f"\n\n{table(record['results'])}")


if __name__ == "__main__":
    main()
