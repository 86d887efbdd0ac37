"""Gradient accumulation in a real Trainer: small batches give the gradients of one big batch."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import bert_toolkit
from bert_toolkit import ToolkitBertConfig
from bert_toolkit.pretraining.trainer import PreTrainingTrainer

LENGTH = 12
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": LENGTH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Sequences(Dataset):
    """Random sequences, of which the i-th has between 1 and 8 masked tokens: batches differ much in their number."""

    def __init__(self, size: int, keys: tuple[str, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1, 50, (size, LENGTH), generator=generator)
        masked = torch.arange(LENGTH) < 1 + (torch.arange(size) // 4 * 3 % 8)[:, None]
        two = torch.randint(0, 2, (size,), generator=generator)
        columns = {
            "words": torch.where(masked, ids, -100),
            "tags": torch.where(masked, ids % 3, -100),
            "class": two,
            "number": torch.randn(size, generator=generator),
            "several": torch.randint(0, 2, (size, 3), generator=generator).float(),
            "position": two + 3,
        }
        self.rows = [
            {"input_ids": ids[i]} | {key: columns[column][i] for key, column in (k.split("=") for k in keys)}
            for i in range(size)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


class KeepGradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters()})


def gradients_of_one_epoch(
    folder: Path,
    trainer_class: type[Trainer],
    model_class: type,
    config: dict,
    data: Dataset,
    batch: int,
    accumulation: int,
) -> tuple[list[dict[str, torch.Tensor]], float]:
    """Train with a learning rate of 0, so that steps do not depend on one another."""
    torch.manual_seed(0)
    model = model_class(ToolkitBertConfig(**SIZES, **config)).double()
    keep = KeepGradients()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=0.0,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer = trainer_class(model=model, args=arguments, train_dataset=data, callbacks=[keep])
    trainer.train()
    return keep.steps, trainer.state.log_history[0]["loss"]


CASES = {
    "pre-training": (PreTrainingTrainer, "ForPreTraining", {}, ("labels=words", "next_sentence_label=class")),
    "masked LM": (Trainer, "ForMaskedLM", {}, ("labels=words",)),
    "masked LM, dense": (Trainer, "ForMaskedLM", {"sparse_prediction": False}, ("labels=words",)),
    "next sentence": (Trainer, "ForNextSentencePrediction", {}, ("labels=class",)),
    "classes": (Trainer, "ForSequenceClassification", {}, ("labels=class",)),
    "regression": (Trainer, "ForSequenceClassification", {"num_labels": 1}, ("labels=number",)),
    "several labels": (Trainer, "ForSequenceClassification", {"num_labels": 3}, ("labels=several",)),
    "tokens": (Trainer, "ForTokenClassification", {"num_labels": 3}, ("labels=tags",)),
    "answers": (Trainer, "ForQuestionAnswering", {}, ("start_positions=position", "end_positions=position")),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accumulation_equals_one_big_batch(case: tuple, tmp_path: Path) -> None:
    """Two optimizer steps: 4 x 8 against 32, then what is left of the epoch, 2 x 8 against 16."""
    trainer_class, head, config, keys = case
    data, model_class = Sequences(48, keys), getattr(bert_toolkit, "ToolkitBert" + head)
    big, big_loss = gradients_of_one_epoch(
        tmp_path, trainer_class, model_class, config, data, batch=32, accumulation=1
    )
    small, small_loss = gradients_of_one_epoch(
        tmp_path, trainer_class, model_class, config, data, batch=8, accumulation=4
    )
    assert len(big) == len(small) == 2
    assert small_loss == pytest.approx(big_loss, rel=1e-6)
    for one, many in zip(big, small, strict=True):
        for name, expected in one.items():
            torch.testing.assert_close(many[name], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("case", ["pre-training", "masked LM", "classes", "several labels"])
def test_last_batch_may_be_smaller(case: str, tmp_path: Path) -> None:
    """29 sequences in one step: 8 + 8 + 8 + 5."""
    trainer_class, head, config, keys = CASES[case]
    data, model_class = Sequences(29, keys), getattr(bert_toolkit, "ToolkitBert" + head)
    (big,), _ = gradients_of_one_epoch(tmp_path, trainer_class, model_class, config, data, batch=32, accumulation=1)
    (small,), _ = gradients_of_one_epoch(tmp_path, trainer_class, model_class, config, data, batch=8, accumulation=4)
    for name, expected in big.items():
        torch.testing.assert_close(small[name], expected, rtol=1e-6, atol=1e-12)


def test_big_batch_equals_transformers(tmp_path: Path) -> None:
    """The oracle of the oracle: one batch of 32 in Trainer has the gradients of BertForPreTraining's own loss."""
    data = Sequences(32, CASES["pre-training"][3])
    model_class = bert_toolkit.ToolkitBertForPreTraining
    (big,), _ = gradients_of_one_epoch(tmp_path, PreTrainingTrainer, model_class, {}, data, batch=32, accumulation=1)
    torch.manual_seed(0)
    ours = model_class(ToolkitBertConfig(**SIZES)).double()
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**SIZES)).double()
    theirs.load_state_dict(ours.state_dict())
    theirs(**torch.utils.data.default_collate(data.rows)).loss.backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(big[name], parameter.grad, rtol=1e-6, atol=1e-12)


def test_plain_trainer_is_exact_for_masked_lm_and_weighs_next_sentence_by_masked_tokens(tmp_path: Path) -> None:
    """Documented: without the number of sequences, each batch's next-sentence mean counts by its masked tokens."""
    data = Sequences(32, CASES["pre-training"][3])
    model_class = bert_toolkit.ToolkitBertForPreTraining
    (small,), loss = gradients_of_one_epoch(tmp_path, Trainer, model_class, {}, data, batch=8, accumulation=4)
    torch.manual_seed(0)
    model = model_class(ToolkitBertConfig(**SIZES)).double().train()
    batches = [torch.utils.data.default_collate(data.rows[i : i + 8]) for i in range(0, 32, 8)]
    masked = [(batch["labels"] != -100).sum() for batch in batches]
    total = 0
    for batch, count in zip(batches, masked, strict=True):
        outputs = model(**batch)
        total = total + (outputs.masked_lm_loss + outputs.next_sentence_loss) * count / sum(masked)
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(small[name], parameter.grad, rtol=1e-6, atol=1e-12)


def worker(case: str, folder: Path) -> None:
    """What each process of the next test runs: this file as a script."""
    trainer_class, head, config, keys = CASES[case]
    model_class, data = getattr(bert_toolkit, "ToolkitBert" + head), Sequences(29, keys)
    (step,), _ = gradients_of_one_epoch(folder, trainer_class, model_class, config, data, batch=4, accumulation=4)
    assert torch.distributed.get_world_size() == 2
    torch.save(step, folder / f"{os.environ['RANK']}.pt")
    torch.distributed.barrier()
    os._exit(0)  # a live process group now and then aborts while Python tears it down


@pytest.mark.launch
@pytest.mark.parametrize("case", ["pre-training", "masked LM", "classes"])
def test_two_processes_equal_one(case: str, tmp_path: Path) -> None:
    """29 sequences in 2 processes x 4 batches of 4; accelerate repeats 3 of the first to fill the last ones."""
    trainer_class, head, config, keys = CASES[case]
    data, model_class = Sequences(29, keys), getattr(bert_toolkit, "ToolkitBert" + head)
    data.rows += data.rows[:3]
    (one,), _ = gradients_of_one_epoch(tmp_path, trainer_class, model_class, config, data, batch=32, accumulation=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, __file__, case, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    for rank in range(2):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, expected in one.items():
            torch.testing.assert_close(both[name], expected, rtol=1e-6, atol=1e-12)


def test_weighted_next_sentence_loss_under_accumulation(tmp_path: Path) -> None:
    """Gradients of 2 x 8 sequences are those of cross-entropies over all 16, the second times 7.5 (in fp32)."""
    keys = ("labels=words", "next_sentence_label=class")
    data, weight = Sequences(16, keys), 7.5
    (step,), _ = gradients_of_one_epoch(
        tmp_path,
        partial(PreTrainingTrainer, next_sentence_weight=weight),
        bert_toolkit.ToolkitBertForPreTraining,
        {},
        data,
        batch=8,
        accumulation=2,
    )
    torch.manual_seed(0)
    model = bert_toolkit.ToolkitBertForPreTraining(ToolkitBertConfig(**SIZES)).double()
    batch = {name: torch.stack([row[name] for row in data.rows]) for name in data.rows[0]}
    output = model(batch["input_ids"])
    words = torch.nn.functional.cross_entropy(output.prediction_logits.flatten(0, 1), batch["labels"].flatten())
    follows = torch.nn.functional.cross_entropy(output.seq_relationship_logits, batch["next_sentence_label"])
    (words + weight * follows).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(step[name], parameter.grad, rtol=1e-6, atol=1e-8)


def test_evaluation_takes_the_loss_that_is_trained(tmp_path: Path) -> None:
    data = Sequences(8, ("labels=words", "next_sentence_label=class"))
    torch.manual_seed(0)
    model = bert_toolkit.ToolkitBertForPreTraining(ToolkitBertConfig(**SIZES)).eval()
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", per_device_eval_batch_size=8)
    trainer = PreTrainingTrainer(model, arguments, eval_dataset=data, next_sentence_weight=7.5)
    batch = {name: torch.stack([row[name] for row in data.rows]) for name in data.rows[0]}
    output = model(batch["input_ids"])
    words = torch.nn.functional.cross_entropy(output.prediction_logits.flatten(0, 1), batch["labels"].flatten())
    follows = torch.nn.functional.cross_entropy(output.seq_relationship_logits, batch["next_sentence_label"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx((words + 7.5 * follows).item(), rel=1e-5)


if __name__ == "__main__":
    worker(sys.argv[1], Path(sys.argv[2]))
