"""What callbacks share whose records hold numbers of every parameter: scalars by block, and figures of the layers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from bert_toolkit.callbacks.monitoring_callback import MonitoringCallback
from bert_toolkit.monitoring.figures import drawn_names, heat_map_figure
from bert_toolkit.monitoring.record_file import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LayerCallback(MonitoringCallback[Record]):
    """The base of callbacks that measure every parameter; a subclass fills in `measure` and what is shown of it.

    Attributes:
        scalars_of: Makes the scalars of a record, from parameters and `per_parameter_scalars`.
        figure_of: Draws a record, from parameters and the names to draw.
        figure_name: Names the figure of the newest record; that of all records is `<figure_name>_over_time`.
        statistic: Field of the records that is drawn over time.
        meaning: What it is, for the title of that figure.
    """

    scalars_of: ClassVar[Callable[..., dict[str, float]]]
    figure_of: "ClassVar[Callable[..., Figure]]"
    figure_name: ClassVar[str]
    statistic: ClassVar[str]
    meaning: ClassVar[str]

    def scalars(self, record: Record) -> dict[str, float]:
        """Return the scalars of a record, see `scalars_of`.

        Args:
            record: The newest record.
        """
        return self.scalars_of(record, self.parameters, self.per_parameter_scalars)

    def draw(self, at_end: bool) -> "dict[str, Callable[[], Figure]]":
        """Return the figures that are due.

        Args:
            at_end: Draw the whole run too.

        Returns:
            Name -> function that draws it.
        """
        parameters, records = self.parameters, self.records
        names = drawn_names(parameters, self.include_biases, self.skip_probability, self.seed)
        figures = {self.figure_name: lambda: self.figure_of(records[-1], parameters, names)}
        if at_end:
            markers = self.finding_markers()
            figures[f"{self.figure_name}_over_time"] = lambda: heat_map_figure(
                records, self.statistic, parameters, self.meaning, names, markers
            )
        return figures
