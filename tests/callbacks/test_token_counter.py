"""Token counts of a real Trainer run, against a count of the rows."""

import pytest
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from bert_toolkit.callbacks.token_counter import TokenCounterCallback


class Padder:
    """Stands in for a tokenizer: pads `input_ids` with 0 to the longest row."""

    def __call__(self, rows):
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        return {
            "input_ids": torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
            ),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_equal_the_rows_and_evaluation_is_left_out(tmp_path, workers):
    rows = [{"input_ids": [1] * length, "labels": length % 2} for length in (3, 5, 4, 8, 2, 6, 7, 1)]
    config = BertConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=2
    )
    counter = TokenCounterCallback()
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(
            str(tmp_path),
            num_train_epochs=3,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            eval_strategy="epoch",
            dataloader_num_workers=workers,
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=Padder(),
        callbacks=[counter],
    )
    trainer.train()
    assert counter.tokens == 3 * 36
    assert counter.padded_tokens == 3 * 8 * 8
    assert counter.padding_share == pytest.approx(1 - 36 / 64)
    assert 0 < counter.seconds < 60
    assert counter.tokens_per_second == pytest.approx(108 / counter.seconds)
