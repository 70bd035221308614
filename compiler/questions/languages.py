"""The share of rows in each language, by a seeded sample of each dataset, with a 95% interval.

py3langid says which language the first characters of a row's text are in. Of languages that are near each other, such
as Chinese and Cantonese, it takes one for the other in short texts.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from compiler.inspect.vocabulary import TokenBytes
from compiler.questions.said import batches_of, texts_of
from compiler.questions.table import Cells, table
from schemas import install
from schemas.arrow import SPLITS
from schemas.errors import UsageError
from schemas.order import hashes
from schemas.reader import CompiledSet

SAMPLE = 1000
"""Rows of a dataset."""
_READ = 1000
"""Characters of a row that are looked at."""
_CONFIDENT = 1.96
_SHOWN = 10


def require() -> Any:
    """The detector; UsageError where it is not installed."""
    try:
        import py3langid  # an extra
    except ImportError:
        raise UsageError("--languages", "languages are told by py3langid", install.extra("languages")) from None
    return py3langid


def shares(texts: list[str], rows: int) -> dict[str, Any]:
    """The share of each language among `rows` rows, of which these texts are a sample."""
    detector = require()
    found = Counter(detector.classify(text[:_READ])[0] if text.strip() else "none" for text in texts)
    size = max(1, len(texts))
    left = 1 - size / rows if rows > size else 0.0  # of a finite population: Cochran, Sampling Techniques, 3.2
    return {
        "sample": len(texts),
        "exact": len(texts) >= rows,
        "shares": [
            {
                "language": name,
                "rows": count,
                "share": round(count / size, 6),
                "error": round(_CONFIDENT * (left * count / size * (1 - count / size) / size) ** 0.5, 6),
            }
            for name, count in sorted(found.items(), key=lambda one: (-one[1], one[0]))
        ],
    }


def of_set(opened: CompiledSet) -> dict[str, Any]:
    """The languages of each dataset of a set."""
    require()
    samples: dict[str, list[tuple[int, int, str]]] = {one["name"]: [] for one in opened.manifest["datasets"]}
    rows, vocabulary = Counter[str](), TokenBytes(opened)
    for split in SPLITS:
        for batch in batches_of(opened, split):
            names = batch.column("dataset").to_pylist()
            keys = hashes(0, f"languages:{split}", np.arange(len(names)) + rows.total()).tolist()
            rows.update(names)
            for name, key, text in zip(names, keys, texts_of(batch, vocabulary), strict=True):
                if len(samples[name]) < SAMPLE or -key > samples[name][0][0]:
                    entry = -key, rows.total(), text[:_READ]
                    (heapq.heappush if len(samples[name]) < SAMPLE else heapq.heapreplace)(samples[name], entry)
    return {name: shares([text for _, _, text in sample], rows[name]) for name, sample in samples.items()}


def said(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The languages of datasets as lines of text."""
    rows: list[Cells] = [["languages", "rows looked at", "share"]]
    for name, one in found.items():
        for language in one["shares"][:_SHOWN]:
            error = "" if one["exact"] else f" ± {language['error']:.1%}"
            rows.append([f"{name}: {language['language']}", f"{one['sample']:,}", f"{language['share']:.1%}{error}"])
    yield from table(rows)
