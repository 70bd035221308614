"""Folders of vision models that need no download, and images of known sizes."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from tokenizers import AddedToken, Tokenizer

import registry
from tests.support.sets import Row

VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
START, END, IMAGE, VIDEO = range(8005, 8009)
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}<tool_call>{{ call | tojson }}</tool_call>{%- endfor -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", "patch_size": 14,
    "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 12845056,
}  # fmt: skip
SIZES = {"a.png": (112, 56), "b.png": (56, 140), "c.png": (56, 56)}


FRAMES = ("v/0.png", "v/1.png", "v/2.png")


def make_model(folder: Path, processor: Row | None = PROCESSOR, template: str = TEMPLATE) -> Path:
    """A folder with the demo tokenizer, four more control tokens, and the processor's file of a vision model."""
    folder.mkdir()
    spec = json.loads((registry.DEMO_TOKENIZER / "tokenizer.json").read_text("utf-8"))
    like = spec["added_tokens"][0]
    spec["added_tokens"] += [like | {"id": START + n, "content": token} for n, token in enumerate(VISION)]
    config = json.loads((registry.DEMO_TOKENIZER / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}), "utf-8")
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor), "utf-8")
    return folder


def draw_images(folder: Path) -> None:
    for name, size in [*SIZES.items(), *((frame, (56, 56)) for frame in FRAMES)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "navy").save(folder / name)


VISION_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content -%}
{%- if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif -%}
{%- endfor -%}
{%- endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def vision_model(folder: Path) -> Path:
    """Write the files of a Qwen2-VL folder that the compiler reads: the demo vocabulary plus the tokens of images."""
    if folder.exists():
        return folder
    folder.mkdir()
    tokenizer = Tokenizer.from_file(str(registry.DEMO_TOKENIZER / "tokenizer.json"))
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((registry.DEMO_TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = VISION_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    processor = {"processor_class": "Qwen2VLProcessor", "image_processor_type": "Qwen2VLImageProcessor"}
    sizes = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 1003520}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | sizes), encoding="utf-8")
    return folder
