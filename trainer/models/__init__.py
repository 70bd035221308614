"""The model: loaded, adapted, prepared for training."""
