"""Trainer callbacks, pre-training data, metrics and a from-scratch BERT for Hugging Face Trainer and Accelerate.

Importing the package registers `toolkit_bert` with the Auto classes of transformers; it does nothing else.
"""

from bert_toolkit.callbacks import (
    GradientFlowCallback,
    MonitoringCallback,
    ReportCallback,
    TrainingHealthCallback,
    UpdateRatioCallback,
    watch,
    watch_loop,
)
from bert_toolkit.errors import InputError
from bert_toolkit.health.findings import Finding
from bert_toolkit.metrics import (
    ClassificationMetrics,
    compute_classification_metrics,
    flat_accuracy,
    matthews_correlation,
    matthews_correlation_interval,
)
from bert_toolkit.model import (
    ToolkitBertConfig,
    ToolkitBertForMaskedLM,
    ToolkitBertForNextSentencePrediction,
    ToolkitBertForPreTraining,
    ToolkitBertForPreTrainingOutput,
    ToolkitBertForQuestionAnswering,
    ToolkitBertForSequenceClassification,
    ToolkitBertForTokenClassification,
    ToolkitBertModel,
)
from bert_toolkit.monitoring import (
    GradientFlowMonitor,
    GradientFlowRecord,
    UpdateRatioMonitor,
    UpdateRatioRecord,
)
from bert_toolkit.pretraining import DataCollatorForPreTraining, NextSentencePairs, TokenizedDocuments

__version__ = "0.1.0"

__all__ = [
    "ClassificationMetrics",
    "DataCollatorForPreTraining",
    "Finding",
    "GradientFlowCallback",
    "GradientFlowMonitor",
    "GradientFlowRecord",
    "InputError",
    "MonitoringCallback",
    "NextSentencePairs",
    "ReportCallback",
    "TokenizedDocuments",
    "ToolkitBertConfig",
    "ToolkitBertForMaskedLM",
    "ToolkitBertForNextSentencePrediction",
    "ToolkitBertForPreTraining",
    "ToolkitBertForPreTrainingOutput",
    "ToolkitBertForQuestionAnswering",
    "ToolkitBertForSequenceClassification",
    "ToolkitBertForTokenClassification",
    "ToolkitBertModel",
    "TrainingHealthCallback",
    "UpdateRatioCallback",
    "UpdateRatioMonitor",
    "UpdateRatioRecord",
    "compute_classification_metrics",
    "flat_accuracy",
    "matthews_correlation",
    "matthews_correlation_interval",
    "watch",
    "watch_loop",
]
