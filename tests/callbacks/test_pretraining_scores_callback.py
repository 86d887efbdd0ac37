"""Losses of the two tasks in the log add up to the loss that Trainer logs."""

import pytest
import torch
from transformers import BertForPreTraining, Trainer, TrainerCallback, TrainingArguments

from bert_toolkit.callbacks.pretraining_scores import PreTrainingScoresCallback


class Reporter(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_every_reporter_has_scores_that_add_up_to_the_loss(tmp_path, tiny_bert_dir):
    torch.manual_seed(0)
    model = BertForPreTraining.from_pretrained(
        tiny_bert_dir, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    rows = [
        {
            "input_ids": [2, 5 + i % 7, 4, 6, 3],
            "attention_mask": [1, 1, 1, 1, 0],
            "token_type_ids": [0] * 5,
            "labels": [-100, -100, 6 + i % 5, -100, -100],
            "next_sentence_label": i % 2,
        }
        for i in range(24)
    ]
    reporter, scores = Reporter(), PreTrainingScoresCallback(peak_flops=1e12)
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=4,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[reporter])
    scores.attach(trainer)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 4
    for entry, seen in zip(entries, reporter.seen, strict=False):
        assert entry["mlm_loss"] + entry["nsp_loss"] == pytest.approx(entry["loss"], rel=1e-4)
        assert entry["padding_share"] == pytest.approx(1 / 5)
        assert entry["tokens_per_second"] > 0 and entry["mfu"] > 0
        assert seen["mlm_loss"] == entry["mlm_loss"]
    assert not model._forward_hooks
