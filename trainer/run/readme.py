"""The README.md of a checkpoint: what it is, and how to load it. PEFT's own is an empty form."""

from __future__ import annotations

from trainer.run.plan import RunPlan

_KINDS = {"lora": "a LoRA", "prefix": "a prefix (P-Tuning v2)", "full": "a model"}


def readme(plan: RunPlan, step: int) -> str:
    """The text for the checkpoint of a step."""
    base, own = plan.source.folder.absolute(), plan.source.family is not None
    kind = _KINDS[plan.config.tuning]
    lines = [f"# Step {step:,}", "", f"This is {kind}, trained on `{plan.set.where}` from `{base}`."]
    lines += ["`run.json` has the configuration, the data and the model; `cli train --resume` goes on from here."]
    if plan.config.tuning == "full":
        lines += ["`cli export` writes it with its tokenizer, chat template and stop tokens."]
    elif own:
        lines += [
            "", "PEFT alone cannot load it: the base model is in the layout of code of its own. With this package:", "",
            "```python", "import peft", "import trainer.models", "",
            f'model = peft.PeftModel.from_pretrained(trainer.models.load("{base}"), CHECKPOINT)', "```",
        ]  # fmt: skip
    else:
        lines += [
            "", "```python", "from peft import AutoPeftModelForCausalLM", "",
            "model = AutoPeftModelForCausalLM.from_pretrained(CHECKPOINT)", "```",
        ]  # fmt: skip
    if plan.config.tuning == "lora":
        lines += ["", "`cli export CHECKPOINT OUT` writes one model of both, which Transformers loads."]
    return "\n".join(lines) + "\n"
