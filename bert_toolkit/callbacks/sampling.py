"""Which arguments of sampling can be meant."""

from bert_toolkit.errors import InputError


def check_sampling(every_n_steps: int, skip_probability: float = 0.0) -> None:
    """Refuse arguments that cannot be meant.

    Args:
        every_n_steps: Distance of sampled steps.
        skip_probability: Fraction of the parameters to leave out.

    Raises:
        InputError: `every_n_steps` is not a positive integer or `skip_probability` lies outside [0, 1].
    """
    if not isinstance(every_n_steps, int) or isinstance(every_n_steps, bool) or every_n_steps < 1:
        raise InputError(f"every_n_steps must be a whole number of steps, 1 or more, got {every_n_steps!r}")
    if not 0.0 <= skip_probability <= 1.0:
        raise InputError(f"skip_probability must lie in [0, 1], got {skip_probability!r}")
