"""What a run is asked to do: our own YAML or another tool's file, checked as one configuration.

config.py    TrainConfig, and how files and `--set` become one
dialects.py  the keys of other tools, by the tables in registry/train_configs
yaml.py      YAML 1.2: `5e-4` is a number, `no` is a word
zero.py      DeepSpeed's configuration, with every `auto` filled in
"""
