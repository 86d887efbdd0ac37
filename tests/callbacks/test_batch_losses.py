"""Losses by batch are those that the model returned."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from bert_toolkit.callbacks.batch_losses import BatchLossCallback


@pytest.fixture
def train(tmp_path, tiny_bert_dir):
    def run(**settings):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)
        rows = Dataset.from_dict({"input_ids": [[2, 5 + i % 7, 3] for i in range(24)], "labels": [0, 1] * 12})
        checkpoint = settings.pop("checkpoint", None)
        arguments = TrainingArguments(
            tmp_path,
            per_device_train_batch_size=4,
            max_steps=settings.pop("max_steps", 6),
            report_to="none",
            use_cpu=True,
            logging_steps=1,
            dataloader_pin_memory=False,
            **settings,
        )
        losses = BatchLossCallback()
        trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[losses])
        trainer.train(resume_from_checkpoint=checkpoint and str(tmp_path / f"checkpoint-{checkpoint}"))
        return losses, trainer

    return run


def test_equal_the_log_where_every_step_is_logged(train):
    losses, trainer = train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses.losses == pytest.approx(logged, abs=1e-4)
    assert losses.first_batch == 0


def test_evaluation_is_left_out_and_micro_batches_count(train):
    losses, trainer = train(eval_strategy="steps", eval_steps=2, gradient_accumulation_steps=2)
    assert len(losses.losses) == 12
    before = list(losses.losses)
    trainer.evaluate()
    assert losses.losses == before
    assert not trainer.model._forward_hooks


def test_loss_that_the_model_does_not_compute_is_left_out(train):
    losses, _ = train(label_smoothing_factor=0.1)
    assert losses.losses == []


def test_a_resumed_run_has_the_losses_before(train):
    whole = train(save_steps=3)[0].losses
    for step in (3, 6):
        resumed, _ = train(save_steps=3, checkpoint=step)
        assert resumed.losses == pytest.approx(whole, rel=1e-6) and len(whole) == 6
        assert resumed.first_batch == 0


def test_damaged_losses_are_left_out_with_a_warning(train, tmp_path, caplog):
    train(save_steps=3)
    (tmp_path / "checkpoint-3" / "batch_losses.npz").write_bytes(b"PK no more")
    resumed, _ = train(save_steps=3, checkpoint=3)
    assert (len(resumed.losses), resumed.first_batch) == (3, 3)
    assert "left out of the figure" in caplog.text and "damaged" in caplog.text
