"""The label that does not count."""

IGNORED_LABEL = -100
"""Label of a position that does not count: what Trainer pads with and what PyTorch's losses ignore."""
