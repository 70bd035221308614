"""From conversations to token columns: weights, shapes, ids, labels and the length policy."""
