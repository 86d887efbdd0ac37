"""Pre-training data: tokenized documents, sentence pairs, masks and batches."""

from bert_toolkit.pretraining.data_collator import DataCollatorForPreTraining
from bert_toolkit.pretraining.sentence_pairs import NextSentencePairs
from bert_toolkit.pretraining.tokenized_documents import TokenizedDocuments

__all__ = ["DataCollatorForPreTraining", "NextSentencePairs", "TokenizedDocuments"]
