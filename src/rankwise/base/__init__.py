"""The frozen base model: where it comes from, its linear layers, its weights."""
