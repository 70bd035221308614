"""What a run would do, for `--dry-run`, and likely mistakes in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from schemas import yaml
from trainer.config import zero
from trainer.run import attention, sizes
from trainer.run.memory import ways
from trainer.run.plan import RunPlan
from trainer.run.schedule import warmup

GIB = 2**30
SAMPLE_STEPS = 200
"""Steps whose padding is counted: reading more of a large set would add little precision."""


def facts(plan: RunPlan) -> dict[str, Any]:
    """What a run would do, as JSON values."""
    steps, tokens, positions = padding(plan)
    counts = sizes.count(plan)
    memory = sizes.memory(plan, counts)
    split = plan.set.manifest["splits"]["train"]
    epochs = plan.steps / plan.order.steps_per_epoch
    return {
        "config": plan.config.as_dict(),
        "objective": {"name": plan.objective.name} | plan.objective_settings,
        "device": {"kind": plan.device.kind, "name": plan.device.name, "processes": plan.device.world},
        "attention": plan.attention.record(),
        "kernels": plan.kernels.record(),
        "optimizer": plan.optimizer,
        "precision": "bf16" if plan.bf16 else "fp16" if plan.fp16 else "fp32",
        "zero_stage": zero.stage(plan.deepspeed),
        "rows": len(plan.train),
        "val_rows": len(plan.val) if plan.val else 0,
        "step_rows": plan.order.step_rows,
        "steps_per_epoch": plan.order.steps_per_epoch,
        "shuffle_shards": plan.facts["shuffle_shards"],
        "steps": plan.steps,
        "start": plan.start,
        "epochs": epochs,
        "tokens": round(split["tokens"] * epochs),
        "trained_tokens": round(split["trained_tokens"] * epochs),
        "padding": {"steps": steps, "tokens": tokens, "positions": positions, "efficiency": tokens / positions},
        "packing": plan.set.manifest.get("packing"),
        "parameters": counts.all,
        "trained_parameters": counts.trained,
        "memory": memory,
        "remarks": list(plan.remarks),
        "lints": [*lints(plan), *too_much(plan, memory["all"])],
    }


def text(plan: RunPlan) -> str:
    """What a run would do, for people."""
    f = facts(plan)
    memory = "  ".join(f"{name} {size / GIB:.2f}" for name, size in f["memory"].items() if size)
    held = plan.device.memory()
    of = f" of {held / GIB:.0f}" if held else ""
    lines = [
        yaml.dump(f["config"]).rstrip(),
        "",
        f"model      {plan.source.folder}: {f['trained_parameters']:,} of {f['parameters']:,} parameters are trained",
        f"objective  {plan.objective_in_words}",
        f"device     {f['device']['processes']} x {f['device']['name']}, {f['precision']}, ZeRO-{f['zero_stage']}",
        f"attention  {plan.attention.in_words}",
        f"kernels    {plan.kernels.in_words}",
        f"optimizer  {plan.optimizer}",
        f"rows       {f['rows']:,} for training, {f['val_rows']:,} for validation",
        f"order      {plan.order_in_words}",
        f"steps      {f['steps']:,} of {f['step_rows']} rows, {f['epochs']:.2f} epochs of {f['steps_per_epoch']:,}",
        f"tokens     {f['tokens']:,}, {f['trained_tokens']:,} of them trained",
        f"padding    {f['padding']['efficiency']:.1%} of positions are tokens (first {f['padding']['steps']} steps)",
        f"memory     GiB on each device, roughly: {memory}{of}",
    ]
    if f["packing"]:
        packing = f["packing"]
        filled = f"{packing['sequences']:,} sequences in {packing['packs']:,} packs of {packing['length']:,}"
        lines.append(f"packing    {filled}, {packing['efficiency']:.1%} full")
    if plan.keeps_reference:
        lines.append("reference  its log-probabilities are computed before the first step and kept in output_dir")
    lines += [f"note: {line}" for line in (*f["remarks"], *f["lints"])]
    return "\n".join(lines)


def padding(plan: RunPlan) -> tuple[int, int, int]:
    """(steps, tokens, positions including padding) of the first steps of the first epoch."""
    steps = min(plan.order.steps_per_epoch, SAMPLE_STEPS)
    tokens = positions = 0
    for step in range(steps):
        lengths = plan.train.lengths(plan.order.step(step))
        for start in range(0, len(lengths), plan.micro):
            part = lengths[start : start + plan.micro]
            tokens += int(part.sum())
            positions += int(part.max()) * len(part)
    return steps, tokens, positions


def lints(plan: RunPlan) -> Iterator[str]:
    """Yield likely mistakes that are allowed."""
    c, steps = plan.config, plan.steps
    run = f"the {steps:,} steps of this run"
    if c.eval_strategy == "steps" and (c.eval_steps or c.logging_steps) > steps:
        yield f"eval_steps {c.eval_steps or c.logging_steps:,} is more than {run}: nothing will be evaluated"
    if c.save_strategy == "steps" and c.save_steps > steps:
        yield f"save_steps {c.save_steps:,} is more than {run}: only the end will be saved"
    if c.logging_steps > steps:
        yield f"logging_steps {c.logging_steps:,} is more than {run}: only the end will be shown"
    if warmup(c, steps) >= steps > 0:
        yield f"warm-up takes {warmup(c, steps):,} steps, at least as long as {run}"
    if plan.order.step_rows > len(plan.train):
        yield f"a step takes {plan.order.step_rows:,} rows, the set has {len(plan.train):,}: an epoch is one step"
    epochs = steps / plan.order.steps_per_epoch
    if epochs > 20:
        yield f"every row will be trained {epochs:.0f} times"
    if c.tuning == "full" and c.learning_rate > 1e-4:
        yield f"learning_rate {c.learning_rate:g} is high for full fine-tuning (1e-5 to 5e-5 is usual)"
    longest = plan.longest_row
    if (mask := attention.mask_bytes(plan, longest)) >= attention.NOTED:
        yield (
            f"attention by {plan.attention.name} makes a mask of {mask / GIB:.1f} GiB in each pass "
            f"({plan.micro} x {longest:,} x {longest:,}); FlashAttention makes none"
        )
    samples = [one["name"] for one in plan.set.manifest["datasets"] if one["sample"]]
    if samples:
        yield f"{', '.join(samples)}: embedded samples, only for trying things out"


def too_much(plan: RunPlan, estimated: int) -> Iterator[str]:
    """Yield what to lower, if the estimate is more than the device has."""
    held = plan.device.memory()
    if held is not None and estimated > held:
        what = f"about {estimated / GIB:.1f} GiB are needed, and {plan.device.name} has {held / GIB:.1f}"
        yield f"{what}. {'; '.join(ways(plan))}."
