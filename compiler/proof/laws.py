"""How a law of a certificate is checked: our tokens and the official ones must be equal."""

from __future__ import annotations

from collections import Counter

from schemas.errors import IntegrityError

BEFORE, AFTER = 6, 12
"""Tokens that are shown before the first difference, and from there on."""


def must_be_equal(checks: Counter[str], law: str, probe: str, ours: list[str], official: list[str]) -> None:
    """Count a check of the law; raise an IntegrityError with both sides around their first difference."""
    checks[law] += 1
    if ours == official:
        return
    pairs = enumerate(zip(ours, official, strict=False))
    at = next((i for i, (mine, theirs) in pairs if mine != theirs), min(len(ours), len(official)))
    shown = slice(max(0, at - BEFORE), at + AFTER)
    raise IntegrityError(
        "chat template", f"law {law!r} fails on the probe {probe!r}",
        f"ours:     {ours[shown]!r}\n  official: {official[shown]!r}\n"
        "  Nothing was compiled. Use a template card (--template NAME), or report the tokenizer.",
    )  # fmt: skip
