"""Runs to make pages of: a faulty and a healthy one of a plain Trainer script, and one with what a recipe adds."""

import json
import shutil

import pytest
import torch
from hostile_text import HOSTILE
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import bert_toolkit
from bert_toolkit.reporting.results import write_predictions, write_results
from bert_toolkit.run_page import write_run_page


def classifier():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def rows(count=96, length=12):
    ids = torch.randint(6, 40, (count, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[1] % 3} for row in ids]


def train(folder, without_layer_1, **settings):
    """Four epochs of a plain Trainer script; where a layer is left out, the optimizer does not hold it."""
    model, data = classifier(), rows()
    held = [p for name, p in model.named_parameters() if not (without_layer_1 and "layer.1." in name)]
    arguments = TrainingArguments(
        str(folder),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=12,
        logging_steps=4,
        per_device_train_batch_size=8,
        num_train_epochs=4,
        **settings,
    )
    optimizer = torch.optim.AdamW(held, lr=arguments.learning_rate)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:16], optimizers=(optimizer, None))
    bert_toolkit.watch(trainer, every_n_steps=6, health=bert_toolkit.TrainingHealthCallback(4), report=True)
    trainer.train()
    return folder


@pytest.fixture(scope="session")
def trained():
    return train


@pytest.fixture(scope="session")
def faulty_run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "faulty", True, learning_rate=1e-3)


@pytest.fixture(scope="session")
def healthy_run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "healthy", False, learning_rate=5e-4)


@pytest.fixture(scope="session")
def predicted_run(healthy_run, tmp_path_factory):
    """The healthy run with what a classifier's recipe adds, and its page."""
    folder = tmp_path_factory.mktemp("runs") / "predicted"
    shutil.copytree(healthy_run, folder)
    classes = ["unacceptable", "acceptable"]
    columns = {
        "source": [f"particle_and_preposition_{i}" for i in range(30)],
        "sentence": ["The landlord ignored the spoon until Brenda picked up it."] * 30,
        "label": [classes[i % 2] for i in range(30)],
        "prediction": [classes[i % 3 == 0] for i in range(30)],
        "probability": [0.5 + i / 100 for i in range(30)],
    }
    write_predictions(folder, columns)
    scores = {"accuracy": 0.5571428571, "validation_matthews_correlation": -0.114861234}
    by_class = {name: {"precision": 0.552, "recall": 0.607, "f1": 0.578, "rows": 140} for name in classes}
    write_results(folder, {**scores, "classes": by_class, "log_history": []})
    write_run_page(folder)
    return folder


@pytest.fixture(scope="session")
def hostile_run(faulty_run, tmp_path_factory):
    """The faulty run with the results of a recipe whose classes, texts, names and settings are all HTML."""
    folder = tmp_path_factory.mktemp("runs") / "hostile"
    shutil.copytree(faulty_run, folder)
    classes = [f"a {HOSTILE}", f"b {HOSTILE}"]
    labels = [classes[i % 2] for i in range(30)]
    predicted = [classes[i % 3 == 0] for i in range(30)]
    columns = {
        "sentence": [f"{i} {HOSTILE}" for i in range(30)],
        "label": labels,
        "prediction": predicted,
        "probability": [0.5 + i / 100 for i in range(30)],
    }
    write_predictions(folder, columns)
    results = {
        "accuracy": 0.5,
        f"score {HOSTILE}": 0.25,
        "matthews_correlation": 0.1,
        "matthews_correlation_by_batch": [0.2, -0.1, 0.0],
        "data": HOSTILE,
        f"fact {HOSTILE}": HOSTILE,
        "classes": {name: {"precision": 0.5, "rows": 15, f"extra {HOSTILE}": HOSTILE} for name in classes},
        "log_history": [],
    }
    write_results(folder, results)
    record = json.loads((folder / "monitoring" / "run.json").read_text())
    record["command"] = f"python {HOSTILE}"
    record["settings"][HOSTILE] = HOSTILE
    record["versions"][HOSTILE] = HOSTILE
    record["log_history"] += [{f"eval_{HOSTILE}": 0.5, "step": 40}]
    (folder / "monitoring" / "run.json").write_text(json.dumps(record))
    health = folder / "monitoring" / "training_health.jsonl"
    lines = [json.loads(line) for line in health.read_text().splitlines()]
    for name in ("rule", "seen", "cause", "remedy"):
        lines[0][name] = f"{name} {HOSTILE}"
    lines[0]["parameters"][0] = HOSTILE
    lines[0]["layers"][0] = HOSTILE
    lines[-1]["verdict"] = HOSTILE
    health.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
