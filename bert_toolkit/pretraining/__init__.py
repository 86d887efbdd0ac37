"""Pre-training data: tokenised documents, sentence pairs, masks and batches."""

from bert_toolkit.pretraining.data_collator import DataCollatorForPreTraining
from bert_toolkit.pretraining.sentence_pairs import NextSentencePairs
from bert_toolkit.pretraining.tokenised_documents import TokenisedDocuments

__all__ = ["DataCollatorForPreTraining", "NextSentencePairs", "TokenisedDocuments"]
