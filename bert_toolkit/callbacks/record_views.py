"""What a notebook asks of a callback: its records as a table, and its figures."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

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

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return the records as a table; see `record_table`."""
        return record_table(self.records, self.parameters)

    def figure(self, name: str) -> "Figure":
        """Draw a figure of the records so far.

        Args:
            name: as the figure's file is called, e.g. `update_ratios` or `update_ratios_over_time`.

        Returns:
            The figure, which a notebook shows after `%matplotlib inline`.

        Raises:
            InputError: There is no figure of this name, or nothing was recorded yet.
        """
        if not self.records:
            raise InputError(f"{self.title} has recorded nothing yet: train first, then ask for a figure")
        figures = self.draw(True)
        if name not in figures:
            raise InputError(f"{self.title} draws {', '.join(figures) or 'no figures'}, got {name!r}")
        return figures[name]()
