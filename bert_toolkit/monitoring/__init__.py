"""What Trainer callbacks and plain PyTorch loops share: statistics of gradients and updates. Knows torch only."""

from bert_toolkit.monitoring.gradient_flow import GradientFlowMonitor, GradientFlowRecord
from bert_toolkit.monitoring.parameter_roles import ParameterInfo, describe_parameters, positions_by_block
from bert_toolkit.monitoring.step_reading import StepReading
from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor, UpdateRatioRecord

__all__ = [
    "GradientFlowMonitor",
    "GradientFlowRecord",
    "ParameterInfo",
    "StepReading",
    "UpdateRatioMonitor",
    "UpdateRatioRecord",
    "describe_parameters",
    "positions_by_block",
]
