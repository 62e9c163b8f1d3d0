"""What a trained adapter's rank is used for."""
