"""BERT (Devlin et al. 2019) in plain PyTorch: embeddings, layers, encoder, heads and losses, in that order.

The file travels with every saved checkpoint (`trust_remote_code=True` runs it where bert_toolkit is not installed),
so it imports only torch, transformers and the two files beside it: the configuration, and the fast paths, which choose
a kernel where the architecture allows several.

Parameters carry the names of transformers' BERT wherever the part exists there. Letters in shape comments:
B sequences, T tokens, H hidden size, N heads, D = H / N, V vocabulary, P positions that a sparse head computes,
C classes.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_toolkit_bert import ToolkitBertConfig
from .fast_paths_toolkit_bert import Packing, ToolkitBertDropout, attend, attention_mask_of_sdpa, can_pack, is_plain

IGNORED_LABEL = -100

# What transformers' BERT takes beside our own arguments: what means nothing for an encoder or comes from a tokenizer,
ARGUMENTS_WITHOUT_EFFECT = (
    *("use_cache", "cache_position", "output_router_logits", "num_items_in_batch"),
    *("special_tokens_mask", "offset_mapping", "overflow_to_sample_mapping", "length"),
)
# and what asks for something that is not here, unless it is None or False.
ARGUMENTS_OF_OTHERS = (
    *("past_key_values", "encoder_hidden_states", "encoder_attention_mask", "head_mask", "cross_attn_head_mask"),
    *("is_causal", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"),
)


def activation(config: ToolkitBertConfig, x: Tensor) -> Tensor:
    """Apply `config.hidden_act`.

    Args:
        config: Names the function.
        x: Any shape.

    Returns:
        A tensor of the same shape.
    """
    if config.hidden_act == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="none" if config.hidden_act == "gelu" else "tanh")


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings
# ---------------------------------------------------------------------------------------------------------------------


class SinusoidalPositions(nn.Module):
    """The fixed position code of Vaswani et al. 2017, section 3.5: sines in even columns, cosines in odd ones.

    Args:
        max_positions: Number of positions.
        hidden_size: Width of the code, an even number.
    """

    weight: Tensor

    def __init__(self, max_positions: int, hidden_size: int) -> None:
        """Compute the code once; it is no parameter and not saved."""
        super().__init__()
        self.register_buffer("weight", self.code(max_positions, hidden_size), persistent=False)

    @staticmethod
    def code(max_positions: int, hidden_size: int) -> Tensor:
        """Compute the code.

        Args:
            max_positions: Number of positions.
            hidden_size: Width of the code, an even number.

        Returns:
            The code, (max_positions, hidden_size).
        """
        steps = torch.arange(0, hidden_size, 2, dtype=torch.float32)  # (H / 2)
        frequencies = torch.exp(steps * (-math.log(10000.0) / hidden_size))
        angles = torch.arange(max_positions)[:, None] * frequencies
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # (positions, H)

    def forward(self, position_ids: Tensor) -> Tensor:
        """Look up the code of positions.

        Args:
            position_ids: Positions from 0, (…).

        Returns:
            Their code, (…, H).
        """
        return F.embedding(position_ids, self.weight)


class ToolkitBertEmbeddings(nn.Module):
    """Word, position and segment embeddings, added, normalized, dropped out.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make the three tables; sinusoidal positions have no parameters."""
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        if config.position_embedding_type == "learned":
            self.position_embeddings: nn.Embedding | SinusoidalPositions = nn.Embedding(
                config.max_position_embeddings, size
            )
            self.word_scale = 1.0
        else:
            self.position_embeddings = SinusoidalPositions(config.max_position_embeddings, size)
            self.word_scale = math.sqrt(size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = ToolkitBertDropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """Embed tokens.

        Args:
            input_ids: Token ids, (B, T); None with `inputs_embeds`.
            token_type_ids: Segment of each token, (B, T); all 0 if None.
            position_ids: Position of each token, (B, T) or (1, T); 0 … T - 1 if None.
            inputs_embeds: Word embeddings instead of `input_ids`, (B, T, H).

        Returns:
            Hidden states, (B, T, H).

        Raises:
            ValueError: A sequence is longer than the positions that there are.
        """
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, H)
        length, codes, segments = words.shape[1], self.position_embeddings, self.token_type_embeddings
        longest = getattr(codes, "num_embeddings", self.config.max_position_embeddings)
        if position_ids is None and not torch.jit.is_tracing() and length > longest:
            raise ValueError(
                f"A sequence of {length} tokens does not fit max_position_embeddings={longest}; truncate it."
            )
        if position_ids is None and not is_plain(codes):
            position_ids = torch.arange(length, device=words.device)[None]
        if token_type_ids is None and not is_plain(segments):
            token_type_ids = torch.zeros(words.shape[:2], dtype=torch.long, device=words.device)
        # Rows in order are a slice: no index to look up, and no scatter in the backward pass.
        positions = codes.weight[:length] if position_ids is None else codes(position_ids)
        types = segments.weight[0] if token_type_ids is None else segments(token_type_ids)
        if self.word_scale != 1.0:
            words = words * self.word_scale
        return self.dropout(self.LayerNorm(words + types + positions.to(words.dtype)))


# ---------------------------------------------------------------------------------------------------------------------
# One layer
# ---------------------------------------------------------------------------------------------------------------------


class ToolkitBertSelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of every token to every token that is not padding.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make the three projections, without biases if `config.attention_bias` is False."""
        super().__init__()
        self.config = config
        size, bias = config.hidden_size, config.attention_bias
        self.head_size = size // config.num_attention_heads
        self.query = nn.Linear(size, size, bias=bias)
        self.key = nn.Linear(size, size, bias=bias)
        self.value = nn.Linear(size, size, bias=bias)
        self.dropout = ToolkitBertDropout(config.attention_probs_dropout_prob)

    def forward(
        self, x: Tensor, mask: Tensor | Packing | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Let every token attend to those that the mask allows.

        Args:
            x: Hidden states, (B, T, H); packed (real tokens, H).
            mask: As `attend` takes it.
            output_attentions: Also return the probabilities, which only the explicit formula has.

        Returns:
            Context, shaped as x, and probabilities (B, N, T, T) or None.
        """
        heads = (*x.shape[:-1], -1, self.head_size)
        query, key, value = (f(x).view(heads) for f in (self.query, self.key, self.value))  # (B, T, N, D) each
        explicit = output_attentions or self.config._attn_implementation == "eager"
        context, probabilities = attend(query, key, value, mask, self.dropout, explicit)
        return context.flatten(-2), probabilities if output_attentions else None


class ToolkitBertSublayerOutput(nn.Module):
    """The end of a sub-layer: projection, dropout, residual, and in the post-LN form the LayerNorm.

    In the pre-LN form the owner applies this LayerNorm to the sub-layer's input instead.

    Args:
        config: Size and form of the model.
        input_size: Width of what the sub-layer has computed.
        bias: Whether the projection has a bias.
    """

    def __init__(self, config: ToolkitBertConfig, input_size: int, bias: bool = True) -> None:
        """Make the projection from `input_size` and the LayerNorm."""
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size, bias=bias)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = ToolkitBertDropout(config.hidden_dropout_prob)
        self.post_norm = config.layer_norm_placement == "post"

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Project, and add the residual.

        Args:
            x: What the sub-layer has computed, (…, input size).
            residual: Hidden states before the sub-layer, (…, H).

        Returns:
            Hidden states, (…, H).
        """
        x = residual + self.dropout(self.dense(x))
        return self.LayerNorm(x) if self.post_norm else x


class ToolkitBertAttention(nn.Module):
    """The attention sub-layer; as in transformers `self` has query, key and value, `output` the projection.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make both parts."""
        super().__init__()
        self.self = ToolkitBertSelfAttention(config)
        self.output = ToolkitBertSublayerOutput(config, config.hidden_size, bias=config.attention_bias)

    def forward(
        self, x: Tensor, mask: Tensor | Packing | None, output_attentions: bool, positions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, and add the residual.

        Args:
            x: Hidden states, (B, T, H); packed (real tokens, H).
            mask: As `attend` takes it.
            output_attentions: Also return attention probabilities.
            positions: Row numbers in the flattened x, (P): the projection runs for these tokens only.

        Returns:
            Hidden states, shaped as x or (P, H), and attention probabilities (B, N, T, T) or None.
        """
        attended = x if self.output.post_norm else self.output.LayerNorm(x)
        context, probabilities = self.self(attended, mask, output_attentions)
        if positions is not None:
            context, x = (h.flatten(0, -2).index_select(0, positions) for h in (context, x))
        return self.output(context, residual=x), probabilities


class ToolkitBertIntermediate(nn.Module):
    """The wide layer of the feed-forward network.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make the projection."""
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Widen hidden states.

        Args:
            x: Hidden states, (…, H).

        Returns:
            Their activations, (…, intermediate size).
        """
        return activation(self.config, self.dense(x))


class ToolkitBertLayer(GradientCheckpointingLayer):
    """Self-attention, then feed-forward, each with its residual and LayerNorm.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make both sub-layers."""
        super().__init__()
        self.attention = ToolkitBertAttention(config)
        self.intermediate = ToolkitBertIntermediate(config)
        self.output = ToolkitBertSublayerOutput(config, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | Packing | None,
        output_attentions: bool = False,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer.

        Args:
            x: Hidden states, (B, T, H); packed (real tokens, H).
            mask: As `attend` takes it.
            output_attentions: Also return attention probabilities.
            positions: Row numbers in the flattened x, (P): everything after attention runs for these tokens only.

        Returns:
            Hidden states, shaped as x or (P, H), and attention probabilities (B, N, T, T) or None.
        """
        x, probabilities = self.attention(x, mask, output_attentions, positions)
        normalized = x if self.output.post_norm else self.output.LayerNorm(x)
        return self.output(self.intermediate(normalized), residual=x), probabilities


# ---------------------------------------------------------------------------------------------------------------------
# The encoder
# ---------------------------------------------------------------------------------------------------------------------


class ToolkitBertEncoder(nn.Module):
    """The layers, one after the other; in the pre-LN form one more LayerNorm at the end.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make `config.num_hidden_layers` layers."""
        super().__init__()
        self.layer = nn.ModuleList(ToolkitBertLayer(config) for _ in range(config.num_hidden_layers))
        self.pre_norm = config.layer_norm_placement == "pre"
        if self.pre_norm:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | Packing | None,
        output_attentions: bool,
        output_hidden_states: bool,
        positions: Tensor | None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run the layers, of which the last computes `positions` only; see `ToolkitBertLayer.forward`.

        Args:
            x: Hidden states, (B, T, H); packed (real tokens, H).
            mask: As `attend` takes it.
            output_attentions: Also return attention probabilities.
            output_hidden_states: Also return the states before each layer and the final ones.
            positions: Row numbers in the flattened x, (P), for the last layer; None for all tokens.

        Returns:
            Final hidden states; the states before each layer and the final ones; probabilities. Lists are empty where
            they were not asked for.
        """
        hidden_states, attentions = [], []
        for layer in self.layer:
            if output_hidden_states:
                hidden_states.append(x)
            x, probabilities = layer(x, mask, output_attentions, positions if layer is self.layer[-1] else None)
            if probabilities is not None:
                attentions.append(probabilities)
        if self.pre_norm:
            x = self.LayerNorm(x)
        if output_hidden_states:
            hidden_states.append(x)
        return x, hidden_states, attentions


class ToolkitBertPooler(nn.Module):
    """The first token's state through a tanh layer, as the sentence heads read it.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make the projection."""
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_token: Tensor) -> Tensor:
        """Pool the first tokens.

        Args:
            first_token: Hidden states of the first tokens, (B, H).

        Returns:
            The pooled states, (B, H).
        """
        return self.dense(first_token).tanh()


class ToolkitBertPreTrainedModel(PreTrainedModel):
    """What all heads share: initialization, loading from and saving to checkpoints, Trainer's loss contract.

    Args:
        config: Size and form of the model.
        *args: As in transformers.
        **kwargs: As in transformers.

    Raises:
        ValueError: The configuration is that of another model.
    """

    config: ToolkitBertConfig
    config_class = ToolkitBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ToolkitBertEmbeddings", "ToolkitBertLayer"]
    # Buffers of old checkpoints, and the heads of other tasks than the one being loaded.
    _keys_to_ignore_on_load_unexpected = [
        r"position_ids$",
        r"^cls\.",
        r"^(bert\.)?pooler\.",
        r"^classifier\.",
        r"^qa_outputs\.",
    ]
    # Every loss is a sum divided by `num_items_in_batch`, Trainer's count of labels in all batches that one optimizer
    # step accumulates, on all processes. Trainer must not divide again.
    accepts_loss_kwargs = True

    def __init__(self, config: ToolkitBertConfig, *args: Any, **kwargs: Any) -> None:
        """Refuse the configuration of another model."""
        if config.model_type != ToolkitBertConfig.model_type:
            raise ValueError(
                f"{type(self).__name__} takes a ToolkitBertConfig, got a {type(config).__name__}; convert a "
                "BertConfig with ToolkitBertConfig.from_bert(config.to_dict())."
            )
        super().__init__(config, *args, **kwargs)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # `attend` reads the configuration at each call; transformers looks for its own way in the source

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # normal(0, initializer_range), zero biases, LayerNorm 1 and 0
        if isinstance(module, SinusoidalPositions):
            init.copy_(module.weight, SinusoidalPositions.code(module.weight.shape[0], module.weight.shape[1]))
        elif isinstance(module, ToolkitBertLMPredictionHead):
            init.zeros_(module.bias)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, always under native parameter names.

        transformers would write the names of the checkpoint that was loaded (`gamma` for `weight`), and what it wrote
        Trainer could not resume from.

        Args:
            save_directory: The checkpoint's folder.
            *args: As in transformers.
            **kwargs: As in transformers.
        """
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)

    def to_transformers(self) -> PreTrainedModel:
        """Copy the weights into transformers' own BERT, for exporters and serving engines that know BERT.

        Biases that `attention_bias=False` left out become zeros.

        Returns:
            The model of the same head (`BertForMaskedLM` of a `ToolkitBertForMaskedLM`), on the same device, in the
            same precision and mode. It shares no memory with this one.

        Raises:
            ValueError: BERT has no such form (pre-LN or sinusoidal positions), or there are other parameters than
                those of the head, such as an adapter's.

        Examples:
            >>> from bert_toolkit import ToolkitBertConfig, ToolkitBertForMaskedLM
            >>> config = ToolkitBertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
            >>> type(ToolkitBertForMaskedLM(config).to_transformers()).__name__
            'BertForMaskedLM'
        """
        config = self.config.to_bert()
        if hasattr(self, "qa_outputs"):
            config.num_labels = 2  # the start and the end; ours has no other number of outputs
        ours = next(base.__name__ for base in type(self).__mro__ if base.__module__ == __name__)
        bert_class = getattr(transformers, ours.removeprefix("Toolkit"))
        state = {name: value.detach().clone() for name, value in self.state_dict().items()}
        if not self.config.attention_bias:
            projections = tuple(
                f"attention.{part}.weight" for part in ("self.query", "self.key", "self.value", "output.dense")
            )
            for name in [name for name in state if name.endswith(projections)]:
                state[name.removesuffix("weight") + "bias"] = state[name].new_zeros(self.config.hidden_size)
        pooling = {"add_pooling_layer": False} if getattr(self, "pooler", True) is None else {}
        bert = bert_class.from_pretrained(None, config=config, state_dict=state, dtype=self.dtype, **pooling)
        if others := bert.state_dict().keys() ^ state.keys():
            raise ValueError(
                f"to_transformers copies the parameters of a {ours}, but {min(others)!r} is not in both models; merge "
                "or remove adapters and parametrizations first."
            )
        return bert.to(self.device).train(self.training)


def refuse_what_changes_the_answer(arguments: dict[str, Any]) -> None:
    """Let pass what transformers' BERT takes and ignores, unless the caller could expect something of it.

    Args:
        arguments: Keyword arguments of `ToolkitBertModel.forward` that it has no name for.

    Raises:
        TypeError: A name that is not an argument of BERT either.
        ValueError: A value that asks for a decoder, or for attention that is not computed.
    """
    for name, value in arguments.items():
        if name in ARGUMENTS_OF_OTHERS and value is not None and value is not False:
            raise ValueError(f"ToolkitBert is an encoder; call it without {name}.")
        if name not in ARGUMENTS_OF_OTHERS and name not in ARGUMENTS_WITHOUT_EFFECT:
            raise TypeError(f"ToolkitBertModel.forward() got an unexpected keyword argument {name!r}.")


class ToolkitBertModel(ToolkitBertPreTrainedModel):
    """The encoder without a head.

    Args:
        config: Size and form.
        add_pooling_layer: Whether to build the pooler, which only sentence heads read.

    Examples:
        >>> import torch
        >>> from bert_toolkit import ToolkitBertConfig, ToolkitBertModel
        >>> config = ToolkitBertConfig(
        ...     vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        ... )
        >>> model = ToolkitBertModel(config).eval()
        >>> token_ids = torch.tensor([[2, 17, 25, 3], [2, 41, 3, 0]])
        >>> outputs = model(token_ids, attention_mask=token_ids.ne(config.pad_token_id))
        >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
        (torch.Size([2, 4, 32]), torch.Size([2, 32]))
    """

    def __init__(self, config: ToolkitBertConfig, add_pooling_layer: bool = True) -> None:
        """Build the encoder with random weights."""
        super().__init__(config)
        self.embeddings = ToolkitBertEmbeddings(config)
        self.encoder = ToolkitBertEncoder(config)
        self.pooler = ToolkitBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embedding."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the word embedding.

        Args:
            value: An embedding, (V, H).
        """
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_positions: Tensor | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Encode tokens.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 for real tokens and 0 for padding, (B, T); or integers or booleans that say who may
                attend to whom, (B, T, T) or (B, 1, T, T); or floats that are added to the scores, (B, 1, T, T) or
                (B, N, T, T). None where nothing is padded.
            token_type_ids: Segment of each token, (B, T); all 0 if None.
            position_ids: Position of each token, (B, T) or (1, T); 0 … T - 1 if None.
            inputs_embeds: Word embeddings instead of `input_ids`, (B, T, H).
            output_attentions: Return attention probabilities; the explicit formula replaces the fused one.
            output_hidden_states: Return the embeddings and every layer's output.
            output_positions: Flat indices into B x T, (P). The last layer then computes these tokens only, and
                `last_hidden_state` is (P, H). If there is a pooler, the first B of them must be the first tokens of
                the B sequences.
            **others: What transformers' BERT takes, too, and what means nothing for an encoder, such as `use_cache`.

        Returns:
            `last_hidden_state` (B, T, H), `pooler_output` (B, H), `hidden_states`, `attentions`.

        Raises:
            TypeError: An unknown argument.
            ValueError: Neither or both of `input_ids` and `inputs_embeds`, a sequence that is too long, a mask of
                another shape, or an argument for a decoder.
        """
        refuse_what_changes_the_answer(others)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either input_ids or inputs_embeds, not both and not neither.")
        attentive = bool(self.config.output_attentions if output_attentions is None else output_attentions)
        verbose = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (B, T, H)
        batch_size, positions = x.shape[0], output_positions
        mask: Tensor | Packing | None
        if attention_mask is not None and not attentive and not verbose and can_pack(attention_mask, self):
            mask = Packing.of(attention_mask)
        else:
            mask = attention_mask_of_sdpa(attention_mask)
        if isinstance(mask, Packing):
            x, positions = mask.pack(x), None if positions is None else mask.rows[positions]
        x, hidden_states, attentions = self.encoder(x, mask, attentive, verbose, positions)
        if isinstance(mask, Packing) and positions is None:
            x = mask.unpack(x)
        pooled = None
        if self.pooler is not None:
            pooled = self.pooler(x[:, 0] if output_positions is None else x[:batch_size])
        return BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=tuple(hidden_states) if verbose else None,
            attentions=tuple(attentions) if attentive else None,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def mean_of(total: Tensor, count: Tensor | int) -> Tensor:
    """Divide a summed loss by its number of items.

    Args:
        total: The sum, a scalar.
        count: Number of items.

    Returns:
        A scalar; 0, with its graph, where there are no items.
    """
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def mean_cross_entropy(logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Return the mean cross-entropy in nats over the items that are not labeled -100.

    Args:
        logits: (…, C), in half precision summed in single.
        labels: Class ids, one per row of the logits, in any shape.
        num_items: What to divide the sum by; None for the number of labeled items here.

    Returns:
        A scalar.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    labels = labels.flatten().long()
    total = F.cross_entropy(logits.flatten(0, -2), labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return mean_of(total, labels.ne(IGNORED_LABEL).sum() if num_items is None else num_items)


def labeled_positions(labels: Tensor, max_per_sequence: int | None) -> Tensor:
    """Return the flat indices of the labeled tokens, in reading order.

    With `max_per_sequence` their number is B x max_per_sequence whatever the labels: unlabeled tokens, which the loss
    ignores, fill the rest.

    Args:
        labels: Word ids, -100 where there is nothing to predict, (B, T).
        max_per_sequence: `config.max_predictions_per_sequence`.

    Returns:
        Indices into B x T, (P).
    """
    is_labeled = labels.flatten().ne(IGNORED_LABEL)
    if max_per_sequence is None:
        return is_labeled.nonzero().squeeze(1)
    size = min(labels.shape[0] * max_per_sequence, labels.numel())
    return is_labeled.to(torch.uint8).argsort(descending=True, stable=True)[:size]


# ---------------------------------------------------------------------------------------------------------------------
# Pre-training heads
# ---------------------------------------------------------------------------------------------------------------------


class ToolkitBertPredictionHeadTransform(nn.Module):
    """One more dense layer before the words are scored.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make the projection and its LayerNorm."""
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Transform hidden states.

        Args:
            x: Hidden states, (…, H).

        Returns:
            Transformed hidden states, (…, H).
        """
        return self.LayerNorm(activation(self.config, self.dense(x)))


class ToolkitBertLMPredictionHead(nn.Module):
    """From hidden states to a score for every word; the decoder's weight is the word embedding.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make the decoder; the model ties its weight and bias."""
        super().__init__()
        self.transform = ToolkitBertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # the decoder's bias by its name in checkpoints

    def forward(self, x: Tensor) -> Tensor:
        """Score every word.

        Args:
            x: Hidden states, (…, H).

        Returns:
            Logits, (…, V).
        """
        return self.decoder(self.transform(x))


class ToolkitBertOnlyMLMHead(nn.Module):
    """The masked-LM head under its name in checkpoints, `cls.predictions`.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make the head."""
        super().__init__()
        self.predictions = ToolkitBertLMPredictionHead(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Score every word.

        Args:
            hidden: Hidden states, (…, H).

        Returns:
            Logits, (…, V).
        """
        return self.predictions(hidden)


class ToolkitBertOnlyNSPHead(nn.Module):
    """The next-sentence head under its name in checkpoints, `cls.seq_relationship`.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make the head."""
        super().__init__()
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """Score the order of the segments.

        Args:
            pooled: Pooled first tokens, (B, H).

        Returns:
            Logits, (B, 2); 0 = B follows A, 1 = random.
        """
        return self.seq_relationship(pooled)


class ToolkitBertPreTrainingHeads(nn.Module):
    """Both pre-training heads under their names in checkpoints.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Make both heads."""
        super().__init__()
        self.predictions = ToolkitBertLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Score every word, and the order of the segments.

        Args:
            hidden: Hidden states, (…, H).
            pooled: Pooled first tokens, (B, H).

        Returns:
            Logits of words (…, V) and of the order (B, 2).
        """
        return self.predictions(hidden), self.seq_relationship(pooled)


class ToolkitBertMaskedLMBase(ToolkitBertPreTrainedModel):
    """What the two heads with a masked-LM decoder share: the decoder, its tying, the positions that it computes."""

    bert: ToolkitBertModel
    cls: ToolkitBertPreTrainingHeads | ToolkitBertOnlyMLMHead
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return which parameters are one under two names: the output bias too, even where embeddings are not tied.

        Args:
            all_submodels: As in transformers.

        Returns:
            Name of the tied parameter -> name of the one that it is tied to.
        """
        bias = "cls.predictions.decoder.bias"
        return {bias: self._tied_weights_keys[bias], **super().get_expanded_tied_weights_keys(all_submodels)}

    def get_output_embeddings(self) -> nn.Linear:
        """Return the decoder."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the decoder and its bias.

        Args:
            new_embeddings: A linear layer with a bias.
        """
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    def sparse_positions(self, labels: Tensor | None, output_hidden_states: bool | None) -> Tensor | None:
        """Choose the positions to compute: the labeled ones in training, where only the loss is wanted.

        Args:
            labels: Word ids, -100 where there is nothing to predict, (B, T); None without labels.
            output_hidden_states: Whether hidden states are wanted; as the configuration says if None.

        Returns:
            Indices into B x T, (P); None for all positions.
        """
        verbose = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if labels is None or not self.training or not self.config.sparse_prediction or verbose:
            return None
        return labeled_positions(labels, self.config.max_predictions_per_sequence)


@dataclass
class ToolkitBertForPreTrainingOutput(ModelOutput):
    """Output of `ToolkitBertForPreTraining`; fields and their order as transformers' BertForPreTraining has them.

    Attributes:
        loss: Sum of the two terms that have labels, in nats.
        prediction_logits: (B, T, V); in training with sparse prediction (labeled positions, V), in reading order.
        seq_relationship_logits: (B, 2); 0 = B follows A, 1 = random.
        hidden_states: Embeddings and every layer's output, if asked for.
        attentions: Attention probabilities, if asked for.
        masked_lm_loss: First term of `loss`.
        next_sentence_loss: Second term of `loss`.
    """

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    masked_lm_loss: Tensor | None = None
    next_sentence_loss: Tensor | None = None


class ToolkitBertForPreTraining(ToolkitBertMaskedLMBase):
    """Masked-LM and next-sentence heads (Devlin et al. 2019, section 3.1).

    Args:
        config: Size and form of the model.

    Examples:
        A step of pre-training on two pairs; real ones come from `NextSentencePairs` and `DataCollatorForPreTraining`.

        >>> import torch
        >>> from bert_toolkit import ToolkitBertConfig, ToolkitBertForPreTraining
        >>> config = ToolkitBertConfig(
        ...     vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        ... )
        >>> model = ToolkitBertForPreTraining(config)
        >>> outputs = model(
        ...     torch.tensor([[2, 17, 4, 3, 8, 3], [2, 41, 9, 3, 4, 3]]),
        ...     token_type_ids=torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]),
        ...     labels=torch.tensor([[-100, -100, 25, -100, -100, -100], [-100, -100, -100, -100, 6, -100]]),
        ...     next_sentence_label=torch.tensor([0, 1]),
        ... )
        >>> outputs.loss.backward()
        >>> outputs.prediction_logits.shape  # only the two labeled positions are scored in training
        torch.Size([2, 100])
        >>> bool(outputs.loss == outputs.masked_lm_loss + outputs.next_sentence_loss)
        True
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Build the model with random weights."""
        super().__init__(config)
        self.bert = ToolkitBertModel(config)
        self.cls = ToolkitBertPreTrainingHeads(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_sequences_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> ToolkitBertForPreTrainingOutput | tuple[Tensor, ...]:
        """Predict masked words and whether segment B follows segment A.

        In training with labels the masked-LM head, and everything in the last layer after attention, runs on the
        labeled positions only (`config.sparse_prediction`). In evaluation it runs on all, so that Trainer's
        predictions line up with its labels.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 for real tokens and 0 for padding, (B, T); other forms as in `ToolkitBertModel.forward`.
            token_type_ids: Segment of each token, (B, T).
            position_ids: Position of each token, (B, T).
            inputs_embeds: Word embeddings instead of `input_ids`, (B, T, H).
            labels: Ids of the words to predict, -100 elsewhere, (B, T).
            next_sentence_label: 0 where segment B follows, 1 where it is random, (B).
            num_items_in_batch: Masked tokens in all batches of the optimizer step; Trainer passes it.
            num_sequences_in_batch: Sequences in all batches of the optimizer step. Trainer does not count them;
                `PreTrainingTrainer` does. Without it the next-sentence mean of a batch weighs as much as the batch's
                fraction of the masked tokens: the weights sum to one, but are not exactly equal.
            **options: What to return, as in `ToolkitBertModel.forward`.

        Returns:
            See `ToolkitBertForPreTrainingOutput`. The loss is the mean over masked tokens plus the mean over
            sequences; a term without labels is left out.
        """
        positions = computed = self.sparse_positions(labels, options.get("output_hidden_states"))
        if labels is not None and positions is not None:
            first_tokens = torch.arange(0, labels.numel(), labels.shape[1], device=labels.device)
            computed = torch.cat((first_tokens, positions))
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(*inputs, output_positions=computed, return_dict=True, **options)
        hidden, pooled = outputs.last_hidden_state, outputs.pooler_output
        words, order = self.cls(hidden if positions is None else hidden[len(pooled) :], pooled)

        masked_lm_loss = next_sentence_loss = None
        if labels is not None:
            targets = labels if positions is None else labels.flatten()[positions]
            masked_lm_loss = mean_cross_entropy(words, targets, num_items_in_batch)
        if next_sentence_label is not None:
            next_sentence_loss = mean_cross_entropy(order, next_sentence_label, num_sequences_in_batch)
            if num_sequences_in_batch is None and num_items_in_batch is not None and labels is not None:
                next_sentence_loss = next_sentence_loss * mean_of(labels.ne(IGNORED_LABEL).sum(), num_items_in_batch)
        if masked_lm_loss is None or next_sentence_loss is None:
            loss = next_sentence_loss if masked_lm_loss is None else masked_lm_loss
        else:
            loss = masked_lm_loss + next_sentence_loss
        return ToolkitBertForPreTrainingOutput(
            loss, words, order, outputs.hidden_states, outputs.attentions, masked_lm_loss, next_sentence_loss
        )


class ToolkitBertForMaskedLM(ToolkitBertMaskedLMBase):
    """Masked-LM head alone.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Build the model with random weights, without a pooler."""
        super().__init__(config)
        self.bert = ToolkitBertModel(config, add_pooling_layer=False)
        self.cls = ToolkitBertOnlyMLMHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Predict masked words, sparse as in `ToolkitBertForPreTraining`.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 for real tokens and 0 for padding, (B, T); other forms as in `ToolkitBertModel.forward`.
            token_type_ids: Segment of each token, (B, T).
            position_ids: Position of each token, (B, T).
            inputs_embeds: Word embeddings instead of `input_ids`, (B, T, H).
            labels: Ids of the words to predict, -100 elsewhere, (B, T).
            num_items_in_batch: Masked tokens in all batches of the optimizer step; Trainer passes it.
            **options: What to return, as in `ToolkitBertModel.forward`.

        Returns:
            `loss` (mean over masked tokens, in nats); `logits` (B, T, V), in training with sparse prediction (labeled
            positions, V) in reading order.
        """
        positions = self.sparse_positions(labels, options.get("output_hidden_states"))
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(*inputs, output_positions=positions, return_dict=True, **options)
        logits = self.cls(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            targets = labels if positions is None else labels.flatten()[positions]
            loss = mean_cross_entropy(logits, targets, num_items_in_batch)
        return MaskedLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class ToolkitBertForNextSentencePrediction(ToolkitBertPreTrainedModel):
    """Next-sentence head alone.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Build the model with random weights."""
        super().__init__(config)
        self.bert = ToolkitBertModel(config)
        self.cls = ToolkitBertOnlyNSPHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> NextSentencePredictorOutput | tuple[Tensor, ...]:
        """Predict whether segment B follows segment A.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 for real tokens and 0 for padding, (B, T); other forms as in `ToolkitBertModel.forward`.
            token_type_ids: Segment of each token, (B, T).
            position_ids: Position of each token, (B, T).
            inputs_embeds: Word embeddings instead of `input_ids`, (B, T, H).
            labels: 0 where segment B follows, 1 where it is random, (B).
            num_items_in_batch: Sequences in all batches of the optimizer step; Trainer passes it.
            **options: What to return, as in `ToolkitBertModel.forward`.

        Returns:
            `loss` (mean over sequences, in nats) and `logits` (B, 2).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(*inputs, return_dict=True, **options)
        logits = self.cls(outputs.pooler_output)
        loss = None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch)
        return NextSentencePredictorOutput(loss, logits, outputs.hidden_states, outputs.attentions)


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning heads
# ---------------------------------------------------------------------------------------------------------------------


def classifier_dropout(config: ToolkitBertConfig) -> ToolkitBertDropout:
    """Make the dropout before a classifier.

    Args:
        config: Has its rate, `classifier_dropout`, or else `hidden_dropout_prob`.

    Returns:
        The module.
    """
    rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    return ToolkitBertDropout(rate)


class ToolkitBertForSequenceClassification(ToolkitBertPreTrainedModel):
    """A linear classifier on the pooled first token: regression, n classes, or several labels at once.

    Args:
        config: Size and form of the model; `num_labels` is the number of outputs.

    Examples:
        >>> import torch
        >>> from bert_toolkit import ToolkitBertConfig, ToolkitBertForSequenceClassification
        >>> config = ToolkitBertConfig(
        ...     vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_labels=3
        ... )
        >>> model = ToolkitBertForSequenceClassification(config)
        >>> outputs = model(torch.tensor([[2, 17, 25, 3], [2, 41, 9, 3]]), labels=torch.tensor([0, 2]))
        >>> outputs.loss.backward()
        >>> outputs.logits.shape, model.config.problem_type
        (torch.Size([2, 3]), 'single_label_classification')
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Build the model with random weights and `config.num_labels` outputs."""
        super().__init__(config)
        self.bert = ToolkitBertModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Classify sequences.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 for real tokens and 0 for padding, (B, T); other forms as in `ToolkitBertModel.forward`.
            token_type_ids: Segment of each token, (B, T).
            position_ids: Position of each token, (B, T).
            inputs_embeds: Word embeddings instead of `input_ids`, (B, T, H).
            labels: Class ids (B) or (B, 1); or numbers (B) or (B, C) for regression; or 0/1 (B, C) for several labels
                at once. If `config.problem_type` is None, the first labels decide and the configuration records it:
                one output means regression, one integer per sequence means classes, other labels several at once.
            num_items_in_batch: Number of labels in all batches of the optimizer step; Trainer passes it.
            **options: What to return, as in `ToolkitBertModel.forward`.

        Returns:
            `logits` (B, C) and `loss`: cross-entropy in nats over sequences, squared error or binary cross-entropy
            over all B x C numbers.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(*inputs, return_dict=True, **options)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else self.loss(logits, labels, num_items_in_batch)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)

    def loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Take the loss of `config.problem_type`, which the first labels decide where it is None.

        Args:
            logits: (B, C).
            labels: As `forward` takes them.
            num_items_in_batch: As `forward` takes it.

        Returns:
            A scalar.

        Raises:
            ValueError: The labels do not fit the problem.
        """
        problem = self.config.problem_type
        if problem is None:
            if logits.shape[1] == 1:
                problem = "regression"
            elif labels.is_floating_point() or labels.numel() != len(logits):
                problem = "multi_label_classification"
            else:
                problem = "single_label_classification"
        wanted = logits[:, 0] if problem == "single_label_classification" else logits
        if labels.numel() != wanted.numel():
            kind = {"regression": "numbers", "single_label_classification": "class ids"}.get(problem, "0 or 1")
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit {problem}, which takes "
                f"{kind} of shape {tuple(wanted.shape)}; pass such labels or set config.problem_type."
            )
        self.config.problem_type = problem
        if problem == "single_label_classification":
            return mean_cross_entropy(logits, labels, num_items_in_batch)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        targets = labels.to(logits.dtype).view(logits.shape)
        total_of = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        total = total_of(logits, targets, reduction="sum")
        return mean_of(total, targets.numel() if num_items_in_batch is None else num_items_in_batch)


class ToolkitBertForTokenClassification(ToolkitBertPreTrainedModel):
    """A linear classifier on every token.

    Args:
        config: Size and form of the model; `num_labels` is the number of classes.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Build the model with random weights and `config.num_labels` outputs, without a pooler."""
        super().__init__(config)
        self.bert = ToolkitBertModel(config, add_pooling_layer=False)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> TokenClassifierOutput | tuple[Tensor, ...]:
        """Classify tokens.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 for real tokens and 0 for padding, (B, T); other forms as in `ToolkitBertModel.forward`.
            token_type_ids: Segment of each token, (B, T).
            position_ids: Position of each token, (B, T).
            inputs_embeds: Word embeddings instead of `input_ids`, (B, T, H).
            labels: Class of each token, -100 where it does not count, (B, T).
            num_items_in_batch: Labeled tokens in all batches of the optimizer step; Trainer passes it.
            **options: What to return, as in `ToolkitBertModel.forward`.

        Returns:
            `loss` (mean over labeled tokens, in nats) and `logits` (B, T, C).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(*inputs, return_dict=True, **options)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class ToolkitBertForQuestionAnswering(ToolkitBertPreTrainedModel):
    """First and last token of the answer, each a choice among all tokens.

    Args:
        config: Size and form of the model.
    """

    def __init__(self, config: ToolkitBertConfig) -> None:
        """Build the model with random weights, without a pooler."""
        super().__init__(config)
        self.bert = ToolkitBertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Tensor, ...]:
        """Find the answer's span.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 for real tokens and 0 for padding, (B, T); other forms as in `ToolkitBertModel.forward`.
            token_type_ids: Segment of each token, (B, T).
            position_ids: Position of each token, (B, T).
            inputs_embeds: Word embeddings instead of `input_ids`, (B, T, H).
            start_positions: Index of the answer's first token, (B); one outside the sequence does not count.
            end_positions: Index of its last token, (B).
            num_items_in_batch: Questions in all batches of the optimizer step. Trainer counts only what is called
                `labels`, so it passes none and averages the batches, which is exact where they are of one size.
            **options: What to return, as in `ToolkitBertModel.forward`.

        Returns:
            `loss` (mean of the start's and the end's cross-entropy, in nats), `start_logits` and `end_logits` (B, T).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(*inputs, return_dict=True, **options)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)  # (B, T) each
        loss = None
        if start_positions is not None and end_positions is not None:
            terms = []
            for logits, targets in ((start_logits, start_positions), (end_logits, end_positions)):
                inside = targets.flatten().clamp(min=0)
                inside = inside.masked_fill(inside >= logits.shape[1], IGNORED_LABEL)
                terms.append(mean_cross_entropy(logits, inside, num_items_in_batch))
            loss = (terms[0] + terms[1]) / 2
        return QuestionAnsweringModelOutput(loss, start_logits, end_logits, outputs.hidden_states, outputs.attentions)


ToolkitBertModel.register_for_auto_class("AutoModel")
ToolkitBertForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ToolkitBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
ToolkitBertForNextSentencePrediction.register_for_auto_class("AutoModelForNextSentencePrediction")
ToolkitBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ToolkitBertForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
ToolkitBertForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
