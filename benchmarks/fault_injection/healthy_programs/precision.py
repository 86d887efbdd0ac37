"""Training in formats of half the width: autocast, weights that are bf16 themselves, loss scaling."""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.fault_injection.healthy_programs.language_models import causal, gpt2, llama
from benchmarks.fault_injection.healthy_programs.plain_loops import endless
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Loop,
    Ready,
    Setup,
    arguments,
    program,
    with_trainer,
)
from benchmarks.fault_injection.healthy_programs.texts import source_rows, word_tokenizer
from benchmarks.fault_injection.healthy_programs.vision import ConvNet, digits, stack


@program(TUNING)
def bf16_autocast(setup: Setup) -> Ready:
    """Trainer's bf16."""
    return causal(setup, gpt2(n_layer=2), arguments(setup, 100, 2e-3, bf16=True), 0.88)


@program(HELD_OUT)
def bf16_weights_large_rate(setup: Setup) -> Ready:
    """Weights that are bf16 themselves, with a rate that is large enough for their spacing."""
    model = llama().to(torch.bfloat16)
    return causal(setup, model, arguments(setup, 100, 5e-3), 0.9)


@program(TUNING, packages=("optimi",))
def bf16_weights_with_compensation(setup: Setup) -> Ready:
    """bf16 weights with Kahan summation, so that small steps are kept until they count."""
    from optimi import AdamW

    model = gpt2(n_layer=2).to(torch.bfloat16)
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, kahan_sum=True)
    return causal(setup, model, arguments(setup, 120, 1e-3), 0.92, optimizers=(optimizer, None))


class StochasticRounding(torch.optim.AdamW):
    """AdamW in fp32 whose result is rounded to bf16 at random, up or down by what is lost."""

    def __init__(self, weights: list[torch.nn.Parameter], **settings: float):
        """Keep fp32 copies of the moments alone."""
        self.weights = weights
        self.wide = [torch.nn.Parameter(weight.detach().float()) for weight in weights]
        super().__init__(self.wide, **settings)
        self.param_groups[0]["params"] = weights

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Step in fp32 from the bf16 weights, then round."""
        for wide, weight in zip(self.wide, self.weights, strict=True):
            wide.copy_(weight)
            wide.grad = None if weight.grad is None else weight.grad.float()
        self.param_groups[0]["params"] = self.wide
        super().step()
        self.param_groups[0]["params"] = self.weights
        for wide, weight in zip(self.wide, self.weights, strict=True):
            bits = wide.view(torch.int32)
            noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32)
            weight.copy_(((bits + noise) & -65536).view(torch.float32))


@program(HELD_OUT)
def bf16_weights_rounded_at_random(setup: Setup) -> Ready:
    """bf16 weights with stochastic rounding."""
    model = llama().to(torch.bfloat16)
    optimizer = StochasticRounding(list(model.parameters()), lr=3e-3, weight_decay=0.01)
    return causal(setup, model, arguments(setup, 100, 3e-3), 0.9, optimizers=(optimizer, None))


@program(HELD_OUT)
def bf16_classifier(setup: Setup) -> Ready:
    """BERT from scratch with bf16 autocast and full evaluation in it."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=2,
    )
    rows = source_rows(tokenizer)
    settings = arguments(setup, 120, 1e-3, 16, bf16=True)
    return with_trainer(setup, BertForSequenceClassification(config), rows, settings, tokenizer=tokenizer, score=0.6)


@program(TUNING)
def scaled_loss(setup: Setup) -> Ready:
    """A loss scaler in a plain loop, as fp16 needs it; here with bf16 autocast, which CPUs can."""
    model = ConvNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    batches = endless(digits()[:1400], 32)
    loop = Loop(setup, model, optimizer, 100, scaler=scaler)

    def run() -> None:
        model.train()
        with loop:
            for _ in range(loop.steps):
                batch = stack(next(batches))
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = model(**batch)["logits"]
                loss = functional.cross_entropy(logits.float(), batch["labels"])
                loop.log(loss.detach())
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

    return Ready(run, model, lambda: loop.loss_fell(0.3))
