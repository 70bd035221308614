"""What `cli compile` can be asked, under the headings of its help."""

from __future__ import annotations

from pathlib import Path

import click

from compiler.commands.cache import cache_option
from compiler.commands.completion import format_names, names, template_names, weights_names
from schemas.stores import path_of

_LENGTH = click.IntRange(1, 2**31 - 1)
_MOST = 10**12

SECTIONS: dict[str, list[click.Option]] = {
    "Sources": [
        click.Option(
            ["--from", "made_from"], type=path_of, metavar="OUT",
            help="Compile what a set was compiled of again, as its manifest remembers it.",
        ),
        click.Option(
            ["--registry", "registries"], multiple=True, type=click.Path(path_type=Path), metavar="DIR",
            help="Folder with a dataset_info.json and its data, or with hub datasets. Can be repeated.",
        ),
        click.Option(
            ["--hub"], type=click.Choice(["huggingface", "modelscope"]),
            help="Hub of datasets and tokenizers.  [default: modelscope with USE_MODELSCOPE_HUB=1, else huggingface]",
        ),
        click.Option(
            ["--format"], default="auto", show_default=True, metavar="auto|NAME",
            shell_complete=names(format_names), help="Format of FILES; see cli formats.",
        ),
        click.Option(
            ["--kind"], type=click.Choice(["auto", "sft", "preference", "kto", "pretrain"]), default="auto",
            show_default=True, help="Kind of the rows of FILES; auto goes by their keys.",
        ),
        click.Option(
            ["--columns"], multiple=True, metavar="NAME=KEY,...",
            help="Keys of the rows of FILES: instruction=question,output=answer. Names: cli formats NAME.",
        ),
        click.Option(
            ["--tags"], multiple=True, metavar="NAME=VALUE,...",
            help="Keys and roles in their messages: role_tag=speaker,user_tag=Customer. Names: cli formats NAME.",
        ),
        click.Option(
            ["--repair", "repairs"], metavar="NAME,...", default="",
            help="Repairs to make, each counted: dangling, media-first, unwrap, literals, arguments, content.",
        ),
        click.Option(
            ["--media-dir"], type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
            help="Folder that paths of images and videos start from.  [default: the folder of the dataset]",
        ),
        click.Option(
            ["--ignore"], metavar="KEY,...", default="",
            help="Keys that need not be read: KEY at any place, or messages[].KEY at one.",
        ),
        click.Option(
            ["--unknown-keys"], type=click.Choice(["count", "error"]), default="count", show_default=True,
            help="Keys that nothing reads: count and name them, or end the run.",
        ),
        click.Option(
            ["--scan-secrets"], is_flag=True,
            help="Count keys, tokens, mail addresses and home folders in texts, by kind.",
        ),
        click.Option(
            ["--redact"], is_flag=True,
            help="Replace them by placeholders such as [REDACTED:email]. Implies --scan-secrets.",
        ),
        click.Option(
            ["--max-rejects"], default="1%", show_default=True, metavar="N|P%",
            help="Rejected rows allowed per dataset.",
        ),
        click.Option(
            ["--max-expansion"], type=click.IntRange(1), default=100, show_default=True, metavar="N",
            help="Bytes that a compressed file may hold for each of its own; 16 MiB in any case.",
        ),
        click.Option(
            ["--self-cognition"], type=click.IntRange(0, 10**7), default=0, show_default=True, metavar="N",
            help="Add N rows about who the model is, drawn evenly from the embedded pool.",
        ),
        click.Option(
            ["--self-cognition-file"], type=click.Path(path_type=Path), metavar="FILE",
            help="Draw them from FILE instead: rows {query, response, tag: zh|en} with {{NAME}} and {{AUTHOR}}.",
        ),
        click.Option(["--name"], metavar="ZH[,EN]", help="The model's name in these rows."),
        click.Option(["--author"], metavar="ZH[,EN]", help="Its maker; a comma within a name is in double quotes."),
    ],
    "Template and masks": [
        click.Option(
            ["--tokenizer"], metavar="DIR|ID[@REVISION]",
            help="Folder with a tokenizer.json, or a hub id.  [default: the embedded demo tokenizer]",
        ),
        click.Option(
            ["--template"], default="auto", show_default=True, metavar="auto|NAME",
            shell_complete=names(template_names),
            help="Chat template: the name of a card; auto is the tokenizer's own.",
        ),
        click.Option(
            ["--weights"], default="auto", show_default=True, metavar="auto|NAME|FILE.json|A+B",
            shell_complete=names(weights_names),
            help="Weights policy: none, react, final_answer, ..., your own, or several; auto is the dataset's.",
        ),
        click.Option(
            ["--thinking"], type=click.Choice(["template", "keep"]), default="template", show_default=True,
            help="Thinking of earlier replies: what the chat template does with it, or keep it, where it has a switch.",
        ),
        click.Option(
            ["--tools"], type=click.Choice(["template", "react", "react_zh"]), default="template", show_default=True,
            help="Render tools and calls as the chat template does, or as ReAct text for models without tool roles.",
        ),
        click.Option(
            ["--system"], type=click.Choice(["merge"]),
            help="If the template takes no system message, put it before the first user message.",
        ),
        click.Option(
            ["--special-text"], type=click.Choice(["text", "reject", "allow"]), default="text", show_default=True,
            help="Text that spells a control token: keep it as text, reject the row, or make it the token.",
        ),
        click.Option(["--allow-empty"], is_flag=True, help="Train the stop of empty replies.  [default: reject them]"),
        click.Option(["--strict"], is_flag=True, help="Reject malformed ReAct replies.  [default: count them]"),
    ],
    "Length and packing": [
        click.Option(
            ["--max-length"], type=_LENGTH, metavar="N",
            help="Longest example, in tokens.  [default: no limit]",
        ),
        click.Option(
            ["--overlength"], type=click.Choice(["turns", "last-turns", "reject", "cut"]), default="turns",
            show_default=True,
            help="Longer ones: keep the first whole turns, keep the system text and the last turns, reject, or cut.",
        ),
        click.Option(
            ["--pack"], type=_LENGTH, metavar="LENGTH",
            help="Put examples into packs of at most LENGTH tokens. --max-length defaults to LENGTH.",
        ),
    ],
    "Mix": [
        click.Option(
            ["--mix"], multiple=True, metavar="NAME:SHARE,...",
            help="Datasets and their shares: NAME:SHARE, NAME#ROWS, or NAME; a hub's id is a name. Can be repeated.",
        ),
        click.Option(
            ["--mix-unit"], type=click.Choice(["rows", "tokens", "trained_tokens"]), default="rows", show_default=True,
            help="The unit of shares and of --total.",
        ),
        click.Option(
            ["--where"], metavar="SQL",
            help="Read only rows whose columns meet a condition: \"resolved = 1 and reward > 0.5\".",
        ),
        click.Option(
            ["--limit"], type=click.IntRange(1, _MOST), metavar="N",
            help="Read only the first N rows of each dataset, to try things out; --mix NAME#ROWS draws from all.",
        ),
        click.Option(
            ["--total"], type=click.IntRange(1, _MOST), metavar="N",
            help="Size of the shared part of the mix.  [default: as many rows as possible without repeats]",
        ),
        click.Option(
            ["--max-repeats"], type=click.IntRange(0, _MOST), metavar="R",
            help="How often a share or a count may repeat a row: 1 = used twice.  [default: 0, or as --total needs]",
        ),
        click.Option(
            ["--dedup"], metavar="exact|near[:0.8]", shell_complete=names(lambda: ("exact", "near")),
            help="Drop repeated conversations; near: also those that are as similar.  [default: count repeated ones]",
        ),
        click.Option(
            ["--decontaminate"], multiple=True, metavar="FILE",
            help="Drop rows that share text with the rows of a benchmark, and list them. Can be repeated.",
        ),
        click.Option(
            ["--decontaminate-ngram"], type=int, metavar="8|13",
            help="Words of the runs that are compared: half of a text in runs of 8, or one run of 13.  [default: 8]",
        ),
        click.Option(
            ["--decontaminate-threshold"], type=float, metavar="X",
            help="With runs of 8: the part of a benchmark's text that is too much.  [default: 0.5]",
        ),
        click.Option(
            ["--val-size"], type=click.FloatRange(0), default=0.0, show_default=True, metavar="X",
            help="Validation rows: a fraction below 1, or a number. A conversation is never in both splits.",
        ),
        click.Option(
            ["--val"], multiple=True, metavar="[NAME=]FILE",
            help="A file whose rows are all for validation. Can be repeated.",
        ),
        click.Option(
            ["--test"], multiple=True, metavar="[NAME=]FILE",
            help="The same for the split test, which is scored when training ends.",
        ),
        click.Option(
            ["--shuffle/--no-shuffle"], default=True, show_default=True,
            help="Shuffle all rows, or keep the order of datasets and files.",
        ),
        click.Option(
            ["--seed"], type=int, default=0, show_default=True, metavar="N",
            help="Seed of sampling, splits and order.",
        ),
    ],
    "Output": [
        click.Option(
            ["-o", "--out"], type=path_of, default="shards", show_default=True, metavar="OUT",
            help="Folder to write, here or in an object store (s3://BUCKET/SETS/NAME).",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the summary as JSON."),
        click.Option(
            ["--save-recipe"], type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.yaml",
            help="Write what is asked as a recipe too, for cli compile FILE.yaml.",
        ),
    ],
    "Running": [
        click.Option(
            ["--workers"], type=click.IntRange(1), metavar="N",
            help="Processes; the output is the same for any number.  [default: the cores, here or of the Ray cluster]",
        ),
        cache_option("cache", "Folder of the cache of compiled units."),
        click.Option(
            ["--engine"], type=click.Choice(["local", "ray"]), default="local", show_default=True,
            help="Where units are compiled: on this machine, or on a Ray cluster that sees the same files.",
        ),
        click.Option(
            ["--ray-address"], metavar="HOST:PORT",
            help="The cluster, or auto.  [default: $RAY_ADDRESS, or one on this machine for this run]",
        ),
        click.Option(
            ["--dry-run"], is_flag=True,
            help="Compile a sample of the units into the cache, and say what the compile would give; write no set.",
        ),
        click.Option(
            ["--sample"], type=click.IntRange(4), metavar="N",
            help="Units, of about 1 MB each, that --dry-run compiles of each dataset.  [default: 8, or 4 MB]",
        ),
        click.Option(
            ["--only"], metavar="K/N",
            help="Compile only part K of N of the units, counted from 0, into the cache; write no set.",
        ),
    ],
}  # fmt: skip
