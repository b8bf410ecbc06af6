"""Unusable files: each one is an ImageError with place, rule and remedy, never a grey image or a crash."""

import io
import os
import resource
import struct
import zlib
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from tests.helpers.image_files import AS_IT_IS, png16_bytes, tiff_bytes
from tests.helpers.problems import image_of, raises
from toolkit.errors import CODE, ImageError
from toolkit.images import ImagePolicy, ImageStore, image_ref, load, scan
from toolkit.images.ref import ImageRef
from toolkit.images.window import Array

# The libraries may warn about files that are rejected. These tests check the rejection.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

DEEP = np.random.default_rng(0).normal(30_000, 3_000, (60, 50)).clip(0, 65_535).astype(np.uint16)
GREY = (DEEP >> 8).astype(np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)


def encoded(values: Array, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, name, **options)
    return buffer.getvalue()


FILES = {
    "deep.png": png16_bytes(DEEP),
    "grey.png": encoded(GREY, "PNG"),
    "rgb.png": encoded(RGB, "PNG"),
    "palette.png": encoded(np.asarray(Image.fromarray(RGB).quantize(16)), "PNG"),
    "baseline.jpg": encoded(RGB, "JPEG"),
    "progressive.jpg": encoded(RGB, "JPEG", progressive=True),
    "grey.jpg": encoded(GREY, "JPEG"),
    "bare.tif": tiff_bytes(DEEP),
    "head_first.tif": encoded(DEEP, "TIFF"),
    "lzw.tif": encoded(DEEP, "TIFF", compression="tiff_lzw"),
    "deflate.tif": encoded(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "opencv.tif": cv2.imencode(".tif", DEEP)[1].tobytes(),
    "float.tif": tiff_bytes(DEEP.astype(np.float32), ">"),
    "a.bmp": encoded(RGB, "BMP"),
    "a.webp": encoded(RGB, "WEBP"),
    "native.dcm": Path(get_testdata_file("MR_small.dcm", download=False)).read_bytes(),
    "compressed.dcm": Path(get_testdata_file("JPEG2000.dcm", download=False)).read_bytes(),
}
END_IS_SEEN_BY_THE_HEADER = [name for name in FILES if not name.endswith(".bmp")]


def written(folder: Path, name: str, data: bytes) -> ImageRef:
    (folder / name).write_bytes(data)
    return ImageRef(folder / name)


def rejected(ref: ImageRef, policy: ImagePolicy = AS_IT_IS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load(ref, policy)
    error = caught.value
    assert error.path == ref.path
    assert error.place.startswith("image id-")
    assert CODE.fullmatch(error.code)
    assert error.rule
    assert error.remedy
    return error


@pytest.mark.parametrize("name", FILES)
def test_the_whole_file_can_be_read(tmp_path: Path, name: str) -> None:
    load(written(tmp_path, name, FILES[name]), AS_IT_IS)


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_rejected(tmp_path: Path, name: str, fraction: float) -> None:
    data = FILES[name]
    rejected(written(tmp_path, name, data[: int(len(data) * fraction)]))


@pytest.mark.parametrize("name", ["deep.png", "grey.png", "baseline.jpg", "progressive.jpg", "bare.tif", "a.webp"])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_file_without_its_last_bytes_is_rejected(tmp_path: Path, name: str, missing: int) -> None:
    data = FILES[name]
    end = tiff_bytes(DEEP)[: 8 + DEEP.nbytes] if name == "bare.tif" else data
    rejected(written(tmp_path, name, end[: len(end) - missing]))


@pytest.mark.parametrize("name", END_IS_SEEN_BY_THE_HEADER)
def test_the_header_scan_finds_a_missing_end_without_decoding(tmp_path: Path, name: str) -> None:
    whole, cut = written(tmp_path, "whole_" + name, FILES[name]), written(tmp_path, name, FILES[name][:-150])
    report = scan([whole, cut], ImageStore(AS_IT_IS), "header")
    assert [bad.ref for bad in report.bad] == [cut]


@pytest.mark.parametrize("name", ["deep.png", "grey.png", "baseline.jpg", "bare.tif"])
def test_padding_after_the_end_is_accepted(tmp_path: Path, name: str) -> None:
    load(written(tmp_path, name, FILES[name] + bytes(100)), AS_IT_IS)


def test_missing_empty_and_irregular_files_have_their_own_codes(tmp_path: Path) -> None:
    assert rejected(ImageRef(tmp_path / "none.png")).code == "images.missing"
    assert rejected(written(tmp_path, "empty.png", b"")).code == "images.file_empty"
    (tmp_path / "folder.png").mkdir()
    assert rejected(ImageRef(tmp_path / "folder.png")).code == "images.not_regular_file"
    os.mkfifo(tmp_path / "pipe.png")
    assert rejected(ImageRef(tmp_path / "pipe.png")).code == "images.not_regular_file"
    assert rejected(written(tmp_path, "text.png", b"no image, but a text")).code == "images.format_unknown"
    assert rejected(written(tmp_path, "short.png", b"\x89PNG\r\n\x1a\n")).code == "images.format_unknown"
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert rejected(ImageRef(tmp_path / "loop.png")).code == "images.not_readable"


@pytest.mark.parametrize("name", ["deep.png", "grey.png", "lzw.tif", "palette.png"])
def test_damage_inside_a_checked_format_is_rejected(tmp_path: Path, name: str) -> None:
    data = bytearray(FILES[name])
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    rejected(written(tmp_path, name, bytes(data)))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(side: int, depth: int = 16) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    return (
        FILES["deep.png"][:8] + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


def with_size(name: str, width: int, height: int) -> bytes:
    """Return the file ``name`` with another size in its header."""
    data = bytearray(FILES[name])
    if name.endswith(".jpg"):
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif name.endswith(".tif"):
        at = data.index(struct.pack("<HHI", 256, 4, 1)) + 8
        data[at : at + 4] = struct.pack("<I", width)
    elif name.endswith(".dcm"):
        for tag, side in ((b"\x28\0\x10\0US\x02\0", height), (b"\x28\0\x11\0US\x02\0", width)):
            at = data.index(tag) + len(tag)
            data[at : at + 2] = struct.pack("<H", side)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "size"),
    [
        ("a.png", huge_png(60_000), "far more"),
        ("b.png", huge_png(60_000, 8), "far more"),
        ("a.jpg", with_size("baseline.jpg", 60_000, 50_000), "far more"),
        ("a.dcm", with_size("compressed.dcm", 60_000, 50_000), "60000 x 50000"),
        ("c.png", huge_png(11_000), "11000 x 11000"),
        ("a.tif", with_size("bare.tif", 2**31, 60), "2147483648 x 60"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_decompression_bomb_is_rejected_by_its_header(tmp_path: Path, name: str, data: bytes, size: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = rejected(written(tmp_path, name, data), ImagePolicy())
    assert (error.code, error.value) == ("images.too_many_pixels", size)
    assert "120,000,000" in error.rule
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB: it was not decoded


def test_an_image_of_exactly_the_largest_number_of_pixels_is_read(tmp_path: Path) -> None:
    ref = written(tmp_path, "a.png", FILES["deep.png"])
    load(ref, ImagePolicy(max_pixels=60 * 50))
    error = rejected(ref, ImagePolicy(max_pixels=60 * 50 - 1))
    assert (error.code, error.value) == ("images.too_many_pixels", "50 x 60")


def test_an_image_above_pillows_limit_is_read_if_the_policy_allows_it(tmp_path: Path) -> None:
    side = 9_600  # 92 million pixels; Pillow warns from 89 million on
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    assert load(ImageRef(tmp_path / "a.png"), ImagePolicy(max_side=16)).record.source_size == (side, side)


def test_a_false_chunk_length_does_not_allocate_gigabytes(tmp_path: Path) -> None:
    data = bytearray(FILES["deep.png"])
    data[33:37] = b"\xdb\0\0\0"  # the length of IDAT
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rejected(written(tmp_path, "a.png", bytes(data)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize(
    "values",
    [np.zeros((4, 4, 2), np.uint16), np.zeros((4, 4, 5), np.uint16), np.zeros((4, 4), np.float16)],
    ids=["two channels", "five channels", "float16"],
)
def test_a_deep_tiff_that_no_library_decodes_without_loss_is_rejected(tmp_path: Path, values: Array) -> None:
    rejected(written(tmp_path, "a.tif", tiff_bytes(values)))


@pytest.mark.parametrize("photometric", [3, 5, 8])
def test_a_deep_palette_cmyk_or_lab_tiff_is_not_read_as_rgb(tmp_path: Path, photometric: int) -> None:
    values = np.zeros((4, 4, 4) if photometric == 5 else (4, 4, 3), np.uint16)
    error = rejected(written(tmp_path, "a.tif", tiff_bytes(values, photometric=photometric)))
    assert error.code == "images.tiff_layout_unsupported"
    assert str(error.value).startswith({3: "palette", 5: "CMYK", 8: "CIELab"}[photometric])


def test_deep_channels_in_separate_planes_are_rejected(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint16).reshape(4, 5, 3)
    error = rejected(written(tmp_path, "a.tif", tiff_bytes(values, separate=True)))
    assert error.code == "images.tiff_layout_unsupported"
    assert "separate planes" in str(error.value)


def test_a_tiff_with_cyclic_pages_is_read(tmp_path: Path) -> None:
    data = bytearray(tiff_bytes(GREY))
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    struct.pack_into("<I", data, at + 2 + 12 * count, at)
    load(ImageRef(written(tmp_path, "a.tif", bytes(data)).path), AS_IT_IS)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(FILES)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    early=st.booleans(),
)
@example("palette.png", [(0.99, 255)], True)
def test_a_file_with_changed_bytes_is_an_image_or_an_image_error(
    tmp_path: Path, name: str, edits: list[tuple[float, int]], early: bool
) -> None:
    data = bytearray(FILES[name])
    for where, value in edits:
        data[int(where * (min(400, len(data)) if early else len(data)))] = value
    ref = written(tmp_path, name, bytes(data))
    try:
        loaded = load(ref, ImagePolicy(max_side=16, max_pixels=10**6))
    except ImageError as error:
        assert error.remedy  # noqa: PT017 (either outcome is right)
    else:
        assert loaded.image.mode == "RGB"


@pytest.mark.parametrize("text", ["a.png", "b/a.png", "./b//a.png", "b/../a.png", "b/..c/a.png", "/data/set/a.png"])
def test_a_path_inside_the_root_is_accepted(text: str) -> None:
    ref = image_ref(text, "/data/set", "row 3")
    assert ref.path.is_relative_to("/data/set")
    assert ".." not in ref.path.parts


@pytest.mark.parametrize(
    "text",
    ["../a.png", "b/../../a.png", "/etc/passwd", "/data/set2/a.png", "/data/set/../a.png", "", " ", ".", "a\0.png"],
)
def test_a_path_that_leaves_the_root_or_names_nothing_is_rejected_with_its_row(text: str) -> None:
    names_nothing = not text.strip() or "\0" in text
    with raises(ImageError, "images.path_not_text" if names_nothing else "images.outside_root") as caught:
        image_ref(text, "/data/set", "rows.json, row 3")
    assert caught.problem.place == "rows.json, row 3"
    assert "set2" not in str(caught.error)
    assert "passwd" not in str(caught.error)


def test_a_path_that_is_not_text_is_rejected() -> None:
    with raises(ImageError, "images.path_not_text"):
        image_ref(cast(str, None), "/data/set", "row 3")


@pytest.mark.slow
@given(st.text())
def test_no_text_leads_out_of_the_root(text: str) -> None:
    try:
        ref = image_ref(text, "/data/set", "row")
    except ImageError:
        return
    assert os.path.commonpath(["/data/set", os.path.normpath(ref.path)]) == "/data/set"


def test_a_link_that_leads_out_of_the_root_is_rejected_when_it_is_opened_or_scanned(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    real = written(outside, "a.png", FILES["grey.png"])
    (root / "link.png").symlink_to(real.path)
    (root / "inner.png").write_bytes(FILES["grey.png"])
    (root / "inner_link.png").symlink_to(root / "inner.png")
    store = ImageStore(AS_IT_IS, roots=[root])
    store.get(ImageRef(root / "inner_link.png"))
    with raises(ImageError, "images.outside_root") as caught:
        store.get(ImageRef(root / "link.png"))
    assert image_of(caught) == root / "link.png"
    assert str(outside) not in str(caught.error)
    refs = [ImageRef(root / "link.png"), ImageRef(root / "inner_link.png")]
    for mode in ("full", "header"):
        assert scan(refs, store, mode).bad_refs == {refs[0]}


def test_a_root_can_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    written(tmp_path / "real", "a.png", FILES["grey.png"])
    (tmp_path / "root").symlink_to(tmp_path / "real")
    ImageStore(AS_IT_IS, roots=[tmp_path / "root"]).get(ImageRef(tmp_path / "root" / "a.png"))
