"""How a recipe trains: launching, weights to start from, learning rates by layer, order of rows, checkpoints."""
