"""The summary of `cli compile`: the realized mix, the splits, and remarks on the rows."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from compiler import formats
from compiler.commands.cache_report import size
from compiler.datasets.catalogue import SELF_COGNITION
from compiler.options import DEMO_NAME
from compiler.pipeline import CompileResult
from compiler.rows.secrets import NOTE
from compiler.sets.readme import mix_rows, not_read, secrets_found
from compiler.units.progress import Done
from schemas.arrow import EMBEDDED
from schemas.manifest import DatasetEntry, Manifest, embedded_of


def summary(result: CompileResult, out: str) -> RenderableType:
    """The summary of a compile that wrote a set."""
    manifest = result.manifest
    parts: list[RenderableType] = [Mix(mix_rows(manifest))]
    for name, split in manifest["splits"].items():
        if split["rows"]:
            rows, shards, share = split["rows"], len(split["shards"]), split["trained_tokens"] / split["tokens"]
            what = f"pack{_s(rows)} of {split['sequences']:,} examples" if "sequences" in split else f"row{_s(rows)}"
            counts = f"{rows:,} {what}, {split['tokens']:,} tokens, {split['trained_tokens']:,} of them trained"
            parts.append(Text(f"{name}: {counts} ({share:.1%}), {shards} shard{_s(shards)}"))
    parts += [Text(line) for line in remarks(manifest)]
    parts.append(Text(_units(result.compiled, result.cached)))
    parts.append(Text(f"wrote {out}  manifest {manifest['digest'][:16]}", no_wrap=True, overflow="ignore"))
    return Group(*parts)


def part_summary(done: Done, part: str) -> RenderableType:
    """The summary of a compile of one part of the units."""
    units = f"part {part}: {_units(done.compiled, done.cached)}"
    return Text(f"{units}\nwhen all parts are done, run the same cli compile without --only")


def _units(compiled: int, cached: int) -> str:
    if not compiled:
        return f"{cached} unit{_s(cached)} reused from the cache, none compiled"
    return f"{compiled} unit{_s(compiled)} compiled, {cached} reused from the cache"


def _of_the_run(manifest: Manifest) -> list[str]:
    """Remarks on what was asked for."""
    lines = []
    samples = [entry["name"] for entry in manifest["datasets"] if entry["sample"]]
    if samples:
        lines.append(
            f"embedded samples were used for {' and '.join(samples)}: good for trying things out, "
            "too small to train a model"
        )
    persona = manifest["options"]["persona"]
    if persona and persona["name"] == DEMO_NAME:
        shown = DEMO_NAME.replace(",", " / ")
        lines.append(f"the self-cognition rows call the model {shown}, as in the demo; --name gives it another name")
    if (limit := manifest["options"].get("limit")) is not None:
        lines.append(f"--limit {limit}: at most {limit:,} row{_s(limit)} of each dataset were read, the first ones")
    if embedded := embedded_of(manifest):
        files, bytes_ = embedded["files"], size(embedded["bytes"])
        lines.append(f"images in rows: {files:,} file{_s(files)} in {EMBEDDED}/, {bytes_}")
    if packing := manifest.get("packing"):
        lines.append(f"packs of {packing['length']:,} tokens are {packing['efficiency']:.1%} full")
    return lines


def remarks(manifest: Manifest, *, dry: bool = False) -> list[str]:
    """Remarks on the rows, one sentence each. A dry run has no rejects.jsonl, and says itself what is rejected."""
    lines = _of_the_run(manifest)
    lines += _short_split(manifest) + _repeats_for_validation(manifest) + _also_trained(manifest)
    found = {key for entry in manifest["datasets"] for key in entry.get("ignored", ())}
    if without := [key for key in manifest["options"]["ignore"] if key not in found]:
        lines.append(f"--ignore {','.join(without)}: no effect, because no row has it as a key that is not read")
    for entry in manifest["datasets"]:
        balance = entry["balance"]
        pool = " of the pool" if entry["name"] == SELF_COGNITION else ""  # each is used many times, or not at all
        if balance["expanded"]:
            read, made = balance["read"], balance["read"] + balance["expanded"]
            lines.append(f"{entry['name']}: {read:,} row{_s(read)} made {made:,} examples")
        if "left_out" in balance:
            left_out, read = balance["left_out"], balance["read"]
            lines.append(f"{entry['name']}: {left_out:,} of {read:,} row{_s(read)} left out by --where")
        if cleaned := balance["cleaned"]:
            dropped = "dropped by its clean-up rules" + ("" if dry else " (see rejects.jsonl)")
            lines.append(f"{entry['name']}: {cleaned:,} row{_s(cleaned)} {dropped}")
        lines += _dropped(entry)
        if unread := entry.get("unread"):
            lines.append(f"{entry['name']}: {not_read(unread, balance['read'])}")
        lines += _secrets(entry, manifest)
        others = {note: count for note, count in entry["notes"].items() if not note.startswith(NOTE)}
        for note, count in others.items():
            if note == "not_react":
                made = balance["read"] + balance["expanded"] - balance["rejected"] - balance["cleaned"]
                made -= balance.get("contaminated", 0)
                lines.append(
                    f"{entry['name']}: react weights: {made - count:,} of {made:,} rows; the others have no API list "
                    "and no Action line, and are trained whole"
                )
                continue
            if note in _UNTRAINED:
                lines.append(f"{entry['name']}: {_UNTRAINED[note]}: {count:,}")
                continue
            what = _NOTES.get(note) or _named(note)
            if note == "special_text":
                what += _SPECIAL_TEXT[manifest["options"]["special_text"]]
            lines.append(f"{entry['name']}: in {count:,} row{_s(count)}{pool}, {what}")
        for reason, count in () if dry else entry["rejected"].items():
            lines.append(f"{entry['name']}: {count:,} row{_s(count)} rejected: {reason} (see rejects.jsonl)")
    return lines


def _dropped(entry: DatasetEntry) -> list[str]:
    """What --decontaminate and --dedup near dropped."""
    lines = []
    if contaminated := entry["balance"].get("contaminated"):
        what = f"{contaminated:,} row{_s(contaminated)} dropped, because a benchmark has the text (see rejects.jsonl)"
        lines.append(f"{entry['name']}: {what}")
    if near := entry.get("near_duplicates"):
        of = entry["duplicates"]
        lines.append(f"{entry['name']}: {near:,} of {of:,} duplicates are near ones; cli why names the row that stays")
    return lines


def _secrets(entry: DatasetEntry, manifest: Manifest) -> list[str]:
    """What was found of secrets; for sessions, how to look for them."""
    lines = secrets_found(entry, redacted="redact" in manifest["options"])
    if "secrets" not in entry and formats.get(entry["format"], "format").session:
        lines = [
            "sessions often hold keys, mail addresses and user names; --scan-secrets counts, --redact replaces them"
        ]
    return [f"{entry['name']}: {line}" for line in lines]


def _named(note: str) -> str:
    """The words for a note that names what was found."""
    for mark, words in _FOUND.items():
        if note.startswith(mark):
            return words.format(note.removeprefix(mark))
    return note


def _repeats_for_validation(manifest: Manifest) -> list[str]:
    """A sentence on each dataset with rows for validation that say the same as another one."""
    lines = []
    for entry in manifest["datasets"]:
        if again := entry["realized"].get("val_repeats"):
            what = (
                f"{again:,} of {entry['realized']['val_rows']:,} rows for validation repeat another row of that split"
            )
            lines.append(f"{entry['name']}: {what}; --dedup exact drops duplicates")
    return lines


def _also_trained(manifest: Manifest) -> list[str]:
    """A sentence on each held-out file that shares conversations with the rows for training."""
    counts = {entry["name"]: entry["realized"] for entry in manifest["datasets"] if "in_train" in entry["realized"]}
    return [
        f"{name}: {found['in_train']:,} of {found['rows']:,} row{_s(found['rows'])} are in train as well, and say "
        "little about the model"
        for name, found in counts.items()
    ]


def _short_split(manifest: Manifest) -> list[str]:
    """A sentence if there are fewer validation rows than asked for, because groups are kept whole."""
    size, splits = manifest["options"]["val_size"], manifest["splits"]
    rows = {name: split.get("sequences", split["rows"]) for name, split in splits.items()}
    wanted, found = round(size * sum(rows.values())) if size < 1 else int(size), rows["val"]
    if found >= wanted:
        return []
    return [f"--val-size {size:g}: {found:,} of {wanted:,} rows, because conversations and trajectories are kept whole"]


_NOTES = {
    "special_text": "text that spells a control token ",
    "one_example_per_reply": "each reply became a separate example, because the chat template changes earlier turns",
    "document_pieces": "documents longer than --max-length were cut into pieces",
    "warning:other_model": "a reply names another model or its maker",
    "warning:chinese_name": "an English reply has a Chinese name (give --name ZH,EN --author ZH,EN)",
    "warning:react_action": "an action names no API of the system prompt",
    "warning:react_input": "an action's input does not parse or lacks a required parameter",
    "warning:react_observation": "an observation follows no action",
    "warning:react_final": "a final answer is missing or not last",
    "empty_reply": "a reply is empty, and its stop was trained",
    "empty_thought": "a reply is nothing but an empty <think>, and is trained",
    "empty_prompt": "a message of the user is empty",
    "react_text": "a reply has lines Action: and Observation:, and all of it is trained; --weights react is for such",
    "joined_calls": "calls in consecutive messages became one reply with one stop",
    "tool_blocks": "<tool_call> and <tool_response> blocks became calls and results",
    "tool_call_text": "a <tool_call> that is not a call at the end of its reply was kept as text",
    "repair:media-first": "images and videos without a place in the text were put first",
    "repair:unwrap": "a list around the row was removed",
    "repair:literals": "lists and objects given as text were parsed",
    "repair:arguments": "arguments encoded twice were decoded once",
    "repair:content": "replies without content beside their tool calls got an empty one",
    "repair:drop_system": "a system text that the dataset's card lists was left out",
    "warning:mark_without_media": "<image> or <video> is plain text, because the row lists no images or videos",
    "hidden_reasoning": "reasoning that is encrypted was not read",
    "session_prompt": "the session holds neither the system prompt nor the tools that the model saw",
    "session_tools": "the session does not hold the tools that the model saw",
    "session_subagents": "lines of subagents were left out",
    "session_branches": "lines of earlier branches were left out",
    "oasst_branches": "replies beside the best-ranked ones were left out, with what follows them",
    "oasst_unranked": "nobody ranked some replies, and the first of them was taken",
    "oasst_left_out": "messages that were deleted or did not pass review were left out, with what follows them",
    "oasst_unanswered": "a last message without a reply was left out",
    "screen_waits": "steps that only wait were left out",
    "screen_untrained": "steps that were found to be wrong are part of the history and not trained",
    "json_text": "lists and objects given as JSON text were read as what they hold",
    "not_a_number": "NaN or Infinity was taken for null, under keys that are not read",
    "shortened": "turns were dropped to fit --max-length",
    "cut": "tokens after --max-length were cut off",
    "repair:redact": "secrets were replaced by placeholders",
    "repair:dangling": "trailing turns without a reply were removed",
    "repair:system_merge": "the system text was put before the first user message",
}

_UNTRAINED = {
    "untrained:not_final": "replies left untrained, because they are not the final answer",
    "untrained:before_final": "replies of which only the part from Final Answer: on is trained",
    "untrained:failed_reply": "replies left untrained, because the result of a call is an error",
    "untrained:failed_action": "actions left untrained, because their observation is an error",
}
"""What a weights policy leaves out -> words for it; these notes count replies and actions, not rows."""

_FOUND = {
    "placeholder: ": "the placeholder {} was not filled in",
    "marker: ": "the text carries {}, which another template writes: it is trained as text",
}
"""What a note begins with -> words for it and for what follows."""
_SPECIAL_TEXT = {"text": "was kept as text", "allow": "became that token", "reject": "was rejected"}


def _s(count: int) -> str:
    return "" if count == 1 else "s"


class Mix:
    """The realized mix, one line per dataset: one table if it fits, else two narrow ones."""

    def __init__(self, rows: list[tuple[str, ...]]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = _table(self._rows)
        if Measurement.get(console, options.update_width(10_000), whole).maximum <= options.max_width:
            yield whole
            return
        names = self._rows[0]
        counts = [n for n, name in enumerate(names) if name in ("repeats", "rejected", "sampled out", "duplicates")]
        yield _table([tuple(cell for n, cell in enumerate(row) if n not in counts) for row in self._rows], narrow=True)
        shown = [0, *(n for n in counts if any(row[n] != "0" for row in self._rows[1:]))]
        if len(shown) > 1:
            yield Text()
            yield _table([tuple(row[n] for n in shown) for row in self._rows])


def _table(rows: list[tuple[str, ...]], *, narrow: bool = False) -> Table:
    """A table of a header, lines and a total. A narrow one has its long names on two lines."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for number, name in enumerate(rows[0]):
        is_text = name in ("dataset", "asked for")
        title = name.replace("share of ", "share of\n") if narrow else name
        table.add_column(title, justify="left" if is_text else "right", no_wrap=number > 0, overflow="fold")
    for number, row in enumerate(rows[1:], start=1):
        table.add_row(*row, style="bold" if number == len(rows) - 1 else None)
    return table
