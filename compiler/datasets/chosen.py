"""The datasets of a compile: found by their names, all of one kind, with options that have an effect on them."""

from __future__ import annotations

from dataclasses import replace

import registry
from compiler.conversation import Kind
from compiler.datasets.catalogue import SELF_COGNITION, Catalogue
from compiler.datasets.dataset import Dataset
from compiler.options import CompileOptions, Request, check_mix
from compiler.rows.where import where
from schemas.errors import UsageError


def choose_datasets(options: CompileOptions) -> list[tuple[Dataset, Request]]:
    """Find the datasets, each with what is asked of it; self-cognition is the last one."""
    catalogue = Catalogue(options)
    requests = catalogue.requests()
    check_mix(requests, options.mixing)
    chosen = [(catalogue.resolve(request.name), request) for request in requests]
    for dataset, request in chosen:
        condition = options.own.get(request.name, {}).get("where", options.where)
        if condition:
            where(condition)  # a mistake in it is said before anything is compiled
            dataset.options = replace(dataset.options, where=condition)
    if options.self_cognition:
        if any(dataset.name == SELF_COGNITION for dataset, _ in chosen):
            raise UsageError("--self-cognition", f"another dataset is called {SELF_COGNITION!r}", "Rename that one.")
        chosen.append((catalogue.self_cognition(), Request(SELF_COGNITION, count=options.self_cognition, repeats=True)))
    if options.hub and not options.tokenizer_source and all("revision" not in one.source for one, _ in chosen):
        raise UsageError(f"--hub {options.hub}", "nothing of this compile is downloaded from a hub", "Leave it out.")
    for dataset, _ in chosen:
        policy = registry.weights(dataset.options.weights)
        dataset.options = replace(dataset.options, weights=policy["name"], policy=policy)
    return chosen


def kind_of(datasets: list[tuple[Dataset, Request]], options: CompileOptions) -> str:
    """The one kind that all the datasets are of; kinds do not mix. Raise for options that would do nothing with it."""
    kinds: dict[str, list[str]] = {}
    for dataset, _ in datasets:
        kinds.setdefault(dataset.options.kind, []).append(dataset.name)
    if len(kinds) > 1:
        found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(kinds.items()))
        raise UsageError("compile", f"a set holds rows of one kind, found {found}", "Compile each kind by itself.")
    (kind,) = kinds
    if options.units.strict and not any(dataset.options.react for dataset, _ in datasets):
        raise UsageError("--strict", "it is about ReAct replies, and no dataset has those", "Leave it out.")
    if options.pack is not None and kind in (Kind.PREFERENCE, Kind.KTO):
        what = f"a {kind} set is trained on whole replies, each judged by itself, and a pack has no such row"
        raise UsageError(f"--pack {options.pack}", what, "Leave it out; group rows by length when training.")
    about_conversations = {
        "--tools": options.units.tools != "template",
        "--system": options.units.system is not None,
        "--weights": options.weights != "auto",
        "--thinking": options.units.thinking != "template",
        "--allow-empty": options.units.allow_empty,
    }
    used = [option for option, is_used in about_conversations.items() if is_used]
    if kind == Kind.PRETRAIN and used:
        raise UsageError(used[0], "it is about conversations, and these are documents", "Leave it out.")
    return kind
