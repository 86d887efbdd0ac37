"""Trainer callback: the page of a run, written when training ends."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.errors import one_line
from bert_toolkit.run_page import write_run_page
from bert_toolkit.run_page.page import check_plotly
from bert_toolkit.run_page.run_record import write_run_record

logger = logging.getLogger(__name__)


class ReportCallback(TrainerCallback):
    """A callback that writes `output_dir/report.html`, one page that shows what the run has left.

    Writes at `on_train_end`, on the main process; takes about a second and logs nothing. Add it after the callbacks
    whose files it is to show; `bert_toolkit.watch(trainer, report=True)` does. A page that cannot be written is told
    in one warning. `bert-toolkit report RUN` writes the same page later, or while the run goes on.

    Raises:
        InputError: The package plotly is not installed.

    Examples:
        >>> trainer = make_trainer(callbacks=[bert_toolkit.TrainingHealthCallback(), bert_toolkit.ReportCallback()])
        >>> _ = trainer.train()
        Training health: no fault found in ...
        Report: ...report.html
    """

    def __init__(self) -> None:
        check_plotly()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the page."""
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir or "."))
        try:
            write_run_record(folder, args, state.log_history)
        except Exception as error:  # the page shows what there is
            logger.warning("Report: settings and log are not recorded. %s", _reason(error))
        if (page := page_unless_it_fails(folder)) is not None:
            print(f"Report: {page}")


def page_unless_it_fails(output_dir: Path) -> Path | None:
    """Write the page of a run.

    Args:
        output_dir: Output directory of the run.

    Returns:
        The file; None where it could not be written, which one warning tells.
    """
    try:
        return write_run_page(output_dir)
    except Exception as error:
        logger.warning("Report: none was written. %s", _reason(error))
        logger.debug("Report: where it failed", exc_info=error)
        return None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error))}"
