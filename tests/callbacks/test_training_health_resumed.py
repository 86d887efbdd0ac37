"""A resumed run has seen what the interrupted one saw: samples, findings and evaluations."""

import pytest
from transformers import Trainer, TrainingArguments

from bert_toolkit import TrainingHealthCallback


@pytest.fixture
def train(tiny_bert_dir, tmp_path):
    from transformers import BertForSequenceClassification

    rows = [{"input_ids": [2, 5 + i % 7, 6, 3], "labels": i % 2} for i in range(16)]

    def run(name: str, resume: str | None = None) -> TrainingHealthCallback:
        arguments = TrainingArguments(
            str(tmp_path / name),
            per_device_train_batch_size=4,
            num_train_epochs=3,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=4,
            logging_steps=1,
            use_cpu=True,
            disable_tqdm=True,
        )
        health = TrainingHealthCallback(every_n_steps=2)
        model = BertForSequenceClassification.from_pretrained(tiny_bert_dir)
        trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=[health])
        trainer.train(resume_from_checkpoint=None if resume is None else str(tmp_path / name / resume))
        return health

    return run


def test_evaluations_before_the_interruption_are_known_after(train):
    whole = train("run")
    resumed = train("run", "checkpoint-8")
    assert [step for step, _ in whole.history.evaluations] == [2, 4, 6, 8, 10, 12]
    for (step, numbers), (expected_step, expected) in zip(
        resumed.history.evaluations, whole.history.evaluations, strict=True
    ):
        assert step == expected_step
        assert numbers["eval_loss"] == expected["eval_loss"]
    assert len(resumed.history) == len(whole.history)


def test_damaged_samples_are_said_and_cost_nothing_but_themselves(train, tmp_path, caplog):
    train("run")
    for file in (tmp_path / "run" / "monitoring").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    resumed = train("run", "checkpoint-8")
    assert "Training health starts anew at step 9" in caplog.text
    assert [step for step, _ in resumed.history.evaluations] == [2, 4, 6, 8, 10, 12]
    assert resumed.history.step.tolist() == [10, 12]
