"""What watches a training: callbacks for Hugging Face Trainer, and the same in loops without it."""

from bert_toolkit.callbacks.gradient_flow import GradientFlowCallback
from bert_toolkit.callbacks.loop_watch import watch_loop
from bert_toolkit.callbacks.monitored_run import MonitoredRun
from bert_toolkit.callbacks.monitoring_callback import MonitoringCallback
from bert_toolkit.callbacks.run_report import ReportCallback
from bert_toolkit.callbacks.trainer_watch import WatchingCallbacks, watch
from bert_toolkit.callbacks.training_health import TrainingHealthCallback
from bert_toolkit.callbacks.update_ratios import UpdateRatioCallback

__all__ = [
    "GradientFlowCallback",
    "MonitoredRun",
    "MonitoringCallback",
    "ReportCallback",
    "TrainingHealthCallback",
    "UpdateRatioCallback",
    "WatchingCallbacks",
    "watch",
    "watch_loop",
]
