"""What a notebook asks of a callback: its records as a table, and its figures, drawn once or live."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from bert_toolkit.callbacks.live_figure import LiveFigure
from bert_toolkit.callbacks.monitoring_output import MonitoringOutput
from bert_toolkit.callbacks.safe_outputs import SafeOutputs
from bert_toolkit.errors import InputError
from bert_toolkit.monitoring.parameter_roles import ParameterInfo
from bert_toolkit.monitoring.record_table import record_table

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class RecordViews:
    """Views of `records`, for monitoring callbacks."""

    title: ClassVar[str]
    records: list[Any]
    parameters: dict[str, ParameterInfo]
    draw: "Callable[[bool], dict[str, Callable[[], Figure]]]"
    _live: dict[str, LiveFigure]
    _output: MonitoringOutput | None
    _safe: SafeOutputs

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return the records as a table; see `record_table`."""
        return record_table(self.records, self.parameters)

    def figure(self, name: str) -> "Figure":
        """Draw a figure of the records so far.

        Args:
            name: As the figure's file is called, e.g. `update_ratios` or `update_ratios_over_time`.

        Returns:
            The figure, which a notebook shows after `%matplotlib inline`.

        Raises:
            InputError: There is no figure of this name, or nothing was recorded yet.
        """
        if not self.records:
            raise InputError(f"{self.title} has recorded nothing yet: train first, then ask for a figure")
        return self._named(name)()

    def live(self, *names: str) -> None:
        """Show figures below the notebook's cell that trains, and bring them up to date as samples come.

        To be called before training. Each figure is one picture, which newer ones replace. It is drawn of the first
        sample, at the end, and in between as long as drawing takes at most a tenth of the run's time.

        Args:
            names: As for `figure`; none to show nothing any more.

        Raises:
            InputError: There is no figure of such a name, or this is no notebook.
        """
        for name in names:
            self._named(name)
        self._live = {name: LiveFigure() for name in names}

    def _named(self, name: str) -> "Callable[[], Figure]":
        figures = self.draw(True)
        if name not in figures:
            raise InputError(f"{self.title} draws {', '.join(figures) or 'no figures'}, got {name!r}")
        return figures[name]

    def finding_markers(self) -> list[tuple[int, str]]:
        """Return (step, parameter) of the faults that training health, if it takes part, has reported in this run."""
        return [] if self._output is None else self._output.finding_markers()

    def _draw(self, step: int, at_end: bool = False) -> None:
        output = self._output
        if output is None or not (output.figures and output.is_main):
            return
        figures = self._safe.attempt("figures", lambda: self.draw(at_end or output.has_time_to_draw))
        output.write_figures(step, figures or {}, png=at_end)

    def _show_live(self, at_end: bool = False) -> None:
        if self._live and self._output is not None and self._output.is_main:
            self._safe.attempt("live figures", lambda: self._show_each(at_end))

    def _show_each(self, at_end: bool) -> None:
        for name, live in self._live.items():
            live.show(self._named(name), at_end)
