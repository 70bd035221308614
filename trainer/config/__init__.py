"""What a run is asked to do: our own YAML or another tool's file, checked as one configuration.

config.py    TrainConfig
load.py      how files and `--set` become one
rules.py     settings that contradict each other, or have no effect
shell.py     the call in a shell file, which is read and never run
dialects.py  the keys of other tools, by the tables in registry/train_configs
derived.py   their defaults that depend on other keys
forms.py     values as people write them: lists with commas, 4.0, all-linear
zero.py      DeepSpeed's configuration, with every `auto` filled in
"""
