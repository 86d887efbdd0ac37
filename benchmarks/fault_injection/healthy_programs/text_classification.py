"""Fine-tuning of pre-trained weights on classes of sentences, in the many ways that people do it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    Trainer,
    TrainerCallback,
)

from benchmarks.fault_injection.healthy_programs.bodies import MeanPooled, fine_tuning, minilm_classifier, whole_minilm
from benchmarks.fault_injection.healthy_programs.measures import accuracy, held_out_accuracy
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Score,
    Setup,
    arguments,
    program,
    with_trainer,
)
from benchmarks.fault_injection.healthy_programs.texts import (
    century_rows,
    minilm_tokenizer,
    small_minilm_folder,
    small_minilm_tokenizer,
    source_rows,
)


@program(TUNING)
def minilm_centuries(setup: Setup) -> Ready:
    """MiniLM, fine-tuned to tell sentences before 1850 from those after 1970."""
    return fine_tuning(setup)


@program(TUNING)
def minilm_sources(setup: Setup) -> Ready:
    """MiniLM, fine-tuned to tell linguists' examples from presidents' sentences."""
    tokenizer = minilm_tokenizer()
    rows = source_rows(tokenizer)
    return with_trainer(
        setup,
        whole_minilm(num_labels=2),
        rows[:1000],
        arguments(setup, 60, 5e-5),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.9),
    )


@program(TUNING, every_n_steps=4)
def slow_fine_tuning(setup: Setup) -> Ready:
    """A small learning rate: the loss goes from 0.69 to about 0.62 over 200 steps, and the model learns."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)
    return with_trainer(
        setup,
        MeanPooled(AutoModel.from_pretrained(small_minilm_folder())),
        rows[:1000],
        arguments(setup, 200, 5e-6),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.65),
    )


@program(TUNING, every_n_steps=1)
def batch_size_one(setup: Setup) -> Ready:
    """One example per step."""
    tokenizer = small_minilm_tokenizer()
    rows = source_rows(tokenizer)
    return with_trainer(
        setup,
        MeanPooled(AutoModel.from_pretrained(small_minilm_folder())),
        rows[:1000],
        arguments(setup, 160, 1e-4, 1),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.75),
    )


@program(TUNING, every_n_steps=1)
def three_steps(setup: Setup) -> Ready:
    """Three steps, as a smoke test of a script has them; healthy by construction."""
    tokenizer = small_minilm_tokenizer()
    return with_trainer(
        setup,
        minilm_classifier(num_labels=2),
        century_rows(tokenizer),
        arguments(setup, 3, 3e-4),
        tokenizer=tokenizer,
        score=1.2,
    )


@program(TUNING)
def warmup_of_seven_tenths(setup: Setup) -> Ready:
    """The learning rate rises for 70 % of the run."""
    return fine_tuning(setup, rate=6e-4, steps=120, bound=0.8, warmup_steps=0.7)


@program(TUNING)
def cosine_with_restarts(setup: Setup) -> Ready:
    """A cosine schedule with three hard restarts."""
    return fine_tuning(
        setup,
        steps=150,
        lr_scheduler_type="cosine_with_restarts",
        lr_scheduler_kwargs={"num_cycles": 3},
    )


@program(TUNING)
def label_smoothing(setup: Setup) -> Ready:
    """Label smoothing of 0.1."""
    return fine_tuning(setup, label_smoothing_factor=0.1)


@program(TUNING)
def neftune(setup: Setup) -> Ready:
    """Noise on the embeddings."""
    return fine_tuning(setup, neftune_noise_alpha=5.0)


@program(HELD_OUT)
def dropout_three_tenths(setup: Setup) -> Ready:
    """Dropout of 0.3 everywhere."""
    tokenizer = small_minilm_tokenizer()
    rows = source_rows(tokenizer)
    model = minilm_classifier(num_labels=2, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    return with_trainer(
        setup,
        model,
        rows[:1000],
        arguments(setup, 100, 5e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
    )


@program(TUNING)
def no_dropout(setup: Setup) -> Ready:
    """Dropout of 0 everywhere."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)
    model = minilm_classifier(num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return with_trainer(
        setup,
        model,
        rows[:1000],
        arguments(setup, 80, 5e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
    )


@program(HELD_OUT)
def layer_wise_decay(setup: Setup) -> Ready:
    """Each layer learns at 0.7 times the rate of the one above it."""
    from bert_toolkit.training.layer_wise_learning_rate import layer_wise_parameter_groups

    tokenizer = small_minilm_tokenizer()
    rows = source_rows(tokenizer)
    model = minilm_classifier(num_labels=2)
    decayed = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    optimizer = torch.optim.AdamW(layer_wise_parameter_groups(model, 6e-4, 0.7, 0.01, decayed))
    return with_trainer(
        setup,
        model,
        rows[:1000],
        arguments(setup, 80, 6e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
        optimizers=(optimizer, None),
    )


@program(TUNING)
def linear_probe(setup: Setup) -> Ready:
    """The body is frozen; only the head learns."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)
    model = MeanPooled(AutoModel.from_pretrained(small_minilm_folder()))
    model.body.requires_grad_(False)
    return with_trainer(
        setup,
        model,
        rows[:1000],
        arguments(setup, 80, 5e-3),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.75),
    )


@program(TUNING)
def frozen_lower_part(setup: Setup) -> Ready:
    """Embeddings and the lowest layer are frozen."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)
    model = minilm_classifier(num_labels=2)
    model.bert.embeddings.requires_grad_(False)
    for layer in model.bert.encoder.layer[:1]:
        layer.requires_grad_(False)
    return with_trainer(
        setup,
        model,
        rows[:1000],
        arguments(setup, 160, 5e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
    )


class Unfreeze(TrainerCallback):
    """Lets one layer more learn every so many steps, from the head downwards, as ULMFiT does."""

    def __init__(self, layers: list[nn.Module], every: int):
        self.layers, self.every = layers, every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Unfreeze the next layer where it is time."""
        if self.layers and state.global_step % self.every == 0:
            self.layers.pop().requires_grad_(True)


@program(HELD_OUT)
def gradual_unfreezing(setup: Setup) -> Ready:
    """The head learns first, and every ten steps one layer more."""
    tokenizer = small_minilm_tokenizer()
    rows = source_rows(tokenizer)
    model = minilm_classifier(num_labels=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    model.bert.requires_grad_(False)
    return with_trainer(
        setup,
        model,
        rows[:1000],
        arguments(setup, 100, 5e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
        optimizers=(optimizer, None),
        callbacks=[Unfreeze([model.bert.embeddings, *model.bert.encoder.layer], 10)],
    )


@program(TUNING)
def bare_body_with_own_head(setup: Setup) -> Ready:
    """AutoModel in a class of one's own: the pooler gets no gradient."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)
    return with_trainer(
        setup,
        MeanPooled(AutoModel.from_pretrained(small_minilm_folder())),
        rows[:1000],
        arguments(setup, 80, 5e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
    )


@program(HELD_OUT)
def evaluation_on_the_way(setup: Setup) -> Ready:
    """Evaluates and saves every 30 steps and keeps the best."""
    from bert_toolkit import compute_classification_metrics

    tokenizer = small_minilm_tokenizer()
    rows = source_rows(tokenizer)
    settings = arguments(setup, 100, 3e-4) | {
        "eval_strategy": "steps",
        "eval_steps": 30,
        "save_strategy": "steps",
        "save_steps": 30,
        "load_best_model_at_end": True,
        "save_total_limit": 1,
    }
    return with_trainer(
        setup,
        minilm_classifier(num_labels=2),
        rows[:1000],
        settings,
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.9),
        eval_dataset=rows[1000:],
        compute_metrics=compute_classification_metrics,
    )


@program(HELD_OUT)
def distillation(setup: Setup) -> Ready:
    """One layer learns the logits of three, which were trained just before."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)
    teacher = minilm_classifier(num_labels=2)
    first = Setup(setup.folder / "teacher", steps=setup.steps)
    with_trainer(first, teacher, rows[:1000], arguments(first, 80, 5e-4), tokenizer=tokenizer).run()
    teacher.eval().requires_grad_(False)
    student = minilm_classifier(num_labels=2, num_hidden_layers=1)

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            outputs = model(**inputs)
            with torch.no_grad():
                wanted = teacher(**inputs).logits
            found, wanted = (outputs.logits / 2).log_softmax(-1), (wanted / 2).log_softmax(-1)
            soft = nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
            loss = 0.5 * outputs.loss + 2.0 * soft
            return (loss, outputs) if return_outputs else loss

    return with_trainer(
        setup,
        student,
        rows[:1000],
        arguments(setup, 200, 6e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
        trainer_class=Distiller,
    )


@program(HELD_OUT)
def moving_average_of_weights(setup: Setup) -> Ready:
    """An exponential moving average of the weights beside the training, and its own score."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    tokenizer = small_minilm_tokenizer()
    rows = source_rows(tokenizer)
    model = minilm_classifier(num_labels=2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))

    class Average(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            average.update_parameters(model)

    ready = with_trainer(
        setup, model, rows[:1000], arguments(setup, 80, 5e-4), tokenizer=tokenizer, callbacks=[Average()]
    )

    def score() -> Score:
        value = accuracy(average.module, rows[1000:], ready.trainer.data_collator)
        return Score("held-out accuracy of the average", value, 0.8, higher=True)

    return Ready(ready.run, model, score, ready.trainer)
