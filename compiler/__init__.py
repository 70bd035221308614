"""The compiler: source files become a set, in five steps.

    1 choose            2 lift                         3 encode
    names -> files  ->  row -> conversation        ->  rendering -> ids, labels, weights
    datasets, read      or reject                      templates, tokenizer, encode, proof
                        formats, rows, media                       |
                                                                   |
    set  <-  mix, pack, link  <-  object of a unit  <--------------+
    5 link                        4 keep
    sets                          units, cache

1. Choose: names become datasets, datasets become files, files are cut into units.
2. Lift: a row is checked and becomes a conversation, or a reject with its place and reason.
3. Encode: the chat template is laid around the messages; text becomes ids, labels and weights. `proof` checks the
   template and the encoder first.
4. Keep: the examples of a unit become an object in the cache, named by a digest of all that decides its bytes.
5. Link: the mix draws rows, which are copied from objects into shards; the manifest is written last.

    pipeline.py      the story of `cli compile`: start reading here
    reference.py     step 3 in one file, slow and plain: what the fast way is compared with
    conversation.py  the types of a row on its way
    options.py       everything that a compile can be asked
    inspect/         what a finished set holds and trains
    questions/       what became of a row, how two sets differ, figures of sets and of files
    convert/         a finished set in the layouts of other trainers
    report/          the same as one HTML page
    commands/        the command line
    api.py           the same from Python: `compiler.compile`, `compiler.open`; docs/python.md

docs/architecture.md follows one row through the steps, with printed values.
"""
# finetune-data-compiler: by this name cli.py knows its own packages.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from compiler.api import OpenSet
    from schemas.stores import AnyPath


def open(where: str | AnyPath) -> OpenSet:
    """Open the compiled set in a folder, or at s3://BUCKET/SETS/NAME. Errors are those of `schemas.errors`."""
    from compiler.api import open_set  # what it needs is imported when it is called

    return open_set(where)


def compile(*files: str | Path, **options: Any) -> OpenSet:
    """Compile files as `cli compile` does, and open the set that was written.

    `options` are those of the command by their long names: `val_size=0.05`, `mix="chats:1,bench:2"`, `pack=4096`,
    `shuffle=False`. A list repeats an option. Errors are those of `schemas.errors`; warnings go to stderr.
    """
    from compiler.api import compile_files

    return compile_files(files, options)
