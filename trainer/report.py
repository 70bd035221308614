"""What `--dry-run` prints."""

from __future__ import annotations

from typing import Any

from trainer import plan as plans
from trainer import yaml, zero
from trainer.plan import Plan

GIB = 2**30


def facts(plan: Plan) -> dict[str, Any]:
    """Return what a run would be, as JSON values."""
    steps, tokens, positions = plans.padding(plan)
    total, trained = plans.count_parameters(plan)
    split = plan.set.manifest["splits"]["train"]
    epochs = plan.steps / plan.order.steps_per_epoch
    return {
        "config": plan.config.as_dict(),
        "device": {"kind": plan.device.kind, "name": plan.device.name, "processes": plan.device.world},
        "precision": "bf16" if plan.bf16 else "fp16" if plan.fp16 else "fp32",
        "zero_stage": zero.stage(plan.deepspeed),
        "rows": len(plan.train),
        "val_rows": len(plan.val) if plan.val else 0,
        "step_rows": plan.order.step_rows,
        "steps_per_epoch": plan.order.steps_per_epoch,
        "steps": plan.steps,
        "start": plan.start,
        "epochs": epochs,
        "tokens": round(split["tokens"] * epochs),
        "trained_tokens": round(split["trained_tokens"] * epochs),
        "padding": {"steps": steps, "tokens": tokens, "positions": positions, "efficiency": tokens / positions},
        "packing": plan.set.manifest.get("packing"),
        "parameters": total,
        "trained_parameters": trained,
        "memory": plans.memory(plan, total, trained),
        "remarks": list(plan.remarks),
        "lints": list(plans.lints(plan)),
    }


def text(plan: Plan) -> str:
    """Return what a run would be, for people."""
    f = facts(plan)
    memory = "  ".join(f"{name} {size / GIB:.2f}" for name, size in f["memory"].items())
    held = plan.device.memory()
    of = f" of {held / GIB:.0f}" if held else ""
    lines = [
        yaml.dump(f["config"]).rstrip(),
        "",
        f"model      {plan.source.folder}: {f['trained_parameters']:,} of {f['parameters']:,} parameters are trained",
        f"device     {f['device']['processes']} x {f['device']['name']}, {f['precision']}, ZeRO-{f['zero_stage']}",
        f"rows       {f['rows']:,} for training, {f['val_rows']:,} for validation",
        f"steps      {f['steps']:,} of {f['step_rows']} rows, {f['epochs']:.2f} epochs of {f['steps_per_epoch']:,}",
        f"tokens     {f['tokens']:,}, {f['trained_tokens']:,} of them trained",
        f"padding    {f['padding']['efficiency']:.1%} of positions are tokens (first {f['padding']['steps']} steps)",
        f"memory     GiB on each device, roughly: {memory}{of}",
    ]
    if f["packing"]:
        packing = f["packing"]
        filled = f"{packing['sequences']:,} sequences in {packing['packs']:,} packs of {packing['length']:,}"
        lines.append(f"packing    {filled}, {packing['efficiency']:.1%} full")
    lines += [f"note: {line}" for line in (*f["remarks"], *f["lints"])]
    return "\n".join(lines)
