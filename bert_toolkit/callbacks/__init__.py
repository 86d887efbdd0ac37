"""Callbacks for Hugging Face Trainer: add them to `callbacks=[...]` of any trainer."""

from bert_toolkit.callbacks.gradient_flow import GradientFlowCallback
from bert_toolkit.callbacks.training_health import TrainingHealthCallback
from bert_toolkit.callbacks.update_ratios import UpdateRatioCallback

__all__ = ["GradientFlowCallback", "TrainingHealthCallback", "UpdateRatioCallback"]
