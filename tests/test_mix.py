"""The plan: how many rows of which dataset, which ones, how often, on which side of the split, in which order."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from click.testing import Result
from hypothesis import given, settings

from compiler.options import MixOptions, Request, parse_mix
from compiler.sets.mix import Examples, MixPlan, make_plan
from compiler.sets.prints import again
from schemas.errors import UsageError
from schemas.reader import CompiledSet

Run = Callable[..., Result]

SEEDS = st.integers(0, 2**32)
SHARES = st.floats(0.01, 100).map(lambda share: round(share, 3)).filter(bool)


def rows(
    name: str,
    tokens: int | Sequence[int],
    trained: Sequence[int] | None = None,
    conversations: Sequence[Any] | None = None,
    cap: int | None = None,
) -> Examples:
    """Return a dataset of the plan: so many rows of one token, or rows of given lengths; all different by default."""
    lengths = np.ones(tokens, np.int64) if isinstance(tokens, int) else np.array(tokens, np.int64)
    keys = [f"{name} {i}" for i in range(len(lengths))] if conversations is None else list(map(str, conversations))
    prints = np.array([hashlib.md5(key.encode(), usedforsecurity=False).digest() for key in keys], dtype="S16")
    return Examples(lengths, lengths.copy() if trained is None else np.array(trained, np.int64), prints, cap)


def uses(plan: MixPlan, dataset: int, size: int) -> list[int]:
    """Return how often each row of a dataset is used."""
    return np.bincount(plan.position[plan.dataset == dataset], minlength=size).tolist()


def order(plan: MixPlan) -> list[tuple[int, int, int]]:
    """Return (dataset, row, repeat) in the order of the plan."""
    return list(zip(plan.dataset.tolist(), plan.position.tolist(), plan.repeat.tolist(), strict=True))


def is_even(counts: Sequence[int]) -> bool:
    return max(counts) - min(counts) <= 1


# -- shares of rows --


def test_shares_with_a_count_give_the_table_of_the_seed_article() -> None:
    # 30,000 agent rows in share 1, 380,000 chat rows in share 2, and 3,000 rows of who the model is from 128.
    requests = [Request("ms-agent", 1), Request("ms-bench", 2), Request("self-cognition", count=3000, repeats=True)]
    plan = make_plan(requests, [rows("a", 30_000), rows("b", 380_000), rows("c", 128)], MixOptions())
    assert Counter(plan.dataset.tolist()) == {0: 30_000, 1: 60_000, 2: 3_000}
    assert uses(plan, 0, 30_000) == [1] * 30_000
    assert max(uses(plan, 1, 380_000)) == 1
    assert Counter(uses(plan, 2, 128)) == {23: 72, 24: 56}  # 3,000 = 128 * 23 + 56


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), SHARES), min_size=1, max_size=5), SEEDS)
def test_every_dataset_is_within_one_row_of_its_share_and_no_row_repeats(
    given_: list[tuple[int, float]], seed: int
) -> None:
    requests = [Request(f"d{i}", share) for i, (_, share) in enumerate(given_)]
    plan = make_plan(requests, [rows(f"d{i}", size) for i, (size, _) in enumerate(given_)], MixOptions(seed=seed))
    total = min(size / share for size, share in given_)
    for i, (size, share) in enumerate(given_):
        counts = uses(plan, i, size)
        assert abs(sum(counts) - share * total) < 1
        assert max(counts) <= 1
    # The largest total: the smallest dataset for its share is used up.
    assert any(uses(plan, i, size) == [1] * size for i, (size, _) in enumerate(given_))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 200), SHARES), min_size=1, max_size=5), st.integers(1, 3000), SEEDS)
def test_a_total_is_met_to_the_row_and_its_repeats_are_even(
    given_: list[tuple[int, float]], total: int, seed: int
) -> None:
    requests = [Request(f"d{i}", share) for i, (_, share) in enumerate(given_)]
    examples = [rows(f"d{i}", size) for i, (size, _) in enumerate(given_)]
    plan = make_plan(requests, examples, MixOptions(total=total, seed=seed))
    whole = sum(share for _, share in given_)
    assert len(plan.dataset) == total
    for i, (size, share) in enumerate(given_):
        counts = uses(plan, i, size)
        assert abs(sum(counts) - total * share / whole) < 1
        assert is_even(counts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), SHARES), min_size=1, max_size=4), st.integers(0, 5), SEEDS)
def test_max_repeats_r_uses_a_row_at_most_r_times_more(
    given_: list[tuple[int, float]], repeats: int, seed: int
) -> None:
    requests = [Request(f"d{i}", share) for i, (_, share) in enumerate(given_)]
    examples = [rows(f"d{i}", size) for i, (size, _) in enumerate(given_)]
    plan = make_plan(requests, examples, MixOptions(max_repeats=repeats, seed=seed))
    total = min(size * (repeats + 1) / share for size, share in given_)
    every = [uses(plan, i, size) for i, (size, _) in enumerate(given_)]
    for (_, share), counts in zip(given_, every, strict=True):
        assert max(counts) <= repeats + 1
        assert is_even(counts)
        assert abs(sum(counts) - share * total) < 1
    assert any(set(counts) == {repeats + 1} for counts in every)


def test_max_repeats_0_is_the_default_and_1_doubles_the_total() -> None:
    requests, examples = [Request("a", 1), Request("b", 2)], [rows("a", 10), rows("b", 100)]
    none, zero, one = (make_plan(requests, examples, MixOptions(max_repeats=r)) for r in (None, 0, 1))
    assert order(none) == order(zero)
    assert Counter(none.dataset.tolist()) == {0: 10, 1: 20}
    assert Counter(one.dataset.tolist()) == {0: 20, 1: 40}
    assert uses(one, 0, 10) == [2] * 10


def test_a_total_of_less_than_a_row_is_told_from_rows_that_were_all_rejected() -> None:
    with pytest.raises(UsageError, match=r"^--total 10: it asks for less than one row\n  Ask for more\.$"):
        make_plan([Request("a", 1)], [rows("a", [100, 100])], MixOptions(mix_unit="tokens", total=10))
    with pytest.raises(UsageError, match=r"^compile: there is no row to write\n  Every row was rejected"):
        make_plan([Request("a")], [rows("a", 0)], MixOptions())


def test_a_total_that_needs_more_repeats_than_allowed_names_the_dataset() -> None:
    requests, examples = [Request("small", 1), Request("big", 1)], [rows("small", 10), rows("big", 1000)]
    with pytest.raises(UsageError) as error:
        make_plan(requests, examples, MixOptions(total=100, max_repeats=1))
    assert str(error.value) == (
        "--total 100: 'small' would need 50 rows, it has 10 and may use each row 2 times\n"
        "  Raise --max-repeats, lower --total, or give it a smaller share."
    )
    plan = make_plan(requests, examples, MixOptions(total=100, max_repeats=4))
    assert uses(plan, 0, 10) == [5] * 10
    assert sum(uses(plan, 1, 1000)) == 50


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        (Request("a", 1), MixOptions(total=10**12)),
        (Request("a", 1), MixOptions(total=10**12, mix_unit="tokens")),
        (Request("a", count=10**12), MixOptions(max_repeats=10**12)),
    ],
)
def test_a_set_that_would_not_fit_into_memory_is_refused_in_words(request_: Request, options: MixOptions) -> None:
    with pytest.raises(UsageError, match=r"--mix a: it would be [0-9,]{11,} rows, a set may have 200,000,000"):
        make_plan([request_], [rows("a", 5)], options)


def test_a_total_below_what_there_is_needs_no_repeat() -> None:
    plan = make_plan(
        [Request("a", 1), Request("b", 3)], [rows("a", 50), rows("b", 50)], MixOptions(total=40, max_repeats=0)
    )
    assert Counter(plan.dataset.tolist()) == {0: 10, 1: 30}
    assert not plan.repeat.any()


# -- shares of tokens --


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["tokens", "trained_tokens"]),
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=60), SHARES),
        min_size=1,
        max_size=4,
    ),
    st.one_of(st.none(), st.integers(1, 50_000)),
    SEEDS,
)
def test_shares_of_tokens_are_met_to_less_than_one_row(
    unit: str, given_: list[tuple[list[tuple[int, int]], float]], total: int | None, seed: int
) -> None:
    requests, examples, measures = [], [], []
    for i, (lengths, share) in enumerate(given_):
        tokens = [max(pair) for pair in lengths]
        trained = [min(pair) for pair in lengths]
        requests.append(Request(f"d{i}", share))
        examples.append(rows(f"d{i}", tokens, trained))
        measures.append(tokens if unit == "tokens" else trained)
    scale = min(sum(m) / share for m, (_, share) in zip(measures, given_, strict=True))
    if total is not None:
        scale = total / sum(share for _, share in given_)
    try:
        plan = make_plan(requests, examples, MixOptions(mix_unit=unit, total=total, seed=seed))
    except UsageError:
        # Nothing to write, and said so: every dataset was asked for less than a row.
        assert all(share * scale < max(m) for m, (_, share) in zip(measures, given_, strict=True))
        return
    for i, (measure, (_, share)) in enumerate(zip(measures, given_, strict=True)):
        counts = uses(plan, i, len(measure))
        realized = sum(n * m for n, m in zip(counts, measure, strict=True))
        assert abs(realized - share * scale) < max(measure)
        assert is_even(counts)


def test_shares_of_tokens_give_fewer_of_the_longer_rows() -> None:
    examples = [rows("long", [100] * 50), rows("short", [10] * 1000)]
    plan = make_plan([Request("long", 1), Request("short", 1)], examples, MixOptions(mix_unit="tokens"))
    assert Counter(plan.dataset.tolist()) == {0: 50, 1: 500}  # 5,000 tokens each
    assert [draw.target for draw in plan.draws] == [5000, 5000]


def test_shares_of_trained_tokens_look_at_labels_only() -> None:
    examples = [rows("quiet", [100] * 50, trained=[1] * 50), rows("loud", [100] * 50, trained=[100] * 50)]
    plan = make_plan([Request("quiet", 1), Request("loud", 4)], examples, MixOptions(mix_unit="trained_tokens"))
    assert Counter(plan.dataset.tolist()) == {0: 50, 1: 2}  # 50 and 200 trained tokens


# -- counts, num_samples, everything --


@pytest.mark.parametrize(("count", "expected"), [(1, {0: 9, 1: 1}), (10, {1: 10}), (25, {2: 5, 3: 5})])
def test_a_count_is_exact_and_repeats_evenly(count: int, expected: dict[int, int]) -> None:
    plan = make_plan([Request("a", count=count)], [rows("a", 10)], MixOptions(seed=5, max_repeats=2))
    assert Counter(uses(plan, 0, 10)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MixOptions(), "--mix a#25: it has 10 rows that can be used, and no row may be repeated\n"
         "  Add --max-repeats 2, or ask for at most 10."),
        (MixOptions(max_repeats=1), "--mix a#25: it has 10 rows that can be used, and each may be used 2 times\n"
         "  Add --max-repeats 2, or ask for at most 20."),
    ],
)  # fmt: skip
def test_a_count_repeats_rows_only_as_often_as_max_repeats_says(options: MixOptions, message: str) -> None:
    with pytest.raises(UsageError) as error:
        make_plan([Request("a", count=25)], [rows("a", 10)], options)
    assert str(error.value) == message


@pytest.mark.parametrize(("cap", "expected"), [(4, {0: 6, 1: 4}), (10, {1: 10}), (23, {2: 7, 3: 3})])
def test_num_samples_takes_that_many_rows_and_repeats_evenly(cap: int, expected: dict[int, int]) -> None:
    plan = make_plan([Request("a")], [rows("a", 10, cap=cap)], MixOptions())
    assert Counter(uses(plan, 0, 10)) == expected


def test_num_samples_limits_what_a_share_can_use() -> None:
    examples = [rows("a", 100, cap=10), rows("b", 100)]
    plan = make_plan([Request("a", 1), Request("b", 3)], examples, MixOptions())
    assert Counter(plan.dataset.tolist()) == {0: 10, 1: 30}


def test_num_samples_and_counts_are_samples_and_not_the_first_rows() -> None:
    plan = make_plan([Request("a"), Request("b", count=50)], [rows("a", 1000, cap=50), rows("b", 1000)], MixOptions())
    for dataset in (0, 1):
        used = np.flatnonzero(uses(plan, dataset, 1000))
        assert used.max() > 900
        assert 300 < used.mean() < 700


def test_a_dataset_without_share_or_count_is_used_whole() -> None:
    plan = make_plan(
        [Request("a"), Request("b", 1), Request("c", 1)],
        [rows(n, s) for n, s in zip("abc", (7, 5, 50), strict=True)],
        MixOptions(),
    )
    assert Counter(plan.dataset.tolist()) == {0: 7, 1: 5, 2: 5}


# -- duplicates --


def test_duplicates_are_counted_and_kept_unless_dedup_is_asked_for() -> None:
    examples = [rows("a", 5, conversations="xyxxz"), rows("b", 4, conversations="zwwv")]
    kept = make_plan([Request("a"), Request("b")], examples, MixOptions())
    dropped = make_plan([Request("a"), Request("b")], examples, MixOptions(dedup="exact"))
    assert [(d.duplicates, d.dropped) for d in kept.draws] == [(2, 0), (2, 0)]
    assert [(d.duplicates, d.dropped) for d in dropped.draws] == [(2, 2), (2, 2)]
    assert [uses(kept, 0, 5), uses(kept, 1, 4)] == [[1] * 5, [1] * 4]
    # The first one stays, in the order of the mix: z of b was in a already.
    assert [uses(dropped, 0, 5), uses(dropped, 1, 4)] == [[1, 1, 0, 0, 1], [0, 1, 0, 1]]


def test_dedup_happens_before_the_shares_are_filled() -> None:
    examples = [rows("a", 6, conversations="xxxyyz"), rows("b", 100)]
    plan = make_plan([Request("a", 1), Request("b", 2)], examples, MixOptions(dedup="exact"))
    assert Counter(plan.dataset.tolist()) == {0: 3, 1: 6}


def test_a_dataset_that_is_all_duplicates_cannot_have_a_share() -> None:
    examples = [rows("a", 2, conversations="xy"), rows("b", 2, conversations="yx")]
    with pytest.raises(UsageError, match="--mix b: each of its 2 rows repeats a conversation that came before"):
        make_plan([Request("a", 1), Request("b", 1)], examples, MixOptions(dedup="exact"))
    plan = make_plan([Request("a", 1), Request("b")], examples, MixOptions(dedup="exact"))
    assert Counter(plan.dataset.tolist()) == {0: 2}


# -- validation --


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=4, max_size=120), st.integers(1, 60), SEEDS)
def test_a_conversation_is_never_on_both_sides_and_the_split_is_as_full_as_it_can_be(
    groups: list[int], wanted: int, seed: int
) -> None:
    half = len(groups) // 2
    examples = [
        rows("a", half, conversations=groups[:half]),
        rows("b", len(groups) - half, conversations=groups[half:]),
    ]
    requests = [Request("a"), Request("b", count=len(groups), repeats=True)]  # b's rows are repeated
    try:
        plan = make_plan(requests, examples, MixOptions(val_size=wanted, seed=seed))
    except UsageError:
        return
    conversation = [groups[p if d == 0 else half + p] for d, p, _ in order(plan)]
    val = {key for key, side in zip(conversation, plan.val, strict=True) if side}
    train = {key for key, side in zip(conversation, plan.val, strict=True) if not side}
    assert not val & train
    assert train
    size = int(plan.val.sum())
    assert 0 < size <= wanted
    sizes = Counter(conversation)
    missing = wanted - size
    assert missing == 0 or all(sizes[key] > missing for key in train)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 400), st.floats(0.001, 0.999), SEEDS)
def test_the_split_is_exact_where_every_conversation_is_there_once(size: int, fraction: float, seed: int) -> None:
    for asked, expected in ((fraction, round(fraction * size)), (max(1, size // 3), max(1, size // 3))):
        options = MixOptions(val_size=asked, seed=seed)
        if 0 < expected < size:
            assert make_plan([Request("a")], [rows("a", size)], options).val.sum() == expected
        else:
            with pytest.raises(UsageError, match="expected at least 1 and not all"):
                make_plan([Request("a")], [rows("a", size)], options)


def test_the_split_is_exact_where_every_conversation_is_there_twice() -> None:
    plan = make_plan([Request("a", count=200)], [rows("a", 100)], MixOptions(val_size=0.1, max_repeats=1))
    assert plan.val.sum() == 20
    assert len({p for (_, p, _), side in zip(order(plan), plan.val, strict=True) if side}) == 10


def test_more_rows_do_not_move_a_conversation_between_orders_of_the_split() -> None:
    """The split goes by conversation, not by place: the same rows in another order give the same validation set."""
    keys = list(range(100))
    one = make_plan([Request("a")], [rows("a", 100, conversations=keys)], MixOptions(val_size=10))
    two = make_plan([Request("a")], [rows("a", 100, conversations=keys[::-1])], MixOptions(val_size=10))
    first = {p for (_, p, _), side in zip(order(one), one.val, strict=True) if side}
    assert {99 - p for (_, p, _), side in zip(order(two), two.val, strict=True) if side} == first


# -- order --


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_seed_decides_order_sample_and_split(seed: int) -> None:
    requests, examples = [Request("a", 1), Request("b", 1)], [rows("a", 60), rows("b", 500)]
    options = MixOptions(seed=seed, val_size=20)
    plan, again = (make_plan(requests, examples, options) for _ in range(2))
    assert order(plan) == order(again)
    assert plan.val.tolist() == again.val.tolist()
    other = make_plan(requests, examples, MixOptions(seed=seed + 1, val_size=20))
    assert order(plan) != order(other)
    assert uses(plan, 1, 500) != uses(other, 1, 500)
    assert {x for x, v in zip(order(plan), plan.val, strict=True) if v} != {
        x for x, v in zip(order(other), other.val, strict=True) if v
    }


def test_the_shuffle_mixes_datasets_and_repeats() -> None:
    plan = make_plan(
        [Request("a", count=500), Request("b", count=500)], [rows("a", 100), rows("b", 500)], MixOptions(max_repeats=4)
    )
    first_half = Counter(plan.dataset[:500].tolist())
    assert 150 < first_half[0] < 350
    assert len(set(plan.repeat[:100].tolist())) == 5
    assert order(plan) != sorted(order(plan))


def test_another_dataset_does_not_reorder_the_others() -> None:
    two = make_plan([Request("a"), Request("b")], [rows("a", 200), rows("b", 300)], MixOptions(seed=9))
    three = make_plan(
        [Request("a"), Request("new"), Request("b")],
        [rows("a", 200), rows("new", 100), rows("b", 300)],
        MixOptions(seed=9),
    )
    renumbered = [({0: 0, 2: 1}[d], p, r) for d, p, r in order(three) if d != 1]
    assert renumbered == order(two)


def test_no_shuffle_keeps_datasets_in_the_order_of_the_mix_and_rows_in_file_order() -> None:
    plan = make_plan(
        [Request("b", count=5), Request("a")],
        [rows("b", 2), rows("a", 3)],
        MixOptions(shuffle=False, seed=1, max_repeats=2),
    )
    *passes, last = order(plan)[:5]
    assert passes == [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    assert last in [(0, 0, 2), (0, 1, 2)]
    assert order(plan)[5:] == [(1, 0, 0), (1, 1, 0), (1, 2, 0)]


# -- from files --


def write(path: Path, questions: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"instruction": q, "output": f"About {q}."}) + "\n" for q in questions), "utf-8")
    return path


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text("utf-8"))


def test_the_balance_counts_every_row_of_every_dataset_once(run: Run, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [f"a{i}" for i in range(20)] + ["a0", "a1", "a1"])
    with a.open("a") as file:
        file.write('{"instruction": "no output"}\nnot JSON\n')
    b = write(tmp_path / "b.jsonl", [f"b{i}" for i in range(6)] + ["a5", "b0"])
    out = tmp_path / "out"
    run("compile", a, b, "--mix", "a:1,b:1", "--total", 30, "--dedup", "exact", "--val-size", 4,
        "--max-rejects", "100%", "-o", out)  # fmt: skip
    entries = {entry["name"]: entry["balance"] for entry in manifest(out)["datasets"]}
    # a: 25 lines, 2 bad, 3 said before; 15 of the 20 left are used. b: 8 lines, 2 said before; 15 rows from 6.
    assert entries["a"] == {
        "read": 25, "expanded": 0, "cleaned": 0, "rejected": 2, "duplicates": 3,
        "sampled_out": 5, "repeats": 0, "in_shards": 15,
    }  # fmt: skip
    assert entries["b"] == {
        "read": 8, "expanded": 0, "cleaned": 0, "rejected": 0, "duplicates": 2,
        "sampled_out": 0, "repeats": 9, "in_shards": 15,
    }  # fmt: skip
    assert manifest(out)["balance"] == {
        "read": 33, "expanded": 0, "cleaned": 0, "rejected": 2, "duplicates": 5,
        "sampled_out": 5, "repeats": 9, "in_shards": 30,
    }  # fmt: skip
    opened = CompiledSet.open(out)
    written = [row for split in ("train", "val") for row in opened.rows(split)]
    assert len(written) == 30
    assert manifest(out)["splits"]["val"]["rows"] == len(list(opened.rows("val"))) <= 4
    assert Counter(row["dataset"] for row in written) == {"a": 15, "b": 15}
    assert Counter(Counter(row["row"] for row in written if row["dataset"] == "b").values()) == {2: 3, 3: 3}
    assert (out / "rejects.jsonl").read_text().count("\n") == 2


def test_duplicates_are_reported_when_they_are_kept(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["x", "y", "x"])
    write(tmp_path / "b.jsonl", ["y", "z"])
    result = run("compile", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "-o", tmp_path / "out")
    assert [entry["duplicates"] for entry in manifest(tmp_path / "out")["datasets"]] == [1, 1]
    assert [entry["balance"]["duplicates"] for entry in manifest(tmp_path / "out")["datasets"]] == [0, 0]
    header, a, b, total = [line.split() for line in result.stdout.splitlines()[:4]]
    assert (header[-1], a[-1], b[-1], total[-1]) == ("duplicates", "1", "1", "2")


def test_the_same_text_from_two_formats_is_one_conversation(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["x"])
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "About x."}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": turns}))
    run("compile", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--dedup", "exact", "-o", tmp_path / "out")
    assert manifest(tmp_path / "out")["balance"]["duplicates"] == 1


def test_no_shuffle_writes_files_in_the_order_given(run: Run, tmp_path: Path) -> None:
    for name in "zam":
        write(tmp_path / f"{name}.jsonl", [f"{name}{i}" for i in range(3)])
    run("compile", *(tmp_path / f"{name}.jsonl" for name in "zam"), "--no-shuffle", "-o", tmp_path / "out")
    found = [(row["dataset"], row["row"]) for row in CompiledSet.open(tmp_path / "out").rows("train")]
    assert found == [(name, i) for name in "zam" for i in range(3)]


def test_counts_and_shares_and_everything_can_be_mixed(run: Run, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", [f"{name}{i}" for i in range(12)]) for name in "abcd"]
    run("compile", *files, "--mix", "a:1,b:0.5,c#10,d", "-o", tmp_path / "out")
    asked = [
        (entry["name"], entry["share"], entry["count"], entry["realized"]["rows"])
        for entry in manifest(tmp_path / "out")["datasets"]
    ]
    assert asked == [("a", 1.0, None, 12), ("b", 0.5, None, 6), ("c", None, 10, 10), ("d", None, None, 12)]


# -- usage --


def test_a_mix_names_shares_counts_and_everything() -> None:
    assert parse_mix("agent:1, bench:2.5 ,extra#500,all") == (
        Request("agent", share=1.0), Request("bench", share=2.5), Request("extra", count=500), Request("all"),
    )  # fmt: skip


def test_a_name_in_quotes_may_have_every_sign() -> None:
    assert parse_mix('"a,b":1, "c#1"#5 ,"d.e:f", "g""h" : 2') == (
        Request("a,b", share=1.0), Request("c#1", count=5), Request("d.e:f"), Request('g"h', share=2.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("agent:1,agent:2", "--mix agent:1,agent:2: 'agent' is named twice\n  Add its shares up."),
        ("agent:x", "--mix agent:x: expected a number after 'agent', found 'x'\n  --mix agent:1,bench:2"),
        ("a#b:x", "--mix a#b:x: expected a number after 'a', found 'b:x'\n  --mix agent:1,bench:2; a name with such "
         "signs is in quotes: \"a#b:x\""),
        ('"a,b', "--mix \"a,b: a quote is never closed\n  --mix '\"A, B\",...'"),
        ('"a" 1', "--mix \"a\" 1: expected : or # after a, found '1'"),
        ("agent:", "--mix agent:: expected a number after 'agent', found ''\n  --mix agent:1,bench:2"),
        ("agent#1.5", "--mix agent#1.5: expected a number after 'agent', found '1.5'\n  --mix agent:1,bench:2"),
        ("agent:0", "--mix agent:0: expected NAME:SHARE or NAME#ROWS with a number above 0, found 'agent:0'"),
        ("agent:-1", "--mix agent:-1: expected NAME:SHARE or NAME#ROWS with a number above 0, found 'agent:-1'"),
        ("agent:nan", "--mix agent:nan: expected NAME:SHARE or NAME#ROWS with a number above 0, found 'agent:nan'"),
        ("agent:inf", "--mix agent:inf: expected NAME:SHARE or NAME#ROWS with a number above 0, found 'agent:inf'"),
        ("agent#0", "--mix agent#0: expected NAME:SHARE or NAME#ROWS with a number above 0, found 'agent#0'"),
        (
            "agent#9999999999999",
            "--mix agent#9999999999999: expected NAME:SHARE or NAME#ROWS with a number above 0 and at most "
            "1,000,000,000,000 rows, found 'agent#9999999999999'",
        ),
        (":1", "--mix :1: expected NAME:SHARE or NAME#ROWS with a number above 0, found ':1'"),
        (" , ,", "--mix: names no dataset\n  --mix agent:1,bench:2"),
    ],
)  # fmt: skip
def test_a_mix_that_cannot_be_read_says_where(mix: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_mix(mix)
    assert str(error.value) == message


def test_a_dataset_without_a_usable_row_cannot_have_a_share_or_a_count() -> None:
    for request in (Request("empty", 1), Request("empty", count=3)):
        with pytest.raises(UsageError, match="--mix empty: the dataset has no row that could be used"):
            make_plan([request, Request("a", 1)], [rows("empty", 0), rows("a", 5)], MixOptions())


@pytest.mark.parametrize("size", ["nan", "inf", "1e400", "1.5", "-1"])
def test_a_val_size_that_is_no_fraction_and_no_number_of_rows_is_refused(run: Run, tmp_path: Path, size: str) -> None:
    write(tmp_path / "a.jsonl", "abcdef")
    result = run("compile", tmp_path / "a.jsonl", "--val-size", size, "-o", tmp_path / "out", code=2)
    assert "--val-size" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--total", "3"], ["--max-repeats", "1"], ["--mix-unit", "tokens"]])
def test_an_option_of_shares_without_a_share_is_refused(run: Run, tmp_path: Path, option: list[str]) -> None:
    write(tmp_path / "a.jsonl", "abcdef")
    result = run("compile", tmp_path / "a.jsonl", *option, "-o", tmp_path / "out", code=2)
    assert option[0] in result.stderr
    assert "share" in result.stderr


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_a_row_repeats_one_before_it_where_both_halves_of_their_prints_are_equal(halves: list[tuple[int, int]]) -> None:
    prints = [first.to_bytes(8) + second.to_bytes(8) for first, second in halves]
    found = again(np.array(prints, "S16"))
    assert found.tolist() == [one in prints[:place] for place, one in enumerate(prints)]
