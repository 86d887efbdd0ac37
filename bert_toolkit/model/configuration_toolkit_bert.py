"""Configuration of ToolkitBert, and how a transformers `bert` configuration is converted.

This file travels with every saved checkpoint, so it imports nothing but transformers.
"""

from dataclasses import fields
from typing import Any, ClassVar

from transformers import BertConfig, PreTrainedConfig

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")

# Any head can be built on any checkpoint, so a checkpoint names the code of all of them.
AUTO_MAP = {
    "AutoConfig": "configuration_toolkit_bert.ToolkitBertConfig",
    "AutoModel": "modeling_toolkit_bert.ToolkitBertModel",
    "AutoModelForPreTraining": "modeling_toolkit_bert.ToolkitBertForPreTraining",
    "AutoModelForMaskedLM": "modeling_toolkit_bert.ToolkitBertForMaskedLM",
    "AutoModelForNextSentencePrediction": "modeling_toolkit_bert.ToolkitBertForNextSentencePrediction",
    "AutoModelForSequenceClassification": "modeling_toolkit_bert.ToolkitBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_toolkit_bert.ToolkitBertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_toolkit_bert.ToolkitBertForQuestionAnswering",
}

# Settings of transformers' BERT that ask for another architecture: (name, the value that means "off").
UNSUPPORTED: tuple[tuple[str, Any], ...] = (
    ("is_decoder", False),
    ("add_cross_attention", False),
    ("is_encoder_decoder", False),
    ("pruned_heads", {}),
)


class ToolkitBertConfig(PreTrainedConfig):
    """Size and form of a ToolkitBert encoder; the defaults are those of BERT-base (Devlin et al. 2019).

    Names and defaults equal those of `transformers.BertConfig` where the setting exists there. A `bert` checkpoint's
    configuration is converted on `from_pretrained`.

    Examples:
        >>> from bert_toolkit import ToolkitBertConfig
        >>> config = ToolkitBertConfig(hidden_size=128, num_attention_heads=2, layer_norm_placement="pre")
        >>> config.num_hidden_layers, config.intermediate_size
        (12, 3072)
        >>> ToolkitBertConfig(hidden_size=100)
        Traceback (most recent call last):
            ...
        ValueError: hidden_size must be a multiple of num_attention_heads, got 100 and 12.

    Args:
        vocab_size: Rows of the word embedding.
        hidden_size: Width of the encoder; a multiple of `num_attention_heads`.
        num_hidden_layers: Number of Transformer layers.
        num_attention_heads: Attention heads in a layer.
        intermediate_size: Width of the feed-forward layer.
        hidden_act: `gelu` (exact), `gelu_new`, `gelu_pytorch_tanh` or `gelu_fast` (all three the tanh form), `relu`.
        hidden_dropout_prob: Dropout on embeddings and on the output of every sub-layer.
        attention_probs_dropout_prob: Dropout on attention probabilities.
        classifier_dropout: Dropout before a classification head; `hidden_dropout_prob` if None.
        max_position_embeddings: Longest sequence, in tokens.
        type_vocab_size: Number of segments.
        initializer_range: Standard deviation of initial weights.
        layer_norm_eps: Epsilon of layer normalization.
        layer_norm_placement: `post`, LayerNorm(x + f(x)) as in BERT, or `pre`, x + f(LayerNorm(x)) with one more
            LayerNorm after the last layer (Xiong et al. 2020).
        position_embedding_type: `learned` as in BERT, or `sinusoidal` (Vaswani et al. 2017, section 3.5; word
            embeddings are then multiplied by the square root of `hidden_size` as in their section 3.4).
        attention_bias: Whether query, key, value and attention output have biases.
        sparse_prediction: In training, run the masked-LM head on labeled positions only. Same loss and gradients;
            the head costs about 15 % of what it does on every position.
        max_predictions_per_sequence: None, or an upper bound on the labeled positions of a sequence. With a bound
            sparse prediction has static shapes, which `torch.compile(fullgraph=True)` and CUDA graphs need.
        pad_token_id: Id of the padding token; its word embedding gets no gradient from the input side.
        tie_word_embeddings: Whether the masked-LM decoder shares the word embedding's weight.
        problem_type: Of a sequence classifier: `regression`, `single_label_classification`,
            `multi_label_classification`; None infers it from `num_labels` and the first labels.

    Raises:
        ValueError: A setting is out of range or asks for an architecture that ToolkitBert does not have.
    """

    model_type = "toolkit_bert"
    # Trainer gathers every output but these as predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["masked_lm_loss", "next_sentence_loss"]

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    layer_norm_placement: str = "post"
    position_embedding_type: str = "learned"
    attention_bias: bool = True
    sparse_prediction: bool = True
    max_predictions_per_sequence: int | None = None
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the settings, and name the code that travels with the checkpoint."""
        _refuse_unsupported(kwargs)
        kwargs["auto_map"] = dict(AUTO_MAP)
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )
        for name, accepted in (
            ("hidden_act", ACTIVATIONS),
            ("layer_norm_placement", ("post", "pre")),
            ("position_embedding_type", ("learned", "sinusoidal")),
        ):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}.")
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"Sinusoidal positions need an even hidden_size, got {self.hidden_size}.")

    @classmethod
    def from_bert(cls, settings: dict[str, Any]) -> "ToolkitBertConfig":
        """Convert a transformers `bert` configuration.

        Args:
            settings: The content of the `config.json` of a `bert` checkpoint, or `BertConfig.to_dict()`.

        Returns:
            The configuration of the same network; labels and problem type are kept.

        Raises:
            ValueError: The configuration asks for what ToolkitBert does not have, such as a decoder.
        """
        return cls(**_bert_settings(settings, cls))

    def to_bert(self) -> BertConfig:
        """Convert to a transformers `bert` configuration, the way back from `from_bert`.

        Returns:
            The configuration of the same network; labels, problem type and dropout are kept.

        Raises:
            ValueError: BERT has no such form: pre-LN or sinusoidal positions.
        """
        for name, bert_has in (("layer_norm_placement", "post"), ("position_embedding_type", "learned")):
            if getattr(self, name) != bert_has:
                raise ValueError(
                    f"transformers' BERT has no {name}={getattr(self, name)!r}, only {bert_has!r}; a model of this "
                    "form stays a ToolkitBert, which loads anywhere with trust_remote_code=True."
                )
        own = {field.name for field in fields(self)} - {field.name for field in fields(BertConfig)}
        dropped = own | {"auto_map", "architectures", "model_type", "transformers_version"}
        return BertConfig(**{name: value for name, value in self.to_dict().items() if name not in dropped})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a checkpoint's settings; those of a transformers `bert` checkpoint come converted.

        Args:
            pretrained_model_name_or_path: The checkpoint's folder or hub name.
            **kwargs: As in transformers.

        Returns:
            The settings of a ToolkitBertConfig, and what is left of the keyword arguments.

        Raises:
            ValueError: The checkpoint is that of another model.
        """
        settings, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = settings.get("model_type", "bert")  # checkpoints of 2018 and 2019 name none
        if model_type == "bert":
            settings = _bert_settings(settings, cls)
        elif model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a model of type {model_type!r}; {cls.__name__} reads "
                f"'{cls.model_type}' and 'bert'. Load it with transformers.AutoConfig instead."
            )
        return settings, kwargs


def _refuse_unsupported(settings: dict[str, Any]) -> None:
    for name, off in UNSUPPORTED:
        if settings.get(name, off) not in (off, None):
            raise ValueError(f"ToolkitBert is an encoder and does not support {name}={settings[name]!r}.")


def _bert_settings(settings: dict[str, Any], config_class: type[ToolkitBertConfig]) -> dict[str, Any]:
    _refuse_unsupported(settings)
    positions = settings.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ValueError(
            f"ToolkitBert cannot load a bert checkpoint with position_embedding_type={positions!r}; "
            "only 'absolute' positions are supported."
        )
    known = {field.name for field in fields(config_class)} | {"num_labels", "torch_dtype"}
    dropped = {"architectures", "transformers_version", "position_embedding_type", "chunk_size_feed_forward"}
    return {name: value for name, value in settings.items() if name in known - dropped}


ToolkitBertConfig.register_for_auto_class()
