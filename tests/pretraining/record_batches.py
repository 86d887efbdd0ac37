"""Trains a tiny model on pairs with Trainer and writes the batches that the model saw; the tests start it.

python record_batches.py output.npz '{"per_device_train_batch_size": 4}' [checkpoint]
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import BertTokenizer, TrainingArguments

from bert_toolkit import (
    DataCollatorForPreTraining,
    NextSentencePairs,
    ToolkitBertConfig,
    ToolkitBertForPreTraining,
)
from bert_toolkit.pretraining.trainer import PreTrainingTrainer

STEP_PAIRS = 8
ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(100))]


def record_batches(output_dir, settings: dict, checkpoint: str | None = None) -> list[np.ndarray]:
    """Train and return every batch of this process in order, as one array each: ids, labels, types, and NSP labels."""
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(ENTRIES)})
    generator = np.random.default_rng(0)
    documents = [
        [" ".join(f"w{i}" for i in generator.integers(0, 100, generator.integers(2, 9))) for _ in range(25)]
        for _ in range(12)
    ]
    pairs = NextSentencePairs(documents, tokenizer, max_length=32, group_size=STEP_PAIRS, seed=1)
    torch.manual_seed(0)
    config = ToolkitBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    defaults = {
        "num_train_epochs": 3,
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = TrainingArguments(output_dir=str(output_dir), **{**defaults, **settings})
    model = ToolkitBertForPreTraining(config)
    seen: list[np.ndarray] = []

    def record(module, positional, named):
        columns = [named["input_ids"], named["labels"], named["token_type_ids"]]
        label = named["next_sentence_label"][:, None]
        seen.append(torch.cat([*columns, label], dim=1).numpy().copy())

    model.register_forward_pre_hook(record, with_kwargs=True)
    trainer = PreTrainingTrainer(
        model=model, args=arguments, train_dataset=pairs, data_collator=DataCollatorForPreTraining(tokenizer, seed=1)
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return seen


if __name__ == "__main__":
    target = Path(sys.argv[1]).with_suffix(f".{os.environ.get('RANK', '0')}.npz")
    batches = record_batches(target.parent / "run", json.loads(sys.argv[2]), *sys.argv[3:])
    np.savez(target, *batches)
    os._exit(0)  # a live DistributedDataParallel can abort the process at exit, after correct results
