"""Training: packs of trials, what one step of a rank costs alone, and rank 0."""
