"""What tests of benchmarks leave as they found it."""

import logging

import pytest
import transformers


@pytest.fixture(autouse=True)
def loud():
    """Benchmarks silence the toolkit's log for good; the tests after them want to read it."""
    logger, before = logging.getLogger("bert_toolkit"), transformers.logging.get_verbosity()
    level = logger.level
    yield
    logger.setLevel(level)
    transformers.logging.set_verbosity(before)
    transformers.utils.logging.enable_progress_bar()
