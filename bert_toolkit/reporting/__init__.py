"""What a recipe shows and writes: overview tables, results, model card, figures, and the proof that a save reloads."""
