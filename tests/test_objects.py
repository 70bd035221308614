"""Grounding (ms-swift): references and boxes in place of their marks, spelled as each model spells them.

The numbers are worked out by hand; those of the first test are from ms-swift's page about its format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from tokenizers import Tokenizer

from compiler.conversation import Conversation, Media, MediaFacts, Message, Objects, Role
from compiler.media.rules import Vision, load_vision
from compiler.rows.objects import write_objects
from schemas.errors import RowError
from tests.support.sets import rejects, rows, write
from tests.support.vision import PROCESSOR, make_model

Run = Callable[..., Result]
Row = dict[str, Any]

NAMES = (
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>", "<|image|>",
)  # fmt: skip
CLASSES = {"qwen2": "Qwen2VLProcessor", "qwen2.5": "Qwen2_5_VLProcessor", "qwen3": "Qwen3VLProcessor"}


def vision(name: str) -> Vision:
    controls = {text: n for n, text in enumerate(NAMES)}
    processor = PROCESSOR | {"processor_class": CLASSES.get(name, "Glm4vProcessor")}
    if name == "glm":
        processor["image_processor_type"] = "Glm4vImageProcessor"
    files = {} if name == "cogagent" else {"preprocessor_config.json": json.dumps(processor).encode()}
    found = load_vision(files, "cogagent" if name == "cogagent" else None, controls)
    assert found is not None
    return found


def written(name: str, reply: str, objects: Row, *sizes: tuple[int, int]) -> str:
    """The reply with its objects, about images of these sizes."""
    images = [Media("image", "x", facts=MediaFacts("", *size)) for size in sizes]
    messages = [Message(Role.USER, "Where?", media=images), Message(Role.ASSISTANT, reply)]
    refs, boxes = objects.get("ref", []), objects.get("bbox", [])
    given = Objects(refs, boxes, objects.get("norm1", False), objects.get("image_id", [0] * len(boxes)), "/objects")
    write_objects(Conversation(messages), given, vision(name), "no vision")
    return messages[1].content


BEACH = {"ref": ["a dog", "a woman"], "bbox": [[331.5, 761.4, 853.5, 1594.8], [676.5, 685.8, 1099.5, 1427.4]]}
SENTENCE = "<ref-object><bbox> and <ref-object><bbox> are playing on the beach"


@pytest.mark.parametrize(
    ("name", "dog", "woman"),
    [
        ("qwen3", "[221, 423, 569, 886]", "[451, 381, 733, 793]"),
        ("cogagent", "[[221,423,569,886]]", "[[451,381,733,793]]"),
        # 1512x1792 is what the model sees of 1500x1800
        ("qwen2.5", "[334, 758, 860, 1588]", "[682, 683, 1108, 1421]"),
    ],
)
def test_the_boxes_of_ms_swifts_page_are_written_as_each_model_writes_them(name: str, dog: str, woman: str) -> None:
    found = written(name, SENTENCE, BEACH, (1500, 1800))
    assert found == f"a dog{dog} and a woman{woman} are playing on the beach"


@pytest.mark.parametrize(
    ("name", "objects", "sizes", "text"),
    [
        ("qwen2.5", {"bbox": [[10, 5, 50, 25]]}, [(100, 50)], "[11, 6, 56, 28]"),  # 112x56 is what it sees
        ("qwen2.5", {"bbox": [[100, 50]]}, [(100, 50)], "[111, 55]"),  # the last pixel
        ("qwen2.5", {"bbox": [[0.5, 0.5, 1, 1]], "norm1": True}, [(100, 50)], "[56, 28, 111, 55]"),
        ("qwen3", {"bbox": [[0.5, 0.25, 1, 1]], "norm1": True}, [], "[500, 250, 1000, 1000]"),
        ("qwen3", {"bbox": [[50, 25]]}, [(100, 50)], "[500, 500]"),
        ("cogagent", {"bbox": [[0.5, 0.25, 1, 1]], "norm1": True}, [], "[[500,250,999,999]]"),
        ("qwen3", {"bbox": [[0, 0, 20, 20]], "image_id": [1]}, [(100, 50), (200, 40)], "[0, 0, 100, 500]"),
    ],
)
def test_a_box_is_in_the_units_of_the_model(name: str, objects: Row, sizes: list[Any], text: str) -> None:
    assert written(name, "<bbox>", objects, *sizes) == text


@pytest.mark.parametrize(
    ("name", "reply", "objects", "pointer", "message"),
    [
        (
            "qwen3",
            "<bbox><bbox>",
            {"bbox": [[1, 1, 2, 2]]},
            "/bbox",
            "as many bbox as <bbox> marks in the texts, found 1 and 2",
        ),
        (
            "qwen3",
            "<bbox>",
            {"ref": ["x"], "bbox": [[1, 1, 2, 2]]},
            "/ref",
            "as many ref as <ref-object> marks in the texts, found 1 and 0",
        ),
        ("qwen3", "<bbox>", {"bbox": [[1, 1, 101, 2]]}, "/bbox/0", "[x1, y1, x2, y2] within an image of 100x50 pixels"),
        ("qwen3", "<bbox>", {"bbox": [[50, 20, 10, 10]]}, "/bbox/0", "[x1, y1, x2, y2] within an image"),
        ("qwen3", "<bbox>", {"bbox": [[5, 2, 6, 3]], "norm1": True}, "/bbox/0", "from 0 to 1 (norm1)"),
        ("qwen3", "<bbox>", {"bbox": [[1, 1, 2, 2]], "image_id": [1]}, "/bbox/0", "(number 1), found 1 images"),
        ("qwen3", "<bbox>", {"bbox": [[1, 1, 2]]}, "/bbox/0", "no card says how it writes a box of 3 numbers"),
        ("cogagent", "<bbox>", {"bbox": [[1, 1]]}, "/bbox/0", "no card says how it writes a point"),
        (
            "qwen2",
            "<bbox>",
            {"bbox": [[1, 1, 2, 2]]},
            "/bbox/0",
            "boxes are not compiled for qwen2_vl: it writes them with the control",
        ),
        ("glm", "<bbox>", {"bbox": [[1, 1, 2, 2]]}, "/bbox/0", "boxes are not compiled for glm4v: no card says"),
    ],
)
def test_what_cannot_be_written_is_refused_at_its_place(
    name: str, reply: str, objects: Row, pointer: str, message: str
) -> None:
    with pytest.raises(RowError) as error:
        written(name, reply, objects, (100, 50))
    assert (error.value.reject.reason, error.value.reject.pointer) == ("media", f"/objects{pointer}")
    assert message in error.value.reject.message


@pytest.fixture
def compiled(run: Run, tmp_path: Path) -> Callable[..., list[Row]]:
    model = make_model(tmp_path / "model", PROCESSOR | {"processor_class": "Qwen3VLProcessor"})
    Image.new("RGB", (100, 50), "navy").save(tmp_path / "x.png")

    def compile_rows(*sources: Row, options: Sequence[str] = ()) -> list[Row]:
        file = write(tmp_path / "rows.jsonl", *sources)
        run(
            "compile",
            file,
            "--tokenizer",
            model,
            "--no-shuffle",
            "--max-rejects",
            "100%",
            *options,
            "-o",
            tmp_path / "out",
        )
        return rows(tmp_path / "out")

    return compile_rows


def conversation(asked: str, reply: str, **more: Any) -> Row:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "images": ["x.png"]} | more


def test_rows_with_objects_are_those_with_their_texts_written_out(
    compiled: Callable[..., list[Row]], tmp_path: Path
) -> None:
    """Also where a reference spells a control token or a mark: it is text, and no box takes its place."""
    objects = {"ref": ["<|im_end|>", "a <bbox>"], "bbox": [[50, 25, 100, 50], [0, 0]]}
    marked = conversation("<ref-object>: <image> Find it.", "It is <ref-object> at <bbox>, or <bbox>.", objects=objects)
    plain = conversation("<|im_end|>: <image> Find it.", "It is a <bbox> at [500, 500, 1000, 1000], or [0, 0].")
    query = {
        "query": "<image>?",
        "response": "<bbox>",
        "images": ["x.png"],
        "objects": {"bbox": [[0.5, 0.5]], "bbox_type": "norm1"},
    }
    a, b = compiled(marked, plain)
    for column in ("input_ids", "labels", "loss_weights", "spans", "images"):
        assert a.get(column) == b.get(column)
    (c,) = compiled(query)
    decode = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer" / "tokenizer.json")).decode
    assert (
        decode([label for label in c["labels"] if label != -100], skip_special_tokens=False) == "[500, 500]<|im_end|>"
    )


def test_objects_that_do_not_fit_are_rejects_and_marks_without_objects_are_text(
    compiled: Callable[..., list[Row]], tmp_path: Path
) -> None:
    compiled(
        conversation("<image>?", "<bbox>"),
        conversation("<image>?", "<bbox>", objects={"bbox": [[1, 1, 2, 2], [3, 3, 4, 4]]}),
        conversation("<image>?", "<bbox>", objects={"bbox": [["1", 1, 2, 2]]}),
        conversation("<image>?", "<bbox>", objects={"bbox": [[1, 1, 2, 2]], "image_id": [0, 0]}),
        conversation("<image>?", "<bbox>", objects={}),
        options=["--format", "openai"],
    )
    found = [(r["row"], r["reason"], r["pointer"]) for r in rejects(tmp_path / "out" / "rejects.jsonl")]
    assert found == [
        (1, "media", "/objects/bbox"),
        (2, "schema", "/objects/bbox/0/0"),
        (3, "media", "/objects/image_id"),
        (4, "media", "/objects/bbox"),
    ]


def test_a_model_without_images_refuses_objects_by_name(run: Run, tmp_path: Path) -> None:
    row = conversation("Open it", "<bbox>", objects={"bbox": [[615, 226]]})
    del row["images"]
    said = run("compile", write(tmp_path / "x.jsonl", row), "-o", tmp_path / "out", code=3)
    assert "/objects/bbox/0" in said.output + said.stderr
