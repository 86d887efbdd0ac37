"""Trainer callback: how large the gradient of every layer is."""

from bert_toolkit.callbacks.layer_callback import LayerCallback
from bert_toolkit.monitoring.figures import gradients_figure
from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord, gradient_flow_scalars
from bert_toolkit.monitoring.step_reading import StepReading


class GradientFlowCallback(LayerCallback[GradientFlowRecord]):
    """A callback that records mean, maximum, standard deviation and zero share of |gradient| of every parameter.

    Reads gradients at `on_pre_optimizer_step`, after accumulation, unscaling and clipping; the norms before
    clipping come from the end of the backward pass. Steps 1, 2, 5, 10, 20, 50 and every multiple of `every_n_steps`
    are sampled; on other steps it does nothing. Costs two reads of the gradients and one transfer per sampled step.

    | logged key | what |
    |---|---|
    | `gradient_flow/all/largest_mean`, `gradient_flow/all/median_mean` | largest and median of the blocks' means |
    | `gradient_flow/all/max` | largest absolute gradient of the model |
    | `gradient_flow/mean/<block>` | mean of the absolute gradient over the block's weights |
    | `gradient_flow/max/<block>` | largest absolute gradient |
    | `gradient_flow/std/<block>` | standard deviation of the absolute gradient |
    | `gradient_flow/zero_share/<block>` | fraction of elements whose gradient is exactly zero |
    | `gradient_flow/clip_coefficient` | what clipping multiplied all gradients by, 1 for not clipped |
    | `monitoring/gradients` | figure of the newest sample |
    | `monitoring/gradients_over_time` | figure of all samples |

    Files: `output_dir/monitoring/gradient_flow.npz` and both figures as PNG at the end.

    Args:
        every_n_steps: Distance of sampled optimizer steps.
        include_biases: Draw biases too; records always hold them.
        skip_probability: Fraction of the parameters to leave out of figures, chosen by `seed`.
        seed: Seed of that choice.
        figures: Draw figures.
        per_parameter_scalars: Log a scalar per parameter instead of per block.

    Attributes:
        records: `GradientFlowRecord`s, oldest first; those of a resumed run included.
        parameters: Name -> `ParameterInfo`; empty before training and where gradients cannot be seen.

    Raises:
        InputError: `every_n_steps` is not positive or `skip_probability` lies outside [0, 1].

    Examples:
        >>> flow = GradientFlowCallback(every_n_steps=2)
        >>> _ = make_trainer(callbacks=[flow]).train()
        >>> [record.step for record in flow.records]
        [1, 2, 4]
        >>> largest = flow.records[-1].max  # one value per parameter, in the order of `names`
        >>> len(largest) == len(flow.records[-1].names)
        True
    """

    name = "gradient_flow"
    title = "Gradient flow"
    reads_gradients = True
    record_class = GradientFlowRecord
    scalars_of = staticmethod(gradient_flow_scalars)
    figure_of = staticmethod(gradients_figure)
    figure_name = "gradients"
    statistic = "mean"
    meaning = "mean |gradient| (after clipping)"

    def measure(self, reading: StepReading) -> GradientFlowRecord | None:
        """Take the statistics of the gradients.

        Args:
            reading: What was read of this step.

        Returns:
            The record.
        """
        return reading.gradients
