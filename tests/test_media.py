"""Images and videos as references: the files they may name, their facts, their number of tokens.

The oracle is transformers' own image and video code. Counts for videos need torch and torchvision there, and are
skipped without them; the numbers written here are worked out by hand.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import random
import struct
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis.strategies as st
import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import ExifTags, Image

import registry
from compiler.conversation import MediaFacts
from compiler.media import image as image_module
from compiler.media.paths import resolve
from compiler.media.probe import probe_frames, probe_image, probe_video
from compiler.media.resize import pixel_limit
from compiler.media.rules import Vision, load_vision
from compiler.tokenizer.tokenizer import Tokenizer
from schemas import check_config, schema
from schemas.errors import InputError, Reason, RowError, UsageError
from tests.support.shared import shared

CONTROLS = {
    "<|endoftext|>": 0, "<|vision_start|>": 1, "<|vision_end|>": 2, "<|image_pad|>": 3, "<|video_pad|>": 4,
    "<|begin_of_image|>": 5, "<|end_of_image|>": 6, "<|image|>": 7, "<image>": 8, "<start_of_image>": 9,
    "<image_soft_token>": 10, "<end_of_image>": 11,
}  # fmt: skip
QWEN2_VL = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
"""As published with Qwen2-VL and Qwen2.5-VL (which says Qwen2_5_VLProcessor)."""
QWEN3_VL = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
GLM4V = {
    "image_processor_type": "Glm4vImageProcessor",
    "processor_class": "Glm4vProcessor",
    "size": {"shortest_edge": 12544, "longest_edge": 9633792},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


LLAVA = {
    "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "do_center_crop": True,
    "crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336},
}  # fmt: skip
LLAVA_WHOLE = {
    "processor_class": "LlavaProcessor", "patch_size": 14, "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}  # fmt: skip
"""As published with LLaVA-1.5: preprocessor_config.json and processor_config.json."""
GEMMA3 = {
    "image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor", "do_pan_and_scan": None,
    "size": {"height": 896, "width": 896},
}  # fmt: skip


def vision(config: dict[str, Any] | None = None, name: str | None = None, **more: dict[str, Any]) -> Vision:
    """The vision of a folder with a preprocessor_config.json, and with other files by their names' stems."""
    files = {} if config is None else {"preprocessor_config.json": json.dumps(config).encode()}
    loaded = load_vision(files | {f"{k}.json": json.dumps(v).encode() for k, v in more.items()}, name, CONTROLS)
    assert loaded is not None
    return loaded


def facts(width: int, height: int, frames: int = 1, fps: float | None = None) -> MediaFacts:
    return MediaFacts("", width, height, frames, fps)


def reject_of(act: Callable[[], object]) -> str:
    """The message of the media reject that the action ends with."""
    with pytest.raises(RowError) as error:
        act()
    assert error.value.reject.reason is Reason.MEDIA
    return error.value.reject.message


# -- paths --


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A media folder with a/b.png in it, and a file beside it that no reference may reach."""
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "b.png").write_bytes(b"inside")
    (tmp_path / "secret.png").write_bytes(b"outside")
    return tmp_path / "root"


def test_a_reference_is_a_path_under_the_media_folder(root: Path) -> None:
    for uri in ("a/b.png", "./a//b.png", str(root / "a" / "b.png")):
        assert resolve(root, uri).read_bytes() == b"inside"


def test_the_media_folder_may_be_a_link_and_hold_links(root: Path) -> None:
    linked = root.parent / "linked"
    linked.symlink_to(root)
    (root / "alias.png").symlink_to(root / "a" / "b.png")
    for uri in ("alias.png", str(linked / "a" / "b.png"), str(root / "a" / "b.png")):
        assert resolve(linked, uri) == root.resolve() / "a" / "b.png"


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("", "it is empty"),
        ("../secret.png", "it contains '..'"),
        ("a/../../secret.png", "it contains '..'"),
        ("a/../a/b.png", "it contains '..'"),
        ("a\\..\\b.png", "it contains '..'"),
        ("/etc/passwd", "an absolute path outside"),
        ("out.png", "a link that leads outside"),
        ("out/secret.png", "a link that leads outside"),
        ("http://x.org/a.png", "scheme"),
        ("HTTPS://x.org/a.png", "scheme"),
        ("s3://bucket/a.png", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("data:image/png;base64," + "A" * 10_000, "scheme"),
        ("a/b.png\0.jpg", "NUL"),
        ("a/c.png", "no such file"),
        ("a/b.png/c", "cannot be opened"),
        ("circle.png", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        ("a", "a folder"),
        ("pipe", "not a regular file"),
    ],
)
def test_a_reference_to_anything_else_is_a_reject_that_says_what_to_do(root: Path, uri: str, what: str) -> None:
    (root / "out").symlink_to(root.parent)
    (root / "out.png").symlink_to(root.parent / "secret.png")
    (root / "circle.png").symlink_to(root / "circle.png")
    os.mkfifo(root / "pipe")
    with pytest.raises(RowError) as error:
        resolve(root, uri, "/images/0")
    reject = error.value.reject
    assert (reject.reason, reject.pointer) == (Reason.MEDIA, "/images/0")
    assert what in reject.message
    assert "--media-dir" in reject.message
    assert str(root) not in reject.message  # rejects are the same wherever the images lie
    assert repr(uri[:40])[:-1] in reject.message
    assert len(reject.message) < 500


PARTS = st.sampled_from(["..", ".", "a", "b.png", "out", "", "/", "~", "//", "\\", "\0", "%2e%2e", "http:"]) | st.text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS, max_size=5).map("/".join))
def test_whatever_a_reference_says_it_leads_into_the_media_folder_or_nowhere(root: Path, uri: str) -> None:
    if not (root / "out").exists():
        (root / "out").symlink_to(root.parent)
    try:
        found = resolve(root, uri)
    except RowError as error:
        assert error.reject.reason is Reason.MEDIA
    else:
        assert found.read_bytes() == b"inside"


# -- images --


def screen(width: int = 64, height: int = 40, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def put(folder: Path, data: bytes, name: str = "picture") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2, rows: bytes | None = None) -> bytes:
    """A PNG written by hand; `more` are chunks that follow the pixels."""
    size = 1 + width * depth // 8 * {0: 1, 2: 3}[colour]
    pixels = zlib.compress(bytes(size * height) if rows is None else rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), *more, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = orientation
    return data.tobytes()


def as_the_processor_sees_it(path: Path) -> tuple[int, int]:
    """(width, height) of what transformers hands to an image processor."""
    load_image = pytest.importorskip("transformers.image_utils").load_image
    with Image.open(path) as opened:
        size: tuple[int, int] = load_image(opened).size
    return size


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_has_the_size_it_has_upright(tmp_path: Path, format: str, orientation: int) -> None:
    path = put(tmp_path, encoded(screen(64, 40), format, exif=exif(orientation)))
    seen = probe_image(path)
    assert (seen.width, seen.height) == ((40, 64) if orientation in (5, 6, 7, 8) else (64, 40))
    assert (seen.width, seen.height) == as_the_processor_sees_it(path)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="x" tiff:Orientation="6"></x:xmpmeta>'


@pytest.mark.parametrize(
    "data",
    [
        png(64, 40, chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"))),
        png(64, 40, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        png(64, 40, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
        encoded(screen(64, 40), "JPEG", xmp=XMP),
        encoded(screen(64, 40), "WEBP", xmp=XMP),
    ],
    ids=["PNG, EXIF after its pixels", "PNG, XMP", "PNG, compressed XMP", "JPEG, XMP", "WebP, XMP"],
)
def test_an_orientation_counts_wherever_the_file_says_it(tmp_path: Path, data: bytes) -> None:
    """Pillow before 12 does not look for XMP in JPEG and WebP files, so that neither it nor transformers turns them."""
    path = put(tmp_path, data)
    seen = as_the_processor_sees_it(path)
    assert (probe_image(path).width, probe_image(path).height) == seen
    assert seen == (40, 64) or Image.__version__ < "12"


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encoded(screen(), "GIF", save_all=True, append_images=[screen(seed=1)]), (64, 40)),
        (encoded(screen(mode="CMYK"), "JPEG"), (64, 40)),
        (encoded(screen(mode="L"), "JPEG", progressive=True), (64, 40)),
        (encoded(screen(), "MPO", save_all=True, append_images=[screen(seed=1)]), (64, 40)),
        (encoded(screen(mode="RGBA"), "PNG"), (64, 40)),
        (encoded(screen(mode="P"), "PNG", transparency=0), (64, 40)),
        (encoded(screen(mode="1"), "PNG"), (64, 40)),
        (encoded(screen(), "PNG", save_all=True, append_images=[screen(seed=1)]), (64, 40)),
        (png(64, 40, depth=16), (64, 40)),
        (encoded(screen(), "WEBP", lossless=True), (64, 40)),
        (encoded(screen(), "BMP"), (64, 40)),
        (encoded(screen(mode="CMYK"), "TIFF", compression="tiff_lzw"), (64, 40)),
        (encoded(screen(mode="LAB"), "TIFF"), (64, 40)),
        (encoded(screen(1, 1), "JPEG"), (1, 1)),
        (encoded(screen(3000, 2), "JPEG"), (3000, 2)),
    ],
    ids=[
        "GIF of two frames", "CMYK JPEG", "grey progressive JPEG", "JPEG of two pictures", "PNG with alpha",
        "PNG with a palette", "PNG of one bit", "moving PNG", "16-bit colour PNG", "lossless WebP", "BMP", "CMYK TIFF",
        "LAB TIFF", "one pixel", "a line",
    ],
)  # fmt: skip
def test_common_images_are_read_whatever_they_are_called(tmp_path: Path, data: bytes, size: tuple[int, int]) -> None:
    path = put(tmp_path, data, "picture.txt")
    seen = probe_image(path)
    assert seen == MediaFacts(hashlib.sha256(data).hexdigest(), *size)
    assert as_the_processor_sees_it(path) == size


GREY16 = encoded(Image.fromarray(np.arange(64 * 40, dtype=np.uint16).reshape(40, 64)), "PNG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "picture: expected 1 to 134,217,728 bytes, found 0"),
        (b"not a picture, whatever its name says", "expected an image (JPEG, PNG, WEBP, GIF, BMP, TIFF by"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "expected an image"),
        (png(60000, 60000, rows=b""), "pixels"),
        (png(10000, 10000, rows=b""), "expected 1 to 89,478,485 pixels, found 10000x10000; scale it down"),
        (GREY16, "expected at most 8 bits of grey, found mode I;16: the processor would clip it at white"),
        (encoded(screen().convert("F"), "TIFF"), "expected at most 8 bits of grey, found mode F"),
        (png(64, 40)[:-12], "the PNG file is cut off or broken"),
        (png(64, 40).replace(b"IEND", b"IENX"), "the PNG file is cut off or broken"),
        (png(0, 40), "picture: expected"),
    ],
    ids=[
        "empty", "text", "EPS", "bomb", "large", "16-bit grey PNG", "float TIFF", "PNG without an end",
        "PNG with a wrong checksum", "PNG without a pixel",
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_a_reject(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in reject_of(lambda: probe_image(put(tmp_path, data), "/images/0"))


def test_a_grey_image_of_16_bits_is_white_once_transformers_has_read_it(tmp_path: Path) -> None:
    """Why such files are rejects: all but the darkest 256 of 65,536 shades become white."""
    load_image = pytest.importorskip("transformers.image_utils").load_image
    assert (np.asarray(load_image(str(put(tmp_path, GREY16)))) == 255).mean() > 0.89


@pytest.mark.parametrize("format", ["JPEG", "progressive", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_that_is_cut_off_anywhere_is_a_reject_where_decoding_it_fails(tmp_path: Path, format: str) -> None:
    options = {"progressive": True} if format == "progressive" else {}
    whole = encoded(screen(200, 120), "JPEG" if format == "progressive" else format, **options)
    found = 0
    for length in {*range(0, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 5, len(whole))}:
        path = put(tmp_path, whole[:length], f"{length}")
        try:
            with Image.open(path) as opened:
                opened.load()
            decodes = True
        except OSError:
            decodes = False
        try:
            probe_image(path)
            read = True
        except RowError:
            read, found = False, found + 1
        # A PNG without its last bytes decodes, and is nevertheless known to be cut off.
        assert read == decodes or (format == "PNG" and not read), length
    assert found > 50


SEEDS = [
    encoded(screen(mode=mode), format, **options)
    for mode, format, options in [
        ("RGB", "JPEG", {"exif": exif(6)}), ("CMYK", "JPEG", {}), ("RGB", "PNG", {"exif": exif(6)}), ("P", "GIF", {}),
        ("RGB", "WEBP", {"exif": exif(6)}), ("RGB", "BMP", {}), ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "TIFF", {"compression": "jpeg"}), ("L", "PNG", {}),
    ]
]  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12))
def test_broken_bytes_are_facts_or_a_reject_and_never_a_crash(
    tmp_path: Path, data: bytes, changes: list[tuple[float, int]]
) -> None:
    broken = bytearray(data)
    for where, value in changes:
        broken[int(where * where * len(data))] = value  # headers are where readers differ
    path = put(tmp_path, bytes(broken), hashlib.sha256(broken).hexdigest())
    try:
        assert probe_image(path).width > 0
    except RowError as error:
        assert error.reject.reason is Reason.MEDIA


def test_an_image_is_read_again_only_when_it_changes(tmp_path: Path) -> None:
    path = put(tmp_path, encoded(screen(), "PNG"))
    first = probe_image(path)
    before = image_module.read_image.cache_info()
    assert probe_image(path) is first
    assert image_module.read_image.cache_info().hits == before.hits + 1
    put(tmp_path, encoded(screen(32, 20), "PNG"))
    assert (probe_image(path).width, probe_image(path).height) == (32, 20)


def test_a_file_that_is_gone_or_closed_is_a_reject_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(RowError) as error:
        probe_image(tmp_path / "gone", "/images/3")
    assert error.value.reject.pointer == "/images/3"
    assert "expected a regular file" in reject_of(lambda: probe_image(tmp_path))


@pytest.mark.parametrize(
    ("name", "size", "tokens"), [("1", (300, 168), 66), ("2", (300, 199), 77), ("3", (300, 166), 66)]
)
def test_the_demo_images_of_llamafactory(name: str, size: tuple[int, int], tokens: int) -> None:
    """300/28 rounds to 11 columns; 168/28 and 166/28 to 6 rows, 199/28 to 7."""
    root = shared("data", "llamafactory")
    seen = probe_image(resolve(root, f"mllm_demo_data/{name}.jpg"))
    assert (seen.width, seen.height) == size
    assert vision(QWEN2_VL).image_tokens(seen) == tokens


# -- videos --


def film(path: Path, frames: int = 30, size: tuple[int, int] = (64, 48), codec: str = "mpeg4", **options: Any) -> Path:
    """Make a video with PyAV: 25 frames a second."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")],
)
def test_a_video_is_counted_frame_by_frame(tmp_path: Path, name: str, codec: str) -> None:
    """Matroska files do not say how many frames they have; transformers' PyAV reader finds none in them."""
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg writes no {codec}")
    path = film(tmp_path / name, 31, codec=codec)
    seen = probe_video(path)
    assert seen == MediaFacts(hashlib.sha256(path.read_bytes()).hexdigest(), 64, 48, 31, 25.0)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 31
    if path.suffix not in (".mkv", ".webm"):
        load_video = pytest.importorskip("transformers.video_utils").load_video
        read = load_video(str(path), backend="pyav")[1]
        assert (read.width, read.height, read.total_num_frames, read.fps) == (64, 48, 31, 25.0)


@pytest.mark.parametrize(("quarter", "size"), [(1, (48, 64)), (2, (64, 48)), (3, (48, 64))])
def test_a_video_has_the_size_it_is_shown_with(tmp_path: Path, quarter: int, size: tuple[int, int]) -> None:
    """The rotation is a matrix in the track's header (ISO 14496-12, 8.3.2): a b 0, c d 0, x y 1 as fixed point."""
    path = film(tmp_path / "a.mp4")
    a, b = [(0, 1), (-1, 0), (0, -1)][quarter - 1]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44
    path.write_bytes(data[:at] + matrix + data[at + 36 :])
    assert (probe_video(path).width, probe_video(path).height) == size


def test_a_video_that_cannot_be_used_is_a_reject(tmp_path: Path) -> None:
    whole = film(tmp_path / "a.mp4", options={"movflags": "faststart"}).read_bytes()
    assert "cut off after 2" in reject_of(lambda: probe_video(put(tmp_path, whole[: len(whole) * 8 // 10], "cut.mp4")))
    for data in (b"", b"text", whole[:40], encoded(screen(), "JPEG"), encoded(screen(), "PNG")):
        assert "a.mp4: expected" in reject_of(lambda data=data: probe_video(put(tmp_path, data, "a.mp4"), "/videos/0"))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
    ],
    ids=["playlist", "concatenation"],
)
def test_a_playlist_is_not_followed_to_other_files(tmp_path: Path, text: str) -> None:
    other = film(tmp_path / "other.mp4")
    for name in ("list.m3u8", "list.mp4"):
        path = put(tmp_path, text.format(other).encode(), name)
        assert "expected a video" in reject_of(lambda path=path: probe_video(path))


def test_a_sound_file_is_not_a_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert "found no picture in it" in reject_of(lambda: probe_video(path))


def test_a_title_in_another_encoding_does_not_matter(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv")
    titled = path.read_bytes().replace(b"Lavf", "卡卡".encode("gbk"))
    assert probe_video(put(tmp_path, titled, "b.mkv")).num_frames == 30


def test_without_pyav_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install -e '/.*\[video\]'"):
        probe_video(put(tmp_path, b"anything"))


def test_frames_given_as_images_are_one_video(tmp_path: Path) -> None:
    frames = [encoded(screen(seed=i), "PNG") for i in range(3)]
    paths = [put(tmp_path, data, f"{i}.png") for i, data in enumerate(frames)]
    whole = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in frames)).hexdigest()
    assert probe_frames(paths) == MediaFacts(whole, 64, 40, num_frames=3)
    assert probe_frames(paths[::-1]).sha256 != whole


def test_frames_of_two_sizes_are_a_reject_that_names_the_odd_one(tmp_path: Path) -> None:
    paths = [put(tmp_path, encoded(screen(width), "PNG"), f"{i}.png") for i, width in enumerate((64, 64, 65))]
    with pytest.raises(RowError) as error:
        probe_frames(paths, "/videos/0")
    assert error.value.reject.pointer == "/videos/0/2"
    assert error.value.reject.message == "2.png: expected frames of one size, 64x40 as the first one, found 65x40"
    assert "found an empty list" in reject_of(lambda: probe_frames([]))


# -- tokens of an image --

CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2-VL as published": QWEN2_VL,
    "Qwen2.5-VL with 256 to 1280 tokens": QWEN2_VL
    | {"processor_class": "Qwen2_5_VLProcessor", "min_pixels": 256 * 28 * 28, "max_pixels": 1280 * 28 * 28},
    "Qwen2-VL with at most 64 tokens": QWEN2_VL | {"max_pixels": 64 * 28 * 28},
    "Qwen2-VL saved by transformers": QWEN2_VL
    | {"size": {"shortest_edge": 1, "longest_edge": 2, "min_pixels": 3, "max_pixels": 4}},
    "Qwen2-VL, the library's defaults": {k: QWEN2_VL[k] for k in ("image_processor_type", "processor_class")},
    "Qwen3-VL as published": QWEN3_VL,
    "GLM-4.1V as published": GLM4V,
    "GLM-4.5V": GLM4V | {"size": {"shortest_edge": 12544, "longest_edge": 47040000}},
    "GLM-4.6V, the library's defaults": {
        "image_processor_type": "Glm46VImageProcessor",
        "processor_class": "Glm46VProcessor",
        "min_pixels": 1,
    },
}
rng = random.Random(4)
SIZES = [(w, h) for w in (1, 13, 14, 15, 27, 28, 29, 42, 56, 199, 200, 201, 1120) for h in (1, 7, 28, 70, 1000, 5599)]
SIZES += [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(300)]
SIZES += [(rng.randint(1, 60), rng.randint(1, 12000)) for _ in range(100)]
SIZES += [(rng.randint(4000, 20000), rng.randint(100, 20000)) for _ in range(100)]
SIZES += [(9, 8), (25, 8), (655, 10), (10, 695)]  # scaled up to 28, the other side is not whole
SIZES += [(3590, 3578), (3572, 3597), (3584, 3584), (55, 57), (57, 56), (56, 56)]  # as many pixels as a limit


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Any]:
    """A function that makes transformers' image processor from a configuration, as a user's folder would."""
    transformers = pytest.importorskip("transformers", minversion="5")

    def load(config: dict[str, Any]) -> Any:
        folder = tmp_path_factory.mktemp("model")
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
        name = config["image_processor_type"].removesuffix("Fast") + "Pil"
        return getattr(transformers, name).from_pretrained(folder)

    return load


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_image_is_as_many_tokens_as_transformers_makes_of_it(
    config: dict[str, Any], transformers_folder: Callable[[dict[str, Any]], Any]
) -> None:
    """Its processors say how many patches a size has; merged two by two they are tokens."""
    processor, ours = transformers_folder(config), vision(config)
    refused = 0
    for width, height in SIZES:
        try:
            patches = processor.get_number_of_image_patches(height, width)
        except ValueError as error:
            assert "aspect ratio" in str(error)
            refused += 1
            assert "at most 200 times as long" in reject_of(lambda w=width, h=height: ours.image_tokens(facts(w, h)))
        else:
            assert math.prod(ours.grid("image", facts(width, height))) == patches, (width, height)
            assert ours.image_tokens(facts(width, height)) == patches // 4, (width, height)
    assert refused > 10


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_grid_is_the_one_that_transformers_cuts(
    config: dict[str, Any], transformers_folder: Callable[[dict[str, Any]], Any]
) -> None:
    """The same, with real pictures through the whole processor."""
    processor, ours = transformers_folder(config), vision(config)
    for width, height in [(140, 112), (1, 1), (27, 29), (300, 168), (20, 700), (333, 41), (640, 480), (97, 1023)]:
        made = processor(images=[Image.new("RGB", (width, height))])["image_grid_thw"][0]
        assert tuple(int(n) for n in made) == ours.grid("image", facts(width, height)), (width, height)


@settings(max_examples=300)
@given(st.integers(1, 30000), st.integers(1, 30000), st.sampled_from(sorted(CONFIGS)))
def test_any_size_is_counted_as_by_the_resize_of_transformers(width: int, height: int, name: str) -> None:
    """A picture and the same picture on its side have equally many tokens: orientation never changes a length."""
    config = CONFIGS[name]
    model = "glm4v" if name.startswith("GLM") else "qwen2_vl"
    module = pytest.importorskip(f"transformers.models.{model}.image_processing_pil_{model}")
    ours = vision(config)
    numbers = ours.numbers["image"].values
    unit = numbers["patch_size"] * 2
    sizes = {"factor": unit, "min_pixels": numbers["shortest_edge"], "max_pixels": numbers["longest_edge"]}
    try:
        more = {"num_frames": 2} if model == "glm4v" else {}
        rows, columns = module.smart_resize(height=height, width=width, **sizes, **more)
    except ValueError:
        reject_of(lambda: ours.image_tokens(facts(width, height)))
    else:
        tokens = ours.image_tokens(facts(width, height))
        assert tokens == rows // unit * (columns // unit)
        assert tokens == ours.image_tokens(facts(height, width))


@pytest.mark.parametrize(
    ("config", "name", "size", "tokens"),
    [
        (QWEN2_VL, None, (140, 112), 5 * 4),  # 140/28, 112/28
        (QWEN2_VL, None, (1920, 1080), 69 * 39),  # 1920/28 = 68.6, 1080/28 = 38.6
        (QWEN2_VL, None, (1, 1), 2 * 2),  # at least 3136 = 56*56 pixels
        (QWEN3_VL, None, (1920, 1080), 60 * 34),  # 1920/32 = 60, 1080/32 = 33.75
        (QWEN3_VL, None, (1, 1), 8 * 8),  # at least 65536 = 256*256 pixels
        (GLM4V, None, (1920, 1080), 69 * 39),
        (GLM4V, None, (1, 1), 3 * 3),  # scaled to 28x28, then until 2 frames have 12544 pixels: 79.2 -> 84 a side
        (None, "cogagent", (1920, 1080), 1600),
        (None, "cogagent", (1, 1), 1600),
    ],
)
def test_counts_worked_out_by_hand(config: Any, name: str | None, size: tuple[int, int], tokens: int) -> None:
    assert vision(config, name).image_tokens(facts(*size)) == tokens


@pytest.mark.parametrize(
    ("config", "whole", "tokens"),
    [
        (LLAVA, LLAVA_WHOLE, 576),  # 24x24 patches; the token of the whole is there, and left out
        (LLAVA, LLAVA_WHOLE | {"vision_feature_select_strategy": "full"}, 577),
        (
            {"processor_class": "LlavaProcessor", "image_processor_type": "SiglipImageProcessor",
             "size": {"height": 384, "width": 384}},
            LLAVA_WHOLE | {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}, 27 * 27,
        ),
        (GEMMA3, {"processor_class": "Gemma3Processor", "image_seq_length": 256}, 256),
        (GEMMA3, {"processor_class": "Gemma3Processor"}, 256),
    ],
)  # fmt: skip
def test_pictures_of_one_size_have_one_number_of_tokens(
    config: dict[str, Any], whole: dict[str, Any], tokens: int
) -> None:
    ours = vision(config, processor_config=whole)
    assert {ours.image_tokens(facts(*size)) for size in ((1, 1), (1920, 1080), (97, 1023))} == {tokens}
    assert "the model reads pictures" in reject_of(lambda: ours.video_tokens(facts(64, 64, 8, 25.0)))


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        (
            {"do_center_crop": False},
            "json#/size: expected a height and a width that all pictures get, found {'shortest",
        ),
        ({"crop_size": None}, "json#/crop_size: expected a height and a width that all pictures get, found None"),
    ],
)
def test_pictures_that_keep_their_shape_are_not_counted_as_of_one_size(crop: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        vision(LLAVA | crop, processor_config=LLAVA_WHOLE)
    assert message in str(error.value)


def test_a_picture_that_is_not_resized_must_fit_its_patches() -> None:
    ours = vision(QWEN2_VL | {"do_resize": False})
    assert ours.image_tokens(facts(280, 56)) == 20
    message = reject_of(lambda: ours.image_tokens(facts(280, 57)))
    assert message == "expected sides that are multiples of 28 (do_resize is false), found 280x57"


def test_a_reject_of_a_count_has_the_place_of_the_reference() -> None:
    with pytest.raises(RowError) as error:
        vision(QWEN2_VL).image_tokens(facts(1, 201), "/images/1")
    assert error.value.reject.pointer == "/images/1"
    assert error.value.reject.message == (
        "expected a picture at most 200 times as long as it is wide, found 1x201 pixels; cut or scale it"
    )


# -- tokens of a video --

SAMPLED = QWEN2_VL | {"do_sample_frames": True, "fps": 2}


@pytest.mark.parametrize(
    ("config", "seen", "frames", "tokens"),
    [
        # 28*28 pixels are fewer than 3136: 2x2 tokens for every two frames. All frames count unless they are sampled.
        (QWEN2_VL, facts(28, 28, 30, 30.0), 30, 15 * 4),
        (QWEN2_VL, facts(28, 28, 31, 30.0), 31, 16 * 4),  # the last frame is repeated
        (QWEN2_VL, facts(28, 28, 1, 30.0), 1, 4),
        (SAMPLED, facts(28, 28, 300, 30.0), 20, 10 * 4),  # 10 seconds, 2 a second
        (SAMPLED, facts(28, 28, 315, 30.0), 20, 10 * 4),  # 21, rounded down to whole pairs
        (SAMPLED, facts(28, 28, 30, 30.0), 4, 2 * 4),  # at least min_frames = 4
        (SAMPLED, facts(28, 28, 3, 30.0), 2, 4),  # there are no four; one pair
        (SAMPLED, facts(28, 28, 300_000, 30.0), 768, 384 * 4),  # at most max_frames = 768
        (SAMPLED | {"max_frames": 9}, facts(28, 28, 300, 30.0), 8, 4 * 4),
        (QWEN2_VL | {"do_sample_frames": True, "num_frames": 7}, facts(28, 28, 300, 30.0), 8, 4 * 4),  # 3.5 rounds to 4
        (SAMPLED, facts(28, 28, 300), 300, 150 * 4),  # a list of frames is sampled already
    ],
)
def test_frames_and_tokens_of_a_video_by_hand(config: Any, seen: MediaFacts, frames: int, tokens: int) -> None:
    ours = vision(config)
    assert (ours.frames(seen), ours.video_tokens(seen)) == (frames, tokens)


def test_a_video_shorter_than_what_is_sampled_is_a_reject() -> None:
    assert "samples 0 frames, the video has 1" in reject_of(
        lambda: vision(SAMPLED).video_tokens(facts(28, 28, 1, 30.0))
    )
    fixed = vision(QWEN2_VL | {"do_sample_frames": True, "num_frames": 8})
    with pytest.raises(RowError) as error:
        fixed.video_tokens(facts(28, 28, 7, 30.0), "/videos/0")
    assert error.value.reject.pointer == "/videos/0"
    assert "samples 8 frames, the video has 7" in error.value.reject.message


@pytest.fixture(scope="module")
def video_module() -> ModuleType:
    """transformers' own video processor; it needs torch and a torchvision that loads beside it."""
    pytest.importorskip("torch", reason="transformers' video processor needs torch")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"transformers' video processor needs torchvision: {error}")
    return pytest.importorskip("transformers.models.qwen2_vl.video_processing_qwen2_vl")


@pytest.mark.parametrize(
    "config",
    [
        {"fps": 2}, {"fps": 1.7, "min_frames": 2, "max_frames": 16}, {"fps": 24}, {"num_frames": 8}, {"num_frames": 7},
        {"num_frames": 1}, {"fps": 2, "temporal_patch_size": 1}, {"fps": 3, "temporal_patch_size": 3},
    ],
)  # fmt: skip
def test_frames_are_sampled_as_by_transformers(config: dict[str, Any], video_module: ModuleType) -> None:
    """Rounding gives an index beyond the last frame for about 4 % of the lengths; decoders raise there."""
    from transformers.video_utils import VideoMetadata

    processor = video_module.Qwen2VLVideoProcessor(do_sample_frames=True, **config)
    ours = vision(QWEN2_VL | {"do_sample_frames": True} | config)
    chosen = random.Random(1)
    for total in [*range(1, 120), *(chosen.randint(120, 60_000) for _ in range(200)), 2999]:
        fps = chosen.choice([1.0, 12.5, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94])
        try:
            indices = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=fps))
        except (ValueError, ZeroDivisionError):
            assert "samples" in reject_of(lambda t=total, f=fps: ours.video_tokens(facts(64, 64, t, f)))
        else:
            assert ours.frames(facts(64, 64, total, fps)) == int((indices < total).sum()), (total, fps)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"min_pixels": 3136, "max_pixels": 50176},
        {"size": {"shortest_edge": 4096, "longest_edge": 65536}, "patch_size": 16},
        {"cap_pixels_per_frame": True, "max_video_tokens": 300},
        {"cap_pixels_per_frame": True},
        {"temporal_patch_size": 3},
    ],
)
def test_the_grid_of_a_video_is_the_one_that_transformers_cuts(
    config: dict[str, Any], video_module: ModuleType
) -> None:
    given = {"cap_pixels_per_frame": False} | config
    processor = video_module.Qwen2VLVideoProcessor(**given)
    ours = vision(QWEN2_VL, video_preprocessor_config=given)
    for frames, width, height in [(1, 28, 28), (2, 300, 168), (5, 64, 48), (8, 320, 240), (9, 33, 470), (24, 100, 100)]:
        made = processor(videos=[np.zeros((frames, height, width, 3), np.uint8)], return_tensors="pt")
        grid = ours.grid("video", facts(width, height, frames, 25.0))
        assert tuple(made["video_grid_thw"][0].tolist()) == grid, (frames, width, height)


def test_the_pixels_of_a_frame_are_capped_by_its_share_of_the_video() -> None:
    """1000 tokens of 28*28 pixels, nine tenths of them, for 10 frames in pairs; at least 1.05 times the minimum."""
    numbers = vision(QWEN2_VL | {"cap_pixels_per_frame": True, "max_video_tokens": 1000}).numbers["video"].values
    assert pixel_limit(10, numbers) == 141_120
    assert pixel_limit(10_000, numbers) == 3292  # 3136 * 1.05 = 3292.8
    assert pixel_limit(1, numbers | {"longest_edge": 500_000}) == 500_000
    assert pixel_limit(10, numbers | {"cap_pixels_per_frame": False}) == 12_845_056


@pytest.mark.parametrize("config", [QWEN3_VL, GLM4V])
def test_a_video_with_times_between_its_frames_is_refused_in_words(config: dict[str, Any]) -> None:
    message = reject_of(lambda: vision(config).video_tokens(facts(64, 64, 8, 25.0), "/videos/0"))
    assert "videos are not compiled for" in message
    assert "as text between the placeholders" in message


# -- layout --


def test_an_image_is_an_opening_token_its_placeholders_and_a_closing_token() -> None:
    assert vision(QWEN2_VL).layout("image", 20) == [(1, 1), (3, 20), (2, 1)]
    assert vision(QWEN2_VL).layout("video", 60) == [(1, 1), (4, 60), (2, 1)]
    assert vision(GLM4V).layout("image", 9) == [(5, 1), (7, 9), (6, 1)]
    assert vision(GEMMA3).layout("image", 256) == [(9, 1), (10, 256), (11, 1)]
    assert vision(LLAVA, processor_config=LLAVA_WHOLE).layout("image", 576) == [(8, 576)]


def test_an_image_of_cogagent_is_one_placeholder_that_counts_1600() -> None:
    """Decision 16: `151339 151329 151340`."""
    controls = Tokenizer.load(shared("tokenizers", "glm4")).controls
    ours = load_vision({}, "cogagent", controls)
    assert ours is not None
    assert (ours.repeats_pad, ours.image_tokens(facts(1920, 1080))) == (False, 1600)
    assert ours.layout("image", 1600) == [(151339, 1), (151329, 1), (151340, 1)]
    assert "the model reads one picture" in reject_of(lambda: ours.video_tokens(facts(64, 64, 8, 25.0)))


def test_a_tokenizer_without_the_tokens_of_a_video_still_takes_images() -> None:
    controls = {text: i for text, i in CONTROLS.items() if text != "<|video_pad|>"}
    ours = load_vision({"preprocessor_config.json": json.dumps(QWEN2_VL).encode()}, None, controls)
    assert ours is not None
    assert ours.image_tokens(facts(140, 112)) == 20
    assert "the tokenizer has no" in reject_of(lambda: ours.layout("video", 4))


# -- which card, which numbers --


@pytest.mark.parametrize(
    ("files", "card"),
    [
        ({"preprocessor_config": QWEN2_VL}, "qwen2_vl"),
        ({"preprocessor_config": QWEN2_VL | {"processor_class": "Qwen2_5_VLProcessor"}}, "qwen2_vl"),
        ({"preprocessor_config": QWEN3_VL}, "qwen3_vl"),
        ({"preprocessor_config": GLM4V}, "glm4v"),
        ({"preprocessor_config": {"image_processor_type": "Glm46VImageProcessorFast"}}, "glm4v"),
        # as transformers 5 saves a processor: one file with everything
        (
            {"processor_config": {"processor_class": "Qwen2VLProcessor", "image_processor": {"patch_size": 14}}},
            "qwen2_vl",
        ),
        # without a processor_class, the video processor tells Qwen2-VL from Qwen3-VL
        (
            {
                "preprocessor_config": {"image_processor_type": "Qwen2VLImageProcessor"},
                "video_preprocessor_config": {"video_processor_type": "Qwen3VLVideoProcessor"},
            },
            "qwen3_vl",
        ),
        ({}, None),
        ({"preprocessor_config": {"feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "X"}}, None),
    ],
)
def test_the_card_is_the_one_that_knows_the_processor(files: dict[str, Any], card: str | None) -> None:
    loaded = load_vision({f"{name}.json": json.dumps(value).encode() for name, value in files.items()}, None, CONTROLS)
    assert (loaded and loaded.name) == card


ONLY_IMAGES = {"image_processor_type": "Qwen2VLImageProcessor"}


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (
            ONLY_IMAGES | {"processor_class": "Qwen2_5OmniProcessor"}, None,
            "preprocessor_config.json#/processor_class: no vision card knows how Qwen2_5OmniProcessor counts tokens",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor"}, None,
            "json#/image_processor_type: no vision card knows how CLIPImageProcessor counts tokens; known: Gemma3",
        ),
        (ONLY_IMAGES, None, "serves the cards qwen2_vl and qwen3_vl, and no processor_class says which"),
        (None, "qwen_vl", "vision card qwen_vl: no such name"),
        (None, "qwen2_vl", "vision card qwen2_vl: it needs the processor's own numbers"),
        (QWEN2_VL | {"patch_size": 14.5}, None, "#/patch_size: expected a whole number > 0, found 14.5"),
        (QWEN2_VL | {"merge_size": True}, None, "#/merge_size: expected a whole number > 0, found True"),
        (QWEN2_VL | {"max_pixels": -1}, None, "longest_edge: expected a whole number > 0, found -1"),
        (QWEN2_VL | {"do_resize": "no"}, None, "#/do_resize: expected true or false, found 'no'"),
        (SAMPLED | {"fps": 0}, None, "#/fps: expected a number > 0, found 0"),
        (SAMPLED | {"num_frames": 8}, None, "expected either fps or num_frames beside it, found both"),
        (SAMPLED | {"fps": None}, None, "expected either fps or num_frames beside it, found neither"),
        (GLM4V | {"size": {"shortest_edge": 1}}, None, "expected shortest_edge and longest_edge, found no longest"),
        (GLM4V | {"size": 448}, None, "preprocessor_config.json#/size: expected an object, found 448"),
        (
            LLAVA | {"processor_class": "LlavaNextProcessor"}, None,
            "preprocessor_config.json#/processor_class: no vision card knows how LlavaNextProcessor counts tokens",
        ),
        (LLAVA, None, "processor_config.json#/patch_size: expected a whole number from 1, found None"),
        (GEMMA3 | {"do_pan_and_scan": True}, None, "preprocessor_config.json#/do_pan_and_scan: it cuts pictures into"),
    ],
)  # fmt: skip
def test_a_processor_that_cannot_be_counted_for_is_one_message(config: Any, name: str | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        vision(config, name)
    assert message in str(error.value)


def test_a_processor_file_that_is_not_json_is_an_input_error() -> None:
    for data in (b"{", b"[]", b"\xff"):
        with pytest.raises(InputError, match=r"preprocessor_config\.json"):
            load_vision({"preprocessor_config.json": data}, None, CONTROLS)


def test_a_tokenizer_without_the_tokens_of_an_image_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"no control token <\|vision_start\|>, <\|image_pad\|>, <\|vision_end\|>"):
        load_vision({"preprocessor_config.json": json.dumps(QWEN2_VL).encode()}, None, {"<|endoftext|>": 0})


def test_a_card_taken_by_name_counts_with_the_numbers_of_an_unknown_processor() -> None:
    config = QWEN2_VL | {"image_processor_type": "OurImageProcessor", "processor_class": "OurProcessor"}
    assert vision(config, "qwen2_vl").image_tokens(facts(140, 112)) == 20


def test_the_file_of_a_kind_counts_as_it_does_for_transformers() -> None:
    """Nested part first, then the kind's own file, then (videos) the image processor's."""
    flat, own = QWEN2_VL | {"patch_size": 16}, {"patch_size": 18}
    nested = {"image_processor": {"patch_size": 20}, "video_processor": {"patch_size": 22}}

    def sizes(loaded: Vision) -> tuple[int, int]:
        return loaded.numbers["image"].values["patch_size"], loaded.numbers["video"].values["patch_size"]

    assert sizes(vision(flat)) == (16, 16)
    assert sizes(vision(flat, video_preprocessor_config=own)) == (16, 18)
    whole = {"processor_class": "Qwen2VLProcessor", **nested}
    assert sizes(vision(flat, video_preprocessor_config=own, processor_config=whole)) == (20, 22)
    assert sizes(vision(flat, processor_config={"processor_class": "Qwen2VLProcessor"})) == (16, 16)


def test_every_number_says_where_it_is_from() -> None:
    sources = vision({k: QWEN2_VL[k] for k in ("processor_class", "max_pixels")}).numbers["image"].sources
    assert sources["longest_edge"] == "preprocessor_config.json"
    assert sources["patch_size"] == "vision card qwen2_vl: transformers 5.24.0, models/qwen2_vl and models/qwen2_5_vl"


def test_the_digest_changes_with_the_card_and_with_every_processor_file() -> None:
    one = vision(QWEN2_VL)
    assert one.digest == vision(QWEN2_VL).digest
    others = [
        vision(QWEN2_VL | {"max_pixels": 12845057}), vision(QWEN3_VL), vision(QWEN2_VL, "qwen3_vl"),
        vision(QWEN2_VL, video_preprocessor_config={}), vision(name="cogagent"),
    ]  # fmt: skip
    assert len({one.digest, *(other.digest for other in others)}) == 6
    unrelated = load_vision(
        {"preprocessor_config.json": json.dumps(QWEN2_VL).encode(), "tokenizer.json": b"{}"}, None, CONTROLS
    )
    assert unrelated is not None
    assert unrelated.digest == one.digest


# -- cards --


@pytest.mark.parametrize("name", registry.vision_names())
def test_every_vision_card_is_valid_and_named_as_its_file(name: str) -> None:
    assert registry.vision(name)["name"] == name


def test_the_example_of_the_schema_is_a_card_and_a_half_card_is_not() -> None:
    validator = jsonschema.Draft202012Validator(schema("vision"))
    (example,) = schema("vision")["examples"]
    assert validator.is_valid(example)
    assert not validator.is_valid(example | {"video": {}})
    assert not validator.is_valid(example | {"rule": "smart_resize"})
    assert not validator.is_valid(example | {"video": example["image"] | {"refused": "why"}})
    with pytest.raises(UsageError, match=r"card#/image: 'pad' is a required property"):
        check_config(example | {"image": {"open": "a", "close": "b", "defaults": {}}}, "vision", "card")


@pytest.mark.parametrize(
    "name", [name for name in registry.vision_names() if registry.vision(name)["rule"].startswith("smart_resize")]
)
def test_the_defaults_of_a_card_are_those_of_the_classes_it_names(name: str) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    card = registry.vision(name)
    pillow = [kind for kind in card["image_processor_type"] if kind.endswith("Pil")]
    assert pillow
    for kind in pillow:
        made = getattr(transformers, kind)()
        edges = {"shortest_edge": made.size.shortest_edge, "longest_edge": made.size.longest_edge}
        theirs = {key: edges.get(key, getattr(made, key, None)) for key in card["image"]["defaults"]}
        assert card["image"]["defaults"] == theirs
    for kind in card["processor_class"]:
        assert hasattr(transformers, kind)


def test_the_defaults_of_a_video_are_those_of_its_class(video_module: ModuleType) -> None:
    made, card = video_module.Qwen2VLVideoProcessor(), registry.vision("qwen2_vl")
    edges = {"shortest_edge": made.size.shortest_edge, "longest_edge": made.size.longest_edge}
    theirs = {key: edges.get(key, getattr(made, key, None)) for key in card["video"]["defaults"]}
    assert card["video"]["defaults"] == theirs | {"cap_pixels_per_frame": False}  # None there, and read as False
