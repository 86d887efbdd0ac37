"""Pre-training data: tokenised documents, sentence pairs, masks and batches."""
