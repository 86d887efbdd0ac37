"""Language models from scratch: masked, causal, mixtures of experts, state spaces, packed rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorForLanguageModeling, Trainer

from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Setup,
    arguments,
    loss_fell,
    program,
    with_trainer,
)
from benchmarks.fault_injection.healthy_programs.texts import (
    causal_tokenizer,
    speeches,
    spoken,
    token_blocks,
    word_tokenizer,
)


def causal(setup: Setup, model: nn.Module, settings: dict[str, Any], to: float = 0.85, **kwargs: Any) -> Ready:
    """Next tokens of the speeches, in blocks of 32."""
    tokenizer = causal_tokenizer()
    return with_trainer(
        setup,
        model,
        [{"input_ids": block} for block in token_blocks(tokenizer)],
        settings,
        collator=kwargs.pop("collator", DataCollatorForLanguageModeling(tokenizer, mlm=False)),
        score=to,
        **kwargs,
    )


def special_tokens() -> dict[str, Any]:
    """Token ids that configs ask for."""
    tokenizer = causal_tokenizer()
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def gpt2(**config: Any) -> nn.Module:
    """A small GPT-2 with fresh weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_positions": 64, "n_embd": 64, "n_layer": 4, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**{**special_tokens(), **size, **config}))


def llama(**config: Any) -> nn.Module:
    """A small Llama with fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    return LlamaForCausalLM(LlamaConfig(**{**special_tokens(), **size, **config}))


@program(TUNING)
def gpt2_from_scratch(setup: Setup) -> Ready:
    """GPT-2 with tied embeddings and a weight decay of 0.1."""
    return causal(setup, gpt2(), arguments(setup, 150, 2e-3, weight_decay=0.1))


@program(TUNING)
def gpt2_accumulated(setup: Setup) -> Ready:
    """Four micro-batches per step."""
    return causal(setup, gpt2(), arguments(setup, 100, 2e-3, 4, gradient_accumulation_steps=4))


@program(TUNING)
def gpt2_untied(setup: Setup) -> Ready:
    """An output layer of its own."""
    return causal(setup, gpt2(tie_word_embeddings=False), arguments(setup, 120, 2e-3))


@program(HELD_OUT)
def llama_from_scratch(setup: Setup) -> Ready:
    """Llama with grouped queries, a cosine schedule and betas of 0.9 and 0.95."""
    settings = arguments(setup, 150, 3e-3, lr_scheduler_type="cosine", adam_beta2=0.95, weight_decay=0.1)
    return causal(setup, llama(), settings)


@program(HELD_OUT)
def llama_checkpointed(setup: Setup) -> Ready:
    """Activations are computed again in the backward pass."""
    return causal(setup, llama(), arguments(setup, 80, 3e-3, gradient_checkpointing=True))


@program(HELD_OUT)
def llama_packed(setup: Setup) -> Ready:
    """Several sentences per row, flattened, with positions that begin anew at each."""
    from transformers import DataCollatorWithFlattening

    tokenizer = causal_tokenizer()
    rows = [{"input_ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]} for _, text in spoken()[:2000]]
    model = llama()
    return with_trainer(
        setup,
        model,
        rows,
        arguments(setup, 120, 3e-3),
        collator=DataCollatorWithFlattening(return_position_ids=True),
        score=0.9,
    )


@program(HELD_OUT)
def characters(setup: Setup) -> Ready:
    """A model of characters, as nanoGPT's Shakespeare."""
    text = "\n".join(text for _, text in spoken()[:2000])
    alphabet = sorted(set(text))
    ids = [alphabet.index(letter) for letter in text]
    rows = [{"input_ids": ids[i : i + 64], "labels": ids[i : i + 64]} for i in range(0, len(ids) - 64, 64)]
    model = llama(vocab_size=len(alphabet), pad_token_id=None, bos_token_id=None, eos_token_id=None)
    return with_trainer(setup, model, rows, arguments(setup, 150, 3e-3), score=0.75)


@program(TUNING)
def mixtral(setup: Setup) -> Ready:
    """Mixture of eight experts, two for each token, with the router's loss."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        **special_tokens(),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        output_router_logits=True,
    )
    return causal(setup, MixtralForCausalLM(config), arguments(setup, 120, 3e-3))


@program(HELD_OUT)
def qwen_of_many_experts(setup: Setup) -> Ready:
    """Sixty-four small experts and short batches, so that some get no token."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        **special_tokens(),
        hidden_size=48,
        intermediate_size=96,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=64,
        num_experts_per_tok=2,
    )
    return causal(setup, Qwen2MoeForCausalLM(config), arguments(setup, 120, 3e-3, 2), 0.9)


@program(HELD_OUT)
def mamba(setup: Setup) -> Ready:
    """A state-space model."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(**special_tokens(), hidden_size=48, state_size=8, num_hidden_layers=2)
    return causal(setup, MambaForCausalLM(config), arguments(setup, 80, 3e-3))


@program(TUNING)
def rwkv(setup: Setup) -> Ready:
    """A linear recurrence with time decay."""
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(
        **special_tokens(),
        hidden_size=48,
        attention_hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        context_length=64,
    )
    return causal(setup, RwkvForCausalLM(config), arguments(setup, 80, 3e-3))


@program(HELD_OUT)
def opt(setup: Setup) -> Ready:
    """OPT with ReLUs in its layers."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        **special_tokens(),
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=64,
    )
    return causal(setup, OPTForCausalLM(config), arguments(setup, 120, 2e-3), 0.88)


@program(HELD_OUT)
def bloom(setup: Setup) -> Ready:
    """Bloom with linear biases of attention."""
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(**special_tokens(), hidden_size=64, n_layer=2, n_head=4)
    return causal(setup, BloomForCausalLM(config), arguments(setup, 100, 2e-3))


@program(TUNING)
def gemma(setup: Setup) -> Ready:
    """Gemma, whose norms begin at zero and whose embeddings are scaled."""
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        **special_tokens(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
    )
    return causal(setup, GemmaForCausalLM(config), arguments(setup, 100, 2e-3))


@program(HELD_OUT)
def neox(setup: Setup) -> Ready:
    """GPT-NeoX with parallel residual branches."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        **special_tokens(), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return causal(setup, GPTNeoXForCausalLM(config), arguments(setup, 100, 2e-3))


@program(TUNING)
def toolkit_mlm_nsp(setup: Setup) -> Ready:
    """This package's BERT and data: masked words and next sentences."""
    from bert_toolkit import (
        DataCollatorForPreTraining,
        NextSentencePairs,
        ToolkitBertConfig,
        ToolkitBertForPreTraining,
    )

    tokenizer = word_tokenizer()
    documents = [sentences[:60] for _, sentences in speeches()[:60]]
    model = ToolkitBertForPreTraining(
        ToolkitBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=64,
        )
    )
    return with_trainer(
        setup,
        model,
        NextSentencePairs(documents, tokenizer, max_length=32),
        arguments(setup, 150, 2e-3),
        collator=DataCollatorForPreTraining(tokenizer),
    )


@program(TUNING)
def bert_mlm(setup: Setup) -> Ready:
    """HF's BERT from scratch on masked words."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    return masked(setup, BertForMaskedLM(config), arguments(setup, 150, 2e-3))


def masked(setup: Setup, model: nn.Module, settings: dict[str, Any], to: float = 0.85) -> Ready:
    """Masked words of the speeches, one sentence per row."""
    tokenizer = word_tokenizer()
    rows = [dict(tokenizer(text, truncation=True, max_length=32)) for _, text in spoken()[:3000]]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    return with_trainer(setup, model, rows, settings, collator=collator, score=to)


@program(HELD_OUT)
def modernbert(setup: Setup) -> Ready:
    """ModernBERT with local and global attention, 30 % of the words masked."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    tokenizer = word_tokenizer()
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        local_attention=16,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return masked(setup, ModernBertForMaskedLM(config), arguments(setup, 120, 2e-3))


@program(TUNING)
def electra(setup: Setup) -> Ready:
    """ELECTRA's discriminator: which words were replaced."""
    from transformers import ElectraConfig, ElectraForPreTraining

    tokenizer = word_tokenizer()
    config = ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=64,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    rows = [tokenizer(text, truncation=True, max_length=24)["input_ids"] for _, text in spoken()[:3000]]

    def collate(batch: list[list[int]]) -> dict[str, Tensor]:
        padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
        ids, mask = padded["input_ids"], padded["attention_mask"]
        replaced = (torch.rand(ids.shape) < 0.3) & (ids >= 5)
        # Words from the rare half, which are easy to tell
        words = torch.randint(len(tokenizer) // 2, len(tokenizer), ids.shape)
        return {
            "input_ids": torch.where(replaced, words, ids),
            "attention_mask": mask,
            "labels": replaced.long(),
        }

    return with_trainer(
        setup, ElectraForPreTraining(config), rows, arguments(setup, 150, 2e-3), collator=collate, score=0.85
    )


@program(TUNING)
def xlnet(setup: Setup) -> Ready:
    """XLNet, fine-tuned on classes from fresh weights: its mask embedding is not used."""
    from transformers import XLNetConfig, XLNetForSequenceClassification

    from benchmarks.fault_injection.healthy_programs.texts import source_rows

    tokenizer = word_tokenizer()
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=64, n_layer=2, n_head=4, d_inner=128, num_labels=2)
    rows = source_rows(tokenizer)
    return with_trainer(
        setup,
        XLNetForSequenceClassification(config),
        rows,
        arguments(setup, 120, 1e-3),
        tokenizer=tokenizer,
        score=0.6,
    )


@program(HELD_OUT)
def compiled(setup: Setup) -> Ready:
    """torch.compile through Trainer, with the eager backend, which traces and does not generate code."""
    return causal(setup, llama(), arguments(setup, 60, 3e-3, torch_compile=True, torch_compile_backend="eager"), 0.92)


@program(TUNING)
def prefix_of_numbers(setup: Setup) -> Ready:
    """Sums of two digits as text: a plateau at the frequencies of the digits, then a fall."""
    letters = "0123456789+="
    rows = []
    for a in range(10):
        for b in range(10):
            ids = [letters.index(c) for c in f"{a}+{b}={a + b:02d}"]
            rows.append({"input_ids": ids, "labels": [-100] * 4 + ids[4:]})
    model = gpt2(vocab_size=12, n_layer=2, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    return with_trainer(
        setup, model, rows, arguments(setup, 250, 2e-3, 32), score=lambda trainer: sums(trainer, math.log(10))
    )


def sums(trainer: Trainer, guess: float) -> Any:
    """The loss must be below half of what a guess among the digits gives."""
    done = loss_fell(trainer, 1.0)
    return type(done)("loss", done.value, guess / 2, before=done.before)
