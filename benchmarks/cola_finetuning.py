"""CoLA fine-tuning side by side: a hand-written loop, HF Trainer with HF BERT, and the recipe's settings.

    python benchmarks/cola_finetuning.py speed --data_dir path/to/cola/raw
    python benchmarks/cola_finetuning.py select --data_dir path/to/cola/raw
    python benchmarks/cola_finetuning.py quality --data_dir path/to/cola/raw

`speed` trains every arm on the same rows from the same weights, one after the other, several rounds, each arm in a
process of its own so that its peak memory is its own. `select` chooses the learning rate for the weights at hand by
Matthews correlation on a tenth of the training rows. `quality` trains (b) and (c) on all training rows with equal
hyper-parameters and several seeds and scores them on the in-domain dev rows. `select` and `quality` keep each finished
run in their JSON file and continue there when they are started again.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ARMS = {
    "a": "(a) hand loop, HF BERT, padded to 64",
    "b": "(b) HF Trainer, HF BERT, dynamic padding",
    "c": "(c) recipe: ToolkitBert, length-grouped",
}


def train_arm(arm: str, data_dir: str, model: str | None, settings: dict) -> dict:
    """Trains one arm in this process and returns its figures."""
    from bert_toolkit.training.launching import prepare_processes

    if arm == "c":
        prepare_processes()  # as the recipe does: it settles how PyTorch allocates
    import torch
    import transformers
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    sys.path.insert(0, str(HERE.parent / "recipes"))
    from cola import DEFAULTS

    from bert_toolkit import ToolkitBertForSequenceClassification, compute_classification_metrics
    from bert_toolkit.callbacks.token_counter import TokenCounterCallback
    from bert_toolkit.data.cola import load_cola
    from bert_toolkit.training.arguments import RECIPE_DEFAULTS
    from bert_toolkit.training.length_grouped_rows import LengthGroupedRows
    from bert_toolkit.training.pretrained import choose_model
    from bert_toolkit.training.tokenized_rows import tokenize_texts

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(settings["threads"])
    torch.backends.cuda.matmul.allow_tf32 = True
    seed, rate, epochs = settings["seed"], settings["learning_rate"], settings["epochs"]
    corpus = load_cola("auto", data_dir, settings["validation_fraction"], 42)
    model_path, _ = choose_model(model)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    train, validation = (
        split.map(
            tokenize_texts,
            batched=True,
            fn_kwargs={"tokenizer": tokenizer, "columns": ["sentence"], "max_length": 64},
        )
        for split in (corpus.train, corpus.validation)
    )
    if settings["rows"]:
        train = train.shuffle(seed=42).select(range(settings["rows"]))

    set_seed(seed)
    model_class = ToolkitBertForSequenceClassification if arm == "c" else transformers.BertForSequenceClassification
    network = model_class.from_pretrained(model_path, num_labels=2)
    counter = TokenCounterCallback()
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            **RECIPE_DEFAULTS,
            **DEFAULTS,
            "output_dir": folder,
            "learning_rate": rate,
            "num_train_epochs": epochs,
            "seed": seed,
            "bf16": settings["precision"] == "bf16",
            "fp16": settings["precision"] == "fp16",
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "report_to": "none",
            "disable_tqdm": True,
        }
        if arm == "b":
            del arguments["train_sampling_strategy"]
        trainer = Trainer(
            model=network,
            args=TrainingArguments(**arguments),
            train_dataset=train if arm == "b" else LengthGroupedRows(train, train["length"], 32, seed),
            eval_dataset=validation,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute_classification_metrics,
            callbacks=[counter],
        )
        if arm == "a":
            figures = _hand_loop(network, train, tokenizer, trainer.args)
        else:
            trainer.train()
            figures = {
                "seconds_per_epoch": counter.seconds / epochs,
                "tokens_per_second": counter.tokens_per_second,
                "padding_share": counter.padding_share,
            }
        figures["steps_per_epoch"] = -(-len(train) // arguments["per_device_train_batch_size"])
        on_gpu = trainer.args.device.type == "cuda"
        figures["peak_memory_mib"] = (
            torch.cuda.max_memory_allocated() / 2**20
            if on_gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        )
        figures["device"] = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
        if settings["evaluate"]:
            metrics = trainer.evaluate()
            figures |= {key: metrics[f"eval_{key}"] for key in ("matthews_correlation", "accuracy", "loss")}
    return figures


def _hand_loop(network, rows, tokenizer, arguments) -> dict:
    """The loop that CoLA tutorials show: every sentence padded to 64, AdamW, clipping, linear schedule."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    size, device = arguments.per_device_train_batch_size, arguments.device
    encoded = tokenizer(rows["sentence"][:], padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    data = torch.utils.data.TensorDataset(
        encoded["input_ids"], encoded["attention_mask"], torch.tensor(rows["label"][:])
    )
    loader = torch.utils.data.DataLoader(data, batch_size=size, shuffle=True)
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.learning_rate, eps=1e-8)
    steps = int(len(loader) * arguments.num_train_epochs)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=arguments.fp16)
    started = time.perf_counter()
    for _ in range(int(arguments.num_train_epochs)):
        for batch in loader:
            input_ids, attention_mask, labels = (part.to(device) for part in batch)
            network.zero_grad()
            with torch.autocast(device.type, dtype, enabled=arguments.bf16 or arguments.fp16):
                loss = network(input_ids, attention_mask=attention_mask, labels=labels).loss
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            loss.item()
    seconds = time.perf_counter() - started
    tokens = int(encoded["attention_mask"].sum())
    return {
        "seconds_per_epoch": seconds / arguments.num_train_epochs,
        "tokens_per_second": tokens * arguments.num_train_epochs / seconds,
        "padding_share": 1 - tokens / encoded["input_ids"].numel(),
    }


def run_arm(options: argparse.Namespace, arm: str, **settings) -> dict:
    """Runs `train_arm` in a fresh process."""
    job = json.dumps({"arm": arm, "data_dir": options.data_dir, "model": options.model, "settings": settings})
    process = subprocess.run([sys.executable, __file__, "arm", job], capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"arm {arm} failed:\n{process.stderr[-3000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def speed(options: argparse.Namespace) -> None:
    plan = [(arm, precision) for precision in options.precisions for arm in ARMS]
    runs: dict[tuple[str, str], list[dict]] = {key: [] for key in plan}
    for number in range(options.rounds):
        for arm, precision in plan:
            started = time.perf_counter()
            runs[arm, precision].append(
                run_arm(
                    options,
                    arm,
                    rows=options.rows,
                    epochs=options.epochs,
                    seed=42,
                    learning_rate=1e-4,
                    precision=precision,
                    threads=options.threads,
                    validation_fraction=None,
                    evaluate=False,
                )
            )
            print(
                f"round {number + 1}/{options.rounds} {arm} {precision}: {time.perf_counter() - started:.0f} s",
                flush=True,
            )

    def median(key, name):
        return statistics.median(run[name] for run in runs[key])

    steps, device = runs[plan[0]][0]["steps_per_epoch"], runs[plan[0]][0]["device"]
    lines = [
        f"{device}; {options.rows} rows, {steps} steps of 32 an epoch, {options.epochs} epochs, medians of "
        f"{options.rounds} interleaved rounds; ratios are medians of the rounds' ratios",
        "",
        "| arm | precision | s/epoch | s/step | tokens/s | padding | peak MiB "
        "| × (a) same precision | × (b) same precision | × (a) fp32 | × (b) fp32 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, precision in plan:
        seconds = median((arm, precision), "seconds_per_epoch")
        ratios = [
            statistics.median(
                other["seconds_per_epoch"] / own["seconds_per_epoch"]
                for other, own in zip(runs[base], runs[arm, precision], strict=True)
            )
            for base in (("a", precision), ("b", precision), ("a", "fp32"), ("b", "fp32"))
            if base in runs
        ]
        lines.append(
            f"| {ARMS[arm]} | {precision} | {seconds:.2f} | {seconds / steps:.3f} | "
            f"{median((arm, precision), 'tokens_per_second'):,.0f} | "
            f"{median((arm, precision), 'padding_share'):.1%} | "
            f"{median((arm, precision), 'peak_memory_mib'):,.0f} | "
            + " | ".join(f"{ratio:.2f}" for ratio in ratios)
            + " |"
        )
    print("\n".join(lines))
    places = ("data_dir", "model", "output")  # of this machine
    chosen = {name: value for name, value in vars(options).items() if name not in places}
    record = {"device": device, "platform": platform.processor(), "options": chosen}
    record["runs"] = [
        {"arm": arm, "precision": precision, **run} for arm, precision in plan for run in runs[arm, precision]
    ]
    _write(options.output or HERE / "results" / "cola_speed.json", record)


def select(options: argparse.Namespace) -> None:
    done = _Resumable(options.output or HERE / "results" / "cola_learning_rate.json")
    for rate in options.learning_rates:
        for seed in options.seeds:
            done.run(
                {"learning_rate": rate, "seed": seed, "epochs": options.epochs},
                lambda rate=rate, seed=seed: run_arm(
                    options,
                    "c",
                    rows=None,
                    epochs=options.epochs,
                    seed=seed,
                    learning_rate=rate,
                    precision=options.precisions[0],
                    threads=options.threads,
                    validation_fraction=0.1,
                    evaluate=True,
                ),
            )
    print("| learning rate | seeds | MCC on a tenth of train, mean ± sd |\n|---|---|---|")
    for rate in options.learning_rates:
        scores = done.scores(learning_rate=rate, epochs=options.epochs)
        print(f"| {rate:g} | {len(scores)} | {_mean_and_sd(scores)} |")


def quality(options: argparse.Namespace) -> None:
    done = _Resumable(options.output or HERE / "results" / "cola_quality.json")
    for seed in options.seeds:
        for arm in ("b", "c"):
            done.run(
                {"arm": arm, "seed": seed, "learning_rate": options.learning_rates[0], "epochs": options.epochs},
                lambda arm=arm, seed=seed: run_arm(
                    options,
                    arm,
                    rows=None,
                    epochs=options.epochs,
                    seed=seed,
                    learning_rate=options.learning_rates[0],
                    precision=options.precisions[0],
                    threads=options.threads,
                    validation_fraction=None,
                    evaluate=True,
                ),
            )
    rate, epochs = options.learning_rates[0], options.epochs
    print(f"learning rate {rate:g}, {epochs} epochs, batch 32, {options.precisions[0]}\n")
    print("| arm | seeds | MCC on in-domain dev, mean ± sd | accuracy, mean ± sd |\n|---|---|---|---|")
    for arm in ("b", "c"):
        keys = {"arm": arm, "learning_rate": rate, "epochs": epochs}
        mcc, accuracy = done.scores(**keys), done.scores("accuracy", **keys)
        print(f"| {ARMS[arm]} | {len(mcc)} | {_mean_and_sd(mcc)} | {_mean_and_sd(accuracy)} |")


class _Resumable:
    """Finished runs in a JSON file, so that a stopped benchmark goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.runs = json.loads(self.path.read_text())["runs"] if self.path.exists() else []

    def run(self, key: dict, train) -> None:
        if not self._matching(key):
            started = time.perf_counter()
            self.runs.append({**key, **train()})
            _write(self.path, {"runs": self.runs})
            score = self.runs[-1]["matthews_correlation"]
            print(f"{key}: MCC {score:.4f}, {time.perf_counter() - started:.0f} s", flush=True)

    def scores(self, name: str = "matthews_correlation", **key) -> list[float]:
        return [run[name] for run in self._matching(key)]

    def _matching(self, key: dict) -> list[dict]:
        return [run for run in self.runs if all(run.get(name) == value for name, value in key.items())]


def _mean_and_sd(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def _write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["arm"]:
        print(json.dumps(train_arm(**json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "select", "quality"])
    parser.add_argument("--data_dir", help="folder in CoLA's raw layout; the bundled sample if not given")
    parser.add_argument("--model", help="folder or hub name; the offline weights if not given and no hub answers")
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--epochs", type=int, help="default: 1 for speed, 4 otherwise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-4])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--output", type=Path, help="JSON file; default benchmarks/results/…")
    options = parser.parse_args()
    options.epochs = options.epochs or (1 if options.part == "speed" else 4)
    {"speed": speed, "select": select, "quality": quality}[options.part](options)


if __name__ == "__main__":
    main()
