"""The cache of compiled units: objects named by a digest of what decides their bytes, and the pruning of them."""
