"""Evaluations see every row, and answers come back in the order of the rows, whatever flags the run has."""

import datasets
import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

from bert_toolkit import ToolkitBertForSequenceClassification
from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.training.evaluation import class_logits, longest_first, predict_splits

WORDS = ["the dog", "a cat sleeps", "my friend runs today .", "every child", "the old king laughs today ."]


@pytest.fixture
def parts(tiny_bert_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    model = ToolkitBertForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2).eval()
    texts = [WORDS[i * 3 % 5] for i in range(11)]  # 11 rows in batches of 4: three are left over
    encoded = tokenizer(texts)
    columns = {**encoded, "label": [i % 2 for i in range(11)], "length": [len(ids) for ids in encoded["input_ids"]]}
    return tokenizer, model, texts, datasets.Dataset.from_dict(columns)


def trainer_of(parts, folder, **settings):
    tokenizer, model, _, rows = parts
    arguments = TrainingArguments(
        str(folder), report_to="none", use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=4, **settings
    )
    return Trainer(
        model,
        arguments,
        eval_dataset=longest_first(rows, arguments.dataloader_drop_last),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda seen: {"rows": len(seen.label_ids), "accuracy": 0.0},
        preprocess_logits_for_metrics=class_logits,
    )


@pytest.mark.parametrize("drop_last", [False, True])
def test_final_predictions_are_those_of_every_row_in_its_place(parts, tmp_path, drop_last):
    tokenizer, model, texts, rows = parts
    trainer = trainer_of(parts, tmp_path, dataloader_drop_last=drop_last)
    corpus = CorpusSplits(rows, rows, rows.select(range(11)), ["no", "yes"], "sentence", "eleven rows")
    seen = predict_splits(trainer, corpus)
    alone = np.concatenate([model(**tokenizer(text, return_tensors="pt")).logits.detach().numpy() for text in texts])
    np.testing.assert_allclose(seen.logits, alone, atol=1e-6)
    assert seen.labels.tolist() == rows["label"][:]
    assert seen.validation_metrics["validation_rows"] == 11
    assert trainer.args.dataloader_drop_last is drop_last, "flags are as they were"
    assert accuracy_score(seen.labels, seen.logits.argmax(-1)) == accuracy_score(rows["label"][:], alone.argmax(-1))


def test_evaluations_while_training_do_not_leave_out_the_shortest_rows(parts, tmp_path):
    """With `dataloader_drop_last` Trainer leaves out the last rows of the data, as without us, not those of a kind."""
    rows = parts[3]
    trainer = trainer_of(parts, tmp_path, dataloader_drop_last=True)
    seen = [length for batch in trainer.get_eval_dataloader() for length in batch["attention_mask"].sum(1).tolist()]
    assert seen == rows["length"][:8]


def test_longest_first_otherwise(parts, tmp_path):
    trainer = trainer_of(parts, tmp_path)
    seen = [length for batch in trainer.get_eval_dataloader() for length in batch["attention_mask"].sum(1).tolist()]
    assert seen == sorted(parts[3]["length"][:], reverse=True)
