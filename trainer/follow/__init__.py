"""Calls of other tools, as the calls of `cli compile` and `cli train` that do the same.

plan.py      the two calls, and what has no equivalent
training.py  what a call trains, and with which configuration
data.py      which data it reads, and how much of it
options.py   what its other options mean to cli compile, by the tables in registry/train_configs
start.py     what is set for a call, and what starts it
"""
