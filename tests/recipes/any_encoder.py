"""Small encoders of other architectures with their kinds of tokenizers, as saved folders."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CanineConfig,
    CanineModel,
    CanineTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    EsmConfig,
    EsmModel,
    GPT2Config,
    GPT2Model,
    IBertConfig,
    IBertModel,
    NystromformerConfig,
    NystromformerModel,
    PerceiverConfig,
    PerceiverModel,
    PreTrainedTokenizerFast,
    ReformerConfig,
    ReformerModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    XLNetConfig,
    XLNetModel,
)

WORDS = [
    "the",
    "dog",
    "a",
    "cat",
    "my",
    "friend",
    "old",
    "king",
    "every",
    "child",
    "sleeps",
    "runs",
    "laughs",
    "sings",
    "waits",
    "today",
    ".",
]
NARROW = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def tokenizer(special: list[str], single: str, pair: str, **settings) -> PreTrainedTokenizerFast:
    """Whole words as tokens; `single` and `pair` are templates of where the special tokens go."""
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(token, vocabulary[token]) for token in special if token in pair]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **settings)


def roberta():
    """Positions are counted from behind the padding token's: 66 of them hold 64 tokens."""
    made = tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )
    config = RobertaConfig(vocab_size=len(made), max_position_embeddings=66, pad_token_id=1, **NARROW)
    return RobertaModel(config), made


def canine():
    """Reads characters; its tokenizer is written in Python."""
    config = CanineConfig(
        max_position_embeddings=128, num_hash_functions=4, num_hash_buckets=128, local_transformer_stride=16, **NARROW
    )
    return CanineModel(config), CanineTokenizer()


def xlnet():
    """Has no limit of length, pads on the left, and gives its memory beside the logits."""
    made = tokenizer(
        ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"],
        "$A <sep> <cls>:2",
        "$A <sep> $B:1 <sep>:1 <cls>:2",
        pad_token="<pad>",
        cls_token="<cls>",
        sep_token="<sep>",
        padding_side="left",
    )
    config = XLNetConfig(vocab_size=len(made), d_model=32, n_layer=1, n_head=2, d_inner=32, pad_token_id=5)
    return XLNetModel(config), made


def t5():
    """Encoder and decoder: hidden states come beside the logits; no limit of length."""
    made = tokenizer(
        ["<pad>", "</s>", "<unk>"], "$A </s>", "$A </s> $B </s>", pad_token="<pad>", eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    config = T5Config(
        vocab_size=len(made), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return T5Model(config), made


def deberta():
    """Positions relative to one another."""
    made = of_bert()
    return DebertaV2Model(DebertaV2Config(vocab_size=len(made), max_position_embeddings=64, **NARROW)), made


def of_bert():
    """A tokenizer with BERT's special tokens."""
    special = ["[PAD]", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    return tokenizer(special, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", pad_token="[PAD]")


def esm():
    """Written under other names of parameters than it has."""
    made = of_bert()
    config = EsmConfig(vocab_size=len(made), max_position_embeddings=64, pad_token_id=0, mask_token_id=4, **NARROW)
    return EsmModel(config), made


def ibert():
    """Has tables of embeddings that are not PyTorch's."""
    made = roberta()[1]
    return IBertModel(IBertConfig(vocab_size=len(made), max_position_embeddings=66, **NARROW)), made


def perceiver():
    """Its configuration names no hidden size."""
    made = of_bert()
    config = PerceiverConfig(
        vocab_size=len(made), num_latents=4, d_latents=32, d_model=32, num_blocks=1, num_self_attends_per_block=1,
        num_self_attention_heads=2, num_cross_attention_heads=2, qk_channels=32, v_channels=32,
        max_position_embeddings=64,
    )  # fmt: skip
    return PerceiverModel(config), made


def reformer():
    """Takes any length in evaluation and one length in training."""
    made = of_bert()
    config = ReformerConfig(
        vocab_size=len(made), attention_head_size=16, attn_layers=["local"], hidden_size=32, feed_forward_size=32,
        num_attention_heads=2, max_position_embeddings=64, axial_pos_shape=[8, 8], axial_pos_embds_dim=[16, 16],
        is_decoder=False, local_attn_chunk_length=8, pad_token_id=0,
    )  # fmt: skip
    return ReformerModel(config), made


def nystromformer():
    """Takes one length only, which its configuration names."""
    made = of_bert()
    config = NystromformerConfig(
        vocab_size=len(made), max_position_embeddings=64, segment_means_seq_len=64, num_landmarks=8, **NARROW
    )
    return NystromformerModel(config), made


def gpt2():
    """A decoder, without a padding token."""
    made = tokenizer(["<unk>", "<eos>"], "$A", "$A $B", eos_token="<eos>")
    return GPT2Model(GPT2Config(vocab_size=len(made), n_embd=32, n_layer=1, n_head=2, n_positions=64)), made


def save(make, folder: Path) -> Path:
    torch.manual_seed(0)
    model, made = make()
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
