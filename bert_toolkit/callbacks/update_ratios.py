"""Trainer callback: how far every step moves every layer."""

from typing import get_args

from bert_toolkit.callbacks.layer_callback import LayerCallback
from bert_toolkit.errors import InputError
from bert_toolkit.monitoring.figures import update_ratios_figure
from bert_toolkit.monitoring.step_reading import StepReading
from bert_toolkit.monitoring.update_ratios import Mode, UpdateRatioRecord, update_ratio_scalars


class UpdateRatioCallback(LayerCallback[UpdateRatioRecord]):
    """A callback that records ||after - before|| / ||before|| of every parameter around the optimizer's real step.

    Copies parameters at `on_pre_optimizer_step` and compares at `on_optimizer_step`, for any optimizer. Steps 1, 2, 5,
    10, 20, 50 and every multiple of `every_n_steps` are sampled; on other steps it does nothing. Costs per sampled
    step, in exact mode, a copy of the trainable parameters (freed after the step), two reads of both and one transfer;
    in sampled mode less than 10 MiB for BERT-base and an error as stated at `UpdateRatioMonitor`.

    | logged key | what |
    |---|---|
    | `update_ratio/all/largest`, `update_ratio/all/median` | largest and median of the blocks |
    | `update_ratio/<block>` | update norm / parameter norm of the block's weights taken as one vector |
    | `monitoring/update_ratios` | figure of the newest sample |
    | `monitoring/update_ratios_over_time` | figure of all samples |

    Files: `output_dir/monitoring/update_ratio.npz` and both figures as PNG at the end.

    Args:
        every_n_steps: Distance of sampled optimizer steps.
        include_biases: Draw biases too; records always hold them.
        skip_probability: Fraction of the parameters to leave out of figures, chosen by `seed`.
        seed: Seed of that choice and of the sampled positions.
        figures: Draw figures.
        per_parameter_scalars: Log a scalar per parameter instead of per block.
        mode: `"exact"`, or `"sampled"` for at most 4,096 elements of each parameter. Where callbacks of both modes
            sample the same step, they share the exact copy.

    Attributes:
        records: `UpdateRatioRecord`s, oldest first; those of a resumed run included.
        parameters: Name -> `ParameterInfo`; empty before training and where parameters cannot be seen.

    Raises:
        InputError: `every_n_steps` is not positive, `skip_probability` lies outside [0, 1] or `mode` is unknown.

    Examples:
        >>> ratios = UpdateRatioCallback(every_n_steps=2)
        >>> _ = make_trainer(callbacks=[ratios]).train()
        >>> record = ratios.records[-1]
        >>> bool((record.ratio == record.update_norm / record.parameter_norm).all())
        True
    """

    name = "update_ratio"
    title = "Update ratios"
    record_class = UpdateRatioRecord
    scalars_of = staticmethod(update_ratio_scalars)
    figure_of = staticmethod(update_ratios_figure)
    figure_name = "update_ratios"
    statistic = "ratio"
    meaning = "‖update‖ / ‖parameter‖"

    def __init__(
        self,
        every_n_steps: int = 50,
        include_biases: bool = False,
        skip_probability: float = 0.0,
        seed: int = 0,
        figures: bool = True,
        per_parameter_scalars: bool = False,
        mode: Mode = "exact",
    ):
        super().__init__(every_n_steps, include_biases, skip_probability, seed, figures, per_parameter_scalars)
        if mode not in get_args(Mode):
            raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.mode = mode
        self.reads_updates = mode

    def measure(self, reading: StepReading) -> UpdateRatioRecord | None:
        """Take the update ratios.

        Args:
            reading: What was read of this step.

        Returns:
            The record.
        """
        return reading.updates(self.mode, self.seed)
