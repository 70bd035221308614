"""Generation and its scores."""
