"""ToolkitBert: a BERT written from the architecture, registered with the Auto classes of transformers on import."""

import transformers
from transformers import AutoConfig, AutoTokenizer, BertTokenizer

from bert_toolkit.encoder.configuration_toolkit_bert import ToolkitBertConfig
from bert_toolkit.encoder.modeling_toolkit_bert import (
    ToolkitBertForMaskedLM,
    ToolkitBertForNextSentencePrediction,
    ToolkitBertForPreTraining,
    ToolkitBertForPreTrainingOutput,
    ToolkitBertForQuestionAnswering,
    ToolkitBertForSequenceClassification,
    ToolkitBertForTokenClassification,
    ToolkitBertModel,
)

AutoConfig.register(ToolkitBertConfig.model_type, ToolkitBertConfig)
AutoTokenizer.register(ToolkitBertConfig, BertTokenizer)
for model_class in (
    ToolkitBertModel,
    ToolkitBertForPreTraining,
    ToolkitBertForMaskedLM,
    ToolkitBertForNextSentencePrediction,
    ToolkitBertForSequenceClassification,
    ToolkitBertForTokenClassification,
    ToolkitBertForQuestionAnswering,
):
    getattr(transformers, model_class._auto_class).register(ToolkitBertConfig, model_class)

__all__ = [
    "ToolkitBertConfig",
    "ToolkitBertForMaskedLM",
    "ToolkitBertForNextSentencePrediction",
    "ToolkitBertForPreTraining",
    "ToolkitBertForPreTrainingOutput",
    "ToolkitBertForQuestionAnswering",
    "ToolkitBertForSequenceClassification",
    "ToolkitBertForTokenClassification",
    "ToolkitBertModel",
]
