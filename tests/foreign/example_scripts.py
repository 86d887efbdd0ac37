"""transformers' example scripts, written anew at small size in their manner.

Files are read by `datasets`, tokenized by `map`, trained by Trainer with evaluation, and at the end model, metrics and
state are saved, as run_glue.py, run_mlm.py, run_clm.py, run_ner.py, run_qa.py and run_translation.py do it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict, load_dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.fault_injection.healthy_programs.program import Ready, Score, Setup
from benchmarks.fault_injection.healthy_programs.texts import causal_tokenizer, spoken, word_tokenizer


def files(setup: Setup, rows: list[dict[str, Any]]) -> DatasetDict:
    """Write rows as JSON lines and load them as a script does."""
    setup.folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, part in (("train", rows[:-32]), ("validation", rows[-32:])):
        path: Path = setup.folder / f"{split}.json"
        path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        paths[split] = str(path)
    return load_dataset("json", data_files=paths, cache_dir=str(setup.folder / "cache"))


def settings(setup: Setup, **changes: Any) -> dict[str, Any]:
    """What the command line would say."""
    return {
        "output_dir": str(setup.folder / "output"),
        "max_steps": setup.steps or 60,
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 42,
        **changes,
    }


def bert(words: int, **config: Any) -> BertConfig:
    """Config of a small BERT."""
    return BertConfig(
        vocab_size=words,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        **config,
    )


def ready(trainer: Trainer) -> Ready:
    """Train, save and evaluate as the scripts do after `if training_args.do_train`."""

    def run() -> None:
        result = trainer.train(resume_from_checkpoint=None)
        trainer.save_model()
        metrics = {**result.metrics, "train_samples": len(trainer.train_dataset)}
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    def score() -> Score:
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        return Score("evaluation loss", losses[-1], losses[0], before=losses[0])

    return Ready(run, trainer.model, score, trainer)


def run_glue(setup: Setup) -> Ready:
    """Sentence pairs and a label: whether the second sentence holds a certain word."""
    rows = [
        {"sentence1": one, "sentence2": two, "label": int(" the " in two)}
        for (_, one), (_, two) in zip(spoken()[:160], spoken()[160:320], strict=True)
    ]
    tokenizer = word_tokenizer()
    data = files(setup, rows).map(
        lambda batch: tokenizer(batch["sentence1"], batch["sentence2"], truncation=True, max_length=40), batched=True
    )

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        found = np.argmax(prediction.predictions, axis=1)
        return {"accuracy": float((found == prediction.label_ids).mean())}

    return ready(
        Trainer(
            BertForSequenceClassification(bert(len(tokenizer), num_labels=2)),
            TrainingArguments(**settings(setup)),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            compute_metrics=compute_metrics,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
            callbacks=list(setup.make_callbacks()),
        )
    )


def grouped(tokenizer: Any, setup: Setup, size: int = 32) -> DatasetDict:
    """Lines of text in blocks of equal length, as run_clm.py and run_mlm.py group them."""
    data = files(setup, [{"text": text} for _, text in spoken()[:600]])
    data = data.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])

    def group_texts(examples: dict[str, list]) -> dict[str, list]:
        joined = {key: [i for row in rows for i in row] for key, rows in examples.items()}
        total = len(joined["input_ids"]) // size * size
        return {key: [values[i : i + size] for i in range(0, total, size)] for key, values in joined.items()}

    return data.map(group_texts, batched=True)


def run_mlm(setup: Setup) -> Ready:
    """Masked words."""
    tokenizer = word_tokenizer()
    data = grouped(tokenizer, setup)

    def preprocess_logits_for_metrics(logits: Any, labels: Any) -> Any:
        return logits.argmax(dim=-1)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        labels = prediction.label_ids.reshape(-1)
        found = prediction.predictions.reshape(-1)[labels != -100]
        return {"accuracy": float((found == labels[labels != -100]).mean())}

    return ready(
        Trainer(
            BertForMaskedLM(bert(len(tokenizer))),
            TrainingArguments(**settings(setup)),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            callbacks=list(setup.make_callbacks()),
        )
    )


def run_clm(setup: Setup) -> Ready:
    """Next words, with labels that `map` copies."""
    tokenizer = causal_tokenizer()
    data = grouped(tokenizer, setup)
    data = data.map(lambda batch: {"labels": batch["input_ids"]}, batched=True)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return ready(
        Trainer(
            GPT2LMHeadModel(config),
            TrainingArguments(**settings(setup, gradient_accumulation_steps=2)),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=default_data_collator,
            callbacks=list(setup.make_callbacks()),
        )
    )


def run_ner(setup: Setup) -> Ready:
    """A tag for each word, on its first piece."""
    tokenizer = word_tokenizer()
    rows = [
        {"tokens": text.lower().split(), "ner_tags": [int(word[0].isupper()) for word in text.split()]}
        for _, text in spoken()[:200]
    ]

    def tokenize_and_align_labels(examples: dict[str, list]) -> dict[str, Any]:
        inputs = tokenizer(examples["tokens"], truncation=True, max_length=40, is_split_into_words=True)
        inputs["labels"] = []
        for i, tags in enumerate(examples["ner_tags"]):
            previous, labels = None, []
            for word in inputs.word_ids(batch_index=i):
                labels.append(-100 if word is None or word == previous else tags[word])
                previous = word
            inputs["labels"].append(labels)
        return inputs

    data = files(setup, rows).map(tokenize_and_align_labels, batched=True, remove_columns=["tokens", "ner_tags"])

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        kept = prediction.label_ids != -100
        found = prediction.predictions.argmax(-1)
        return {"accuracy": float((found == prediction.label_ids)[kept].mean())}

    return ready(
        Trainer(
            BertForTokenClassification(bert(len(tokenizer), num_labels=2)),
            TrainingArguments(**settings(setup)),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorForTokenClassification(tokenizer),
            compute_metrics=compute_metrics,
            callbacks=list(setup.make_callbacks()),
        )
    )


class QuestionAnsweringTrainer(Trainer):
    """Turns logits into answers after the evaluation loop, as the class of that name in trainer_qa.py."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compute metrics after the loop."""
        metrics = super().evaluate(*args, **kwargs)
        metrics["eval_exact_match"] = 100.0 * math.exp(-metrics["eval_loss"])
        self.log({"eval_exact_match": metrics["eval_exact_match"]})
        return metrics


def run_qa(setup: Setup) -> Ready:
    """An answer's place in its context, by offsets, with a stride over long contexts."""
    tokenizer = word_tokenizer()
    rows = []
    for (_, one), (_, two) in zip(spoken()[:160], spoken()[160:320], strict=True):
        context, words = f"{one} {two}", two.split()
        answer = " ".join(words[1:3])
        rows.append(
            {"question": words[0], "context": context, "answer": answer, "start": context.index(answer, len(one))}
        )

    def prepare_train_features(examples: dict[str, list]) -> dict[str, Any]:
        inputs = tokenizer(
            examples["question"],
            examples["context"],
            truncation="only_second",
            max_length=32,
            stride=8,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding="max_length",
        )
        sample, offsets = inputs.pop("overflow_to_sample_mapping"), inputs.pop("offset_mapping")
        inputs["start_positions"], inputs["end_positions"] = [], []
        for i, places in enumerate(offsets):
            kinds = inputs.sequence_ids(i)
            start = examples["start"][sample[i]]
            end = start + len(examples["answer"][sample[i]])
            inside = [k for k, (a, b) in enumerate(places) if kinds[k] == 1 and a < end and b > start]
            whole = inside and places[inside[0]][0] <= start and places[inside[-1]][1] >= end
            inputs["start_positions"].append(inside[0] if whole else 0)
            inputs["end_positions"].append(inside[-1] if whole else 0)
        return inputs

    data = files(setup, rows)
    data = data.map(prepare_train_features, batched=True, remove_columns=data["train"].column_names)
    return ready(
        QuestionAnsweringTrainer(
            BertForQuestionAnswering(bert(len(tokenizer))),
            TrainingArguments(**settings(setup)),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=default_data_collator,
            callbacks=list(setup.make_callbacks()),
        )
    )


def run_translation(setup: Setup) -> Ready:
    """Sentences backwards, with generation in the evaluation."""
    tokenizer = word_tokenizer()
    rows = [{"source": text, "target": " ".join(text.split()[::-1])} for _, text in spoken()[:200]]

    def preprocess_function(examples: dict[str, list]) -> dict[str, Any]:
        inputs = tokenizer(examples["source"], max_length=24, truncation=True)
        return {**inputs, "labels": tokenizer(examples["target"], max_length=24, truncation=True)["input_ids"]}

    data = files(setup, rows)
    data = data.map(preprocess_function, batched=True, remove_columns=data["train"].column_names)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        length = (prediction.predictions != 0).sum(-1).mean()
        return {"gen_len": float(length)}

    return ready(
        Seq2SeqTrainer(
            model,
            Seq2SeqTrainingArguments(
                **settings(setup, predict_with_generate=True, generation_max_length=12, remove_unused_columns=True)
            ),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
            compute_metrics=compute_metrics,
            callbacks=list(setup.make_callbacks()),
        )
    )


SCRIPTS = {script.__name__: script for script in (run_glue, run_mlm, run_clm, run_ner, run_qa, run_translation)}
