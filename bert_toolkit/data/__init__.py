"""Where text comes from: CoLA, 20 newsgroups, and the pre-trained weights that are fine-tuned on them."""
