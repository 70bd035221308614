"""A model: its folder, its weights, and what of it is trained.

demo.py         the embedded model, for trying things out
folder.py       the name and configuration of a model, without its weights
safetensors.py  weights in pickles as safetensors
reading.py      a folder that a library cannot read, as one message
digest.py       what tells a model from others
training.py     a model for training, from safetensors
original/       models that came with code of their own, as native classes
tune.py         LoRA, a prefix, or parameters but for frozen ones
parts.py        the vision tower, the projector and the language model, each of which can be frozen
kernels.py      Liger's kernels and torch.compile
optimizers.py   AdamW of torch or bitsandbytes
initial.py      adapters that begin with a part of the weights (PiSSA, OLoRA)
loraplus.py     the groups of the optimizer for LoRA+
noise.py        NEFTune
router.py       the balancing loss of experts
experts.py      LoRA on fused experts, which are parameters
prefix.py       replies of a model, also of one with a prefix
pretrained.py   a model and tokenizer for use after training
wrappers.py     the model inside DeepSpeed, DDP and PEFT
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def load(folder: str | Path, dtype: torch.dtype | str = "auto") -> Any:
    """The model of a folder in evaluation mode, from safetensors; no code of the folder is run, and nothing is asked.

    Original folders (ChatGLM, GLM-4, CogAgent, Qwen, InternLM2, Baichuan) become native classes of Transformers.
    """
    from trainer.models.pretrained import load_model

    return load_model(Path(folder), dtype=dtype)
