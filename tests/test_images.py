"""Formats, bit depths and windows: every image becomes the expected 8-bit RGB."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from tests.helpers.image_files import AS_IT_IS, png16_bytes, tiff_bytes
from tests.helpers.problems import image_of, raises
from toolkit import recipe
from toolkit.errors import ImageError, RecipeError
from toolkit.images import ImagePolicy, ImageRecord, load, reduced_size
from toolkit.images.policy import Resample, Window
from toolkit.images.ref import ImageRef
from toolkit.images.window import Array


def put(folder: Path, name: str, content: bytes | Image.Image | Array) -> ImageRef:
    """Return a file of bytes, of a Pillow image, or of an array (by OpenCV for what Pillow cannot write)."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Image.Image):
        content.save(path)
    else:
        Image.fromarray(content).save(path)
    return ImageRef(path)


def pixels(ref: ImageRef, policy: ImagePolicy = AS_IT_IS) -> Array:
    loaded = load(ref, policy)
    assert loaded.image.mode == "RGB"
    assert loaded.image.size == loaded.record.size
    return np.asarray(loaded.image)


def grey(ref: ImageRef, policy: ImagePolicy = AS_IT_IS) -> Array:
    """Return the plane of an image whose three channels are equal."""
    values = pixels(ref, policy)
    assert (values == values[..., :1]).all()
    return values[..., 0]


def between(values: Array, low: float, high: float) -> Array:
    """Return the expected windowed values: [low, high] to 0..255 in float64, rounded."""
    low, high = float(low), float(high)
    return np.rint((np.clip(values.astype(np.float64), low, high) - low) / (high - low) * 255)


def random_values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def test_a_ramp_of_65536_levels_becomes_256_evenly_spaced_levels(tmp_path: Path) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = grey(put(tmp_path, "ramp.png", ramp))
    assert np.array_equal(got.ravel(), between(ramp, 0, 65535).ravel())
    counts = np.bincount(got.ravel(), minlength=256)
    assert len(np.unique(got)) == 256
    assert set(counts[1:-1]) == {257}  # 65535 / 255 values a level. The two ends have half of that


def test_a_16_bit_radiograph_that_pillow_turns_white_keeps_its_256_levels(tmp_path: Path) -> None:
    xray = np.linspace(300, 60000, 65536).astype(np.uint16).reshape(256, 256)
    ref = put(tmp_path, "xray.png", xray)
    with Image.open(ref.path) as image:
        plain = np.asarray(image.convert("RGB"))
    assert (plain == 255).mean() > 0.99
    assert len(np.unique(grey(ref))) == 256


def test_12_bit_data_in_a_16_bit_container_use_the_whole_range(tmp_path: Path) -> None:
    data = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    loaded = load(put(tmp_path, "xray.png", data), AS_IT_IS)
    assert loaded.record.window == (0.0, 4095.0)
    assert loaded.record.window_from == "range"
    assert np.array_equal(np.asarray(loaded.image)[..., 0], between(data, 0, 4095))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "f4", "f8", "i1"])
def test_tiff_of_any_number_type_and_byte_order_is_windowed_to_its_range(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], order: Literal["<", ">"]
) -> None:
    values = random_values(dtype, shape)
    ref = put(tmp_path, "a.tif", tiff_bytes(values, order))
    low, high = float(values.min()), float(values.max())
    expected = between(values, low, high)
    got = pixels(ref) if values.ndim == 3 else grey(ref)
    assert np.abs(got - expected).max() <= 1  # float32 on the way: a tie may round the other way
    assert np.mean(got != expected) < 0.05
    assert load(ref, AS_IT_IS).record.window == (low, high)


def test_the_whole_range_of_unsigned_32_bits_does_not_turn_negative(tmp_path: Path) -> None:
    values = np.array([[0, 2**30, 3 * 2**30, 2**32 - 1]], np.uint32)
    assert grey(put(tmp_path, "a.tif", tiff_bytes(values))).tolist() == [[0, 64, 191, 255]]


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_16_bit_tiff_equals_the_uncompressed_one(tmp_path: Path, compression: str) -> None:
    values = random_values("u2", (40, 30))
    Image.fromarray(values).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(grey(ImageRef(tmp_path / "a.tif")), between(values, values.min(), values.max()))


def test_8_bit_channels_in_separate_planes_are_merged(tmp_path: Path) -> None:
    values = random_values("u1", (6, 5, 3))
    assert np.array_equal(pixels(put(tmp_path, "a.tif", tiff_bytes(values, separate=True))), values)


def test_white_is_zero_is_not_inverted(tmp_path: Path) -> None:
    values = np.array([[0, 1000], [2400, 4000]], np.uint16)
    assert grey(put(tmp_path, "deep.tif", tiff_bytes(values, photometric=0))).tolist() == [[255, 191], [102, 0]]
    small = np.array([[0, 55]], np.uint8)
    assert grey(put(tmp_path, "small.tif", tiff_bytes(small, photometric=0))).tolist() == [[255, 200]]


def test_16_bit_rgb_keeps_its_colours_under_one_window_for_all_channels(tmp_path: Path) -> None:
    values = random_values("u2", (20, 30, 3)) // 2
    expected = between(values, values.min(), values.max())
    assert np.array_equal(pixels(put(tmp_path, "a.png", png16_bytes(values))), expected)


@pytest.mark.parametrize("make", [png16_bytes, lambda v: tiff_bytes(v, extra=2)], ids=["png", "tiff"])
def test_16_bit_colours_with_alpha_are_composited_over_black(tmp_path: Path, make: Callable[[Array], bytes]) -> None:
    values = np.zeros((1, 4, 4), np.uint16)
    values[..., :3] = [[[0] * 3, [65535] * 3, [65535, 0, 0], [40000] * 3]]
    values[..., 3] = [65535, 65535, 32768, 0]
    loaded = load(put(tmp_path, "a.img", make(values)), AS_IT_IS)
    # half-transparent red: 255 * 32768 / 65535 = 127.5019, rounded 128
    assert np.asarray(loaded.image).tolist() == [[[0] * 3, [255] * 3, [128, 0, 0], [0] * 3]]
    assert loaded.record.transparent == 0.5


def test_a_wholly_transparent_pixel_does_not_widen_the_window(tmp_path: Path) -> None:
    values = np.array([[[100, 65535], [300, 65535], [65535, 0]]], np.uint16)
    loaded = load(put(tmp_path, "a.png", png16_bytes(values)), AS_IT_IS)
    assert loaded.record.window == (100.0, 300.0)
    assert np.asarray(loaded.image)[..., 0].tolist() == [[0, 255, 0]]


def test_premultiplied_alpha_of_a_tiff_is_not_applied_twice(tmp_path: Path) -> None:
    values = np.array([[[0, 0, 0, 65535], [65535, 0, 0, 65535], [30000, 0, 0, 30000]]], np.uint16)
    got = pixels(put(tmp_path, "a.tif", tiff_bytes(values, extra=1)))
    assert got[..., 0].tolist() == [[0, 255, 117]]  # 30000 / 257 = 116.7


@pytest.mark.parametrize("window", ["auto", "range", "percentile", "dicom"])
@pytest.mark.parametrize("name", ["L.png", "RGB.png", "L.tif", "RGB.tif", "RGB.bmp", "RGB.webp", "L.gif", "L.jpg"])
def test_8_bit_values_are_unchanged_under_every_window(tmp_path: Path, name: str, window: Window) -> None:
    mode = name.partition(".")[0]
    values = np.random.default_rng(0).integers(90, 140, (12, 10) if mode == "L" else (12, 10, 3), dtype=np.uint8)
    ref = put(tmp_path, name, values)
    with Image.open(ref.path) as image:
        expected = np.asarray(image.convert("RGB"))
    loaded = load(ref, ImagePolicy(window=window))
    assert np.array_equal(np.asarray(loaded.image), expected)
    assert (loaded.record.window, loaded.record.window_from) == (None, "none")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_fewer_than_8_bits_spans_black_to_white(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    image = Image.fromarray(np.array([[0, top, 1, 0]], np.uint8) * (255 if bits == 1 else 1))
    if bits == 1:
        image.convert("1").save(tmp_path / "a.png")
    else:
        row = bytes([sum(v << (8 - bits * (i + 1)) for i, v in enumerate([0, top, 1, 0]) if bits * i < 8)])
        second = b"" if bits == 2 else bytes([1 << 4])
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"\0" + row + second)),
            (b"IEND", b""),
        ]
        body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    loaded = load(ImageRef(tmp_path / "a.png"), AS_IT_IS)
    assert loaded.record.bits == bits
    assert np.asarray(loaded.image)[0, :, 0].tolist() == [0, 255, 255 // top, 0]


def test_palette_alpha_and_cmyk_equal_pillows_conversion_over_black(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rgb = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    paletted = rgb.quantize(8)
    paletted.info["transparency"] = 3
    images = {"p.png": rgb.quantize(8), "rgba.png": rgba, "la.png": rgba.convert("LA"), "t.png": paletted}
    images |= {"p.tif": rgb.quantize(8), "rgba.tif": rgba, "cmyk.tif": rgb.convert("CMYK"), "g.gif": rgb.quantize(8)}
    for name, image in images.items():
        ref = put(tmp_path, name, image)
        with Image.open(ref.path) as opened:
            whole = np.asarray(opened.convert("RGBA")).astype(float)
        expected = whole[..., :3] * whole[..., 3:] / 255
        assert np.abs(pixels(ref) - expected).max() <= 1, name
        assert load(ref, AS_IT_IS).record.transparent == np.mean(whole[..., 3] < 255), name


def test_a_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    bright = Image.new("RGB", (16, 16), (250, 200, 150))
    bright.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(pixels(ImageRef(tmp_path / "a.jpg"))[8, 8].astype(int) - [250, 200, 150]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_recorded(tmp_path: Path, orientation: int) -> None:
    values = np.zeros((24, 40, 3), np.uint8)
    values[:8, :8] = (255, 0, 0)
    values[-8:, :8] = (0, 255, 0)
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("a.jpg", "a.png", "a.webp"):
        path = tmp_path / name
        Image.fromarray(values).save(path, exif=exif, quality=100)
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        loaded = load(ImageRef(path), AS_IT_IS)
        assert np.array_equal(np.asarray(loaded.image), expected)
        assert loaded.record.orientation == orientation
        assert loaded.record.source_size == loaded.image.size == reduced_size(ImageRef(path), AS_IT_IS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_tiff_orientation_is_applied_once(tmp_path: Path, dtype: str, orientation: int) -> None:
    values = random_values(dtype, (6, 9))
    values[0, 0], values[-1, -1] = 0, np.iinfo(dtype).max
    ref = put(tmp_path, "a.tif", tiff_bytes(values, orientation=orientation))
    with Image.open(io.BytesIO(ref.path.read_bytes())) as image:
        image.load()  # Pillow makes a TIFF upright by itself, but only then and not where it maps the file
        upright = np.asarray(image)
    scale = 1 if dtype == "u1" else 257
    assert np.array_equal(grey(ref), np.rint(upright / scale))
    assert reduced_size(ref, AS_IT_IS) == upright.shape[::-1]


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("window", ["auto", "percentile"])
def test_a_constant_image_is_black(tmp_path: Path, dtype: str, window: Window) -> None:
    ref = put(tmp_path, "a.tif", tiff_bytes(np.full((8, 8), 77, dtype)))
    loaded = load(ref, ImagePolicy(window=window))
    assert not np.asarray(loaded.image).any()
    assert loaded.record.window == (77.0, 77.0)


def test_nan_and_infinities_are_counted_and_do_not_move_the_window(tmp_path: Path) -> None:
    values = np.array([[0, 50, 100, np.nan, np.inf, -np.inf]], np.float32)
    loaded = load(put(tmp_path, "a.tif", tiff_bytes(values)), AS_IT_IS)
    assert np.asarray(loaded.image)[0, :, 0].tolist() == [0, 128, 255, 0, 255, 0]
    assert (loaded.record.window, loaded.record.nonfinite) == ((0.0, 100.0), 3)


def test_an_image_with_only_nan_is_rejected(tmp_path: Path) -> None:
    with raises(ImageError, "images.no_finite_value") as caught:
        load(put(tmp_path, "a.tif", tiff_bytes(np.full((4, 4), np.nan, np.float32))), AS_IT_IS)
    assert image_of(caught) == tmp_path / "a.tif"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.sampled_from(["u2", "i2", "i4", "f4"]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
            elements={"min_value": -(2**20), "max_value": 2**20} if dtype == "f4" else None,
        )
    ),
    percentiles=st.tuples(st.floats(0, 49), st.floats(50.5, 100)),
)
def test_percentiles_are_numpys_order_statistics_and_values_outside_are_counted(
    tmp_path: Path, values: Array, percentiles: tuple[float, float]
) -> None:
    policy = ImagePolicy(max_side=4096, window="percentile", percentiles=percentiles)
    loaded = load(put(tmp_path, "a.tif", tiff_bytes(values)), policy)
    low, high = (float(v) for v in np.percentile(values, percentiles, method="inverted_cdf"))
    assert loaded.record.window == (low, high)
    assert loaded.record.below == np.mean(values < low)
    assert loaded.record.above == np.mean(values > high)
    expected = between(values, low, high) if high > low else (values > high) * 255
    assert np.abs(np.asarray(loaded.image)[..., 0] - expected).max() <= 1


def test_percentiles_keep_a_marker_from_darkening_the_radiograph(tmp_path: Path) -> None:
    xray = np.arange(1000, 1000 + 100 * 100, dtype=np.uint16).reshape(100, 100) // 10
    xray[0, :20] = 65535  # 0.2 % of the pixels: a metal marker
    ref = put(tmp_path, "a.png", xray)
    assert grey(ref)[50:].max() < 5
    loaded = load(ref, ImagePolicy(window="percentile"))
    assert np.asarray(loaded.image)[50:].max() > 240
    assert loaded.record.above == pytest.approx(0.005, abs=0.0011)
    assert loaded.record.clipped == loaded.record.below + loaded.record.above


def test_the_dicom_window_is_rejected_for_a_deep_image_without_one(tmp_path: Path) -> None:
    ref = put(tmp_path, "a.png", np.arange(64, dtype=np.uint16).reshape(8, 8))
    with raises(ImageError, "images.window_missing") as caught:
        load(ref, ImagePolicy(window="dicom"))
    assert (image_of(caught), caught.problem.value) == (ref.path, "16 bits without a window")


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (1000, 3), (3, 1000), (33, 33), (896, 10)])
def test_the_longest_side_is_reduced_but_never_enlarged_and_no_side_is_0(tmp_path: Path, size: tuple[int, int]) -> None:
    ref = put(tmp_path, "a.png", np.zeros(size[::-1], np.uint16))
    for side in (16, 32, 100):
        loaded = load(ref, ImagePolicy(max_side=side))
        factor = min(1, side / max(size))
        assert loaded.image.size == tuple(max(1, round(s * factor)) for s in size)
        assert loaded.image.size == reduced_size(ref, ImagePolicy(max_side=side))
        assert loaded.record.scale == (loaded.image.size[0] / size[0], loaded.image.size[1] / size[1])


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
def test_area_reduction_by_a_whole_factor_is_the_mean_of_blocks(tmp_path: Path, dtype: str) -> None:
    values = random_values(dtype, (64, 48))
    expected = values.astype(np.float64).reshape(16, 4, 12, 4).mean((1, 3))
    expected = expected if dtype == "u1" else between(expected, values.min(), values.max())
    got = grey(put(tmp_path, "a.tif", tiff_bytes(values)), ImagePolicy(max_side=16))
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("how", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 3)])
def test_the_other_filters_reduce_like_pillow_in_8_and_16_bits(
    tmp_path: Path, how: Resample, shape: tuple[int, ...]
) -> None:
    small = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    small.reshape(-1)[:2] = 0, 255
    expected = np.asarray(Image.fromarray(small).resize((24, 32), Image.Resampling[how.upper()]).convert("RGB"))
    policy = ImagePolicy(max_side=32, resample=how)
    assert np.array_equal(pixels(put(tmp_path, "a.png", small), policy), expected)
    deep = put(tmp_path, "b.png", png16_bytes(small.astype(np.uint16) * 257))
    # No overshoot may wrap round. Pillow rounds and clips 8 bits once more, between the two directions.
    assert np.abs(pixels(deep, policy).astype(int) - expected).max() <= 8


def test_few_grey_values_in_16_bits_are_still_averaged_smoothly(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2).astype(np.uint16)
    got = grey(put(tmp_path, "a.png", board), ImagePolicy(max_side=32))
    assert set(got.ravel()) == {128}  # two of four are white: 127.5


@pytest.mark.parametrize("deep", [True, False])
def test_each_page_of_a_tiff_is_a_frame(tmp_path: Path, deep: bool) -> None:
    pages = [np.full((5, 4), v, np.uint16 if deep else np.uint8) for v in (10, 20, 30)]
    for page in pages:
        page[0, 0] = 0
    first, *rest = (Image.fromarray(page) for page in pages)
    first.save(tmp_path / "a.tif", save_all=True, append_images=rest)
    for frame, value in enumerate((10, 20, 30)):
        loaded = load(ImageRef(tmp_path / "a.tif", frame), AS_IT_IS)
        assert np.asarray(loaded.image)[1, 1, 0] == (255 if deep else value)
        assert loaded.record.window == ((0.0, float(value)) if deep else None)
    with raises(ImageError, "images.frame_missing") as caught:
        load(ImageRef(tmp_path / "a.tif", 3), AS_IT_IS)
    assert caught.problem.value == "frame 3 of 3"


def test_frames_of_a_gif_are_distinct_and_a_png_has_one(tmp_path: Path) -> None:
    first, second = (Image.new("L", (4, 4), v) for v in (0, 200))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert grey(ImageRef(tmp_path / "a.gif", 1)).max() == 200
    ref = put(tmp_path, "a.png", np.zeros((4, 4), np.uint8))
    with raises(ImageError, "images.frame_missing"):
        load(ImageRef(ref.path, 1), AS_IT_IS)


def test_deep_images_of_other_formats_are_windowed_too(tmp_path: Path) -> None:
    values = np.linspace(0, 50_000, 400).astype(np.uint16).reshape(20, 20)
    for name in ("a.jp2", "a.pgm"):
        loaded = load(put(tmp_path, name, values), AS_IT_IS)
        assert loaded.record.window_from == "range"
        assert np.abs(np.asarray(loaded.image)[..., 0] - between(values, 0, 50_000)).max() <= 1


def test_the_format_comes_from_the_content_not_from_the_file_name(tmp_path: Path) -> None:
    ref = put(tmp_path, "really_a_png.jpg", b"")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(ref.path, format="PNG")
    assert load(ref, AS_IT_IS).record.format == "PNG"


def test_the_key_of_a_policy_changes_only_with_the_pixels() -> None:
    base = ImagePolicy()
    same = [ImagePolicy(max_pixels=10), ImagePolicy(percentiles=(1, 99))]
    other = [
        ImagePolicy(max_side=100),
        ImagePolicy(window="range"),
        ImagePolicy(window="percentile"),
        ImagePolicy(window="percentile", percentiles=(1, 99)),
        ImagePolicy(resample="lanczos"),
    ]
    assert {policy.key for policy in same} == {base.key}
    assert len({policy.key for policy in [base, *other]}) == 6
    assert ImagePolicy.from_recipe(recipe.Images(), recipe.Model()).key == base.key


def test_percentiles_that_do_not_rise_are_rejected() -> None:
    with raises(RecipeError, "recipe.percentiles_not_rising") as caught:
        ImagePolicy.from_recipe(recipe.Images(percentiles=(99, 1)), recipe.Model())
    assert (caught.problem.place, caught.problem.value) == ("images.percentiles", [99, 1])


@given(
    st.builds(
        ImageRecord,
        st.sampled_from(["PNG", "DICOM"]),
        *[st.tuples(st.integers(1, 9999), st.integers(1, 9999))] * 2,
        st.sampled_from([1, 8, 16]),
        st.none() | st.tuples(st.floats(-1e9, 0), st.floats(0, 1e9)),
    )
)
def test_a_record_is_the_same_after_json(record: ImageRecord) -> None:
    assert ImageRecord.from_json(record.as_json()) == record


def test_real_radiographs_keep_their_values(shared_data: Path) -> None:
    for path in sorted((shared_data / "cxr" / "nih").glob("*.png")):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        loaded = load(ImageRef(path), ImagePolicy())
        assert np.array_equal(np.asarray(loaded.image), expected)
        assert (loaded.record.source_size, loaded.record.bits) == ((512, 512), 8)


def test_real_jpegs_are_what_pillow_decodes_and_fit_the_longest_side(shared_data: Path) -> None:
    for path in sorted((shared_data / "cxr" / "vqa_rad" / "images").glob("*.jpg"))[:12]:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(pixels(ImageRef(path)), expected)
        assert max(load(ImageRef(path), ImagePolicy(max_side=448)).image.size) == min(448, max(expected.shape))


def test_opencv_and_pillow_writers_agree_about_a_16_bit_radiograph(tmp_path: Path) -> None:
    xray = random_values("u2", (50, 40))
    buffer = io.BytesIO()
    Image.fromarray(xray).save(buffer, "PNG")
    ours = [put(tmp_path, "cv.png", cv2.imencode(".png", xray)[1].tobytes()), put(tmp_path, "p.png", buffer.getvalue())]
    assert np.array_equal(grey(ours[0]), grey(ours[1]))
