"""ToolkitBert: a BERT written from the architecture, registered with the Auto classes of transformers on import."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
)

from bert_toolkit.model.configuration_toolkit_bert import ToolkitBertConfig
from bert_toolkit.model.modeling_toolkit_bert import (
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
AutoModel.register(ToolkitBertConfig, ToolkitBertModel)
AutoModelForPreTraining.register(ToolkitBertConfig, ToolkitBertForPreTraining)
AutoModelForMaskedLM.register(ToolkitBertConfig, ToolkitBertForMaskedLM)
AutoModelForNextSentencePrediction.register(ToolkitBertConfig, ToolkitBertForNextSentencePrediction)
AutoModelForSequenceClassification.register(ToolkitBertConfig, ToolkitBertForSequenceClassification)
AutoModelForTokenClassification.register(ToolkitBertConfig, ToolkitBertForTokenClassification)
AutoModelForQuestionAnswering.register(ToolkitBertConfig, ToolkitBertForQuestionAnswering)

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
