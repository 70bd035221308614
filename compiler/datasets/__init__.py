"""From names to files: the registry's cards, the user's dataset_info.json, files on the command line, hubs."""
