"""Trainer callbacks, pre-training data, metrics and a from-scratch BERT for Hugging Face Trainer and Accelerate.

Importing the package registers `toolkit_bert` with the Auto classes of transformers; it does nothing else.
"""

from bert_toolkit.errors import InputError

__version__ = "0.1.0"

__all__ = ["InputError"]
