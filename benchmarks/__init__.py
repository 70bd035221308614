"""Measurements. The machine is shared and noisy: only ratios of interleaved runs count."""
