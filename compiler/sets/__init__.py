"""From objects to a set: mix, pack, gather, link, manifest, publish."""
