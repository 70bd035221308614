"""A model: its folder, its weights, and what of it is trained.

folder.py      the name and configuration of a model, without its weights
load.py        a model for training, from safetensors
tune.py        LoRA, a prefix, or parameters but for frozen ones
pretrained.py  a model and tokenizer for use after training
wrappers.py    the model inside DeepSpeed, DDP and PEFT
"""
