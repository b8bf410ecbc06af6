"""What an image is: frames, colours, rejected formats and layouts, and sizes that a model rejects."""

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import toolkit
from tests.helpers.cli import call
from tests.helpers.image_files import AS_IT_IS, png16_bytes, tiff_bytes
from tests.helpers.problems import raises, warnings_in
from tests.helpers.real_processors import unpack_processors
from tests.helpers.recipes import load_recipe, make_recipe
from toolkit.errors import ImageError, RecipeError
from toolkit.images import ImagePolicy, ImageStore, load, scan
from toolkit.images.header import PILLOW_FORMATS
from toolkit.images.ref import ImageRef
from toolkit.images.scan import NOTES, ScanMode
from toolkit.images.window import Array
from toolkit.models.image_sizes import ProcessorSizes
from toolkit.recipe import Model
from toolkit.recipe.windows import hounsfield_windows

GREY = [Image.new("L", (32, 20), value) for value in (10, 90, 200)]
RGB = [one.convert("RGB") for one in GREY]


def notes(refs: Sequence[ImageRef], policy: ImagePolicy = AS_IT_IS, mode: ScanMode = "full") -> dict[str, int]:
    report = scan(refs, ImageStore(policy), mode)
    assert not report.bad
    return {note.code: note.count for note in report.notes}


def saved(folder: Path, name: str, images: Sequence[Image.Image]) -> ImageRef:
    images[0].save(folder / name, save_all=len(images) > 1, append_images=images[1:])
    return ImageRef(folder / name)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_of_several_frames_is_used_and_counted(tmp_path: Path, name: str) -> None:
    ref = saved(tmp_path, name, RGB)
    one = saved(tmp_path, f"single{Path(name).suffix}", RGB[:1])
    modes: tuple[ScanMode, ...] = ("full", "header")
    for mode in modes:
        assert notes([ref, one], mode=mode)["images.first_frame"] == 1
    assert abs(int(np.asarray(load(ref, AS_IT_IS).image)[0, 0, 0]) - 10) <= 2
    assert abs(int(np.asarray(load(ImageRef(ref.path, 2), AS_IT_IS).image)[0, 0, 0]) - 200) <= 2
    with raises(ImageError, "images.frame_missing") as caught:
        load(ImageRef(ref.path, 3), AS_IT_IS)
    assert caught.problem.value == "frame 3 of 3"


def test_a_deep_colour_image_is_reported_as_stretched(tmp_path: Path) -> None:
    colours = np.linspace(1000, 20000, 32 * 20 * 3).reshape(20, 32, 3).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png16_bytes(colours))
    (tmp_path / "grey.png").write_bytes(png16_bytes(colours[..., 0]))
    assert notes([ImageRef(tmp_path / name) for name in ("a.png", "grey.png")]) == {"images.colour_stretched": 1}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\n<!DOCTYPE HTML><html>404</html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer without the file itself"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"PK\x03\x04\0\0", "a ZIP archive"),
    ],
)
def test_a_file_of_another_format_is_named_and_not_opened(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with raises(ImageError, "images.format_unknown") as caught:
        load(ImageRef(tmp_path / "a.png"), AS_IT_IS)
    assert caught.problem.value == name


def test_formats_outside_the_list_are_rejected_although_pillow_reads_them(tmp_path: Path) -> None:
    for suffix in ("ico", "pcx", "tga", "eps", "sgi", "icns"):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32)).save(buffer, suffix)
        (tmp_path / "a.png").write_bytes(buffer.getvalue())
        with raises(ImageError, "images.format_unknown"):
            load(ImageRef(tmp_path / "a.png"), AS_IT_IS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif", "webp", "jp2", "ppm"])
def test_every_format_of_the_list_is_read(tmp_path: Path, suffix: str) -> None:
    record = load(saved(tmp_path, f"a.{suffix}", RGB[1:2]), AS_IT_IS).record
    assert record.format in PILLOW_FORMATS
    assert record.size == (32, 20)


def test_image_files_are_opened_in_one_place() -> None:
    sources = {path: path.read_text() for path in Path(toolkit.__file__).parent.rglob("*.py")}
    found = {path.name: text.count("Image.open(") for path, text in sources.items() if "Image.open(" in text}
    assert found == {"header.py": 1}
    assert not [path for path, text in sources.items() if "cv2.imread(" in text]


def test_a_cmyk_jpeg_has_its_colours(tmp_path: Path) -> None:
    ref = saved(tmp_path, "a.jpg", [Image.new("CMYK", (32, 32), (0, 255, 255, 0))])
    assert np.abs(np.asarray(load(ref, AS_IT_IS).image)[5, 5].astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize(
    ("values", "photometric", "words"),
    [
        (np.zeros((4, 4, 4), np.uint16), 5, ("CMYK", "16 bits")),
        (np.zeros((4, 4), np.uint16), 3, ("palette", "16 bits")),
        (np.zeros((4, 4, 3), np.uint8), 8, ("CIELab", "8 bits")),
        (np.zeros((4, 4), np.float16), 1, ("16 bits as floats",)),
        (np.zeros((4, 4, 2), np.uint16), 1, ("2 channels",)),
    ],
)
def test_a_tiff_layout_that_is_not_supported_is_named(
    tmp_path: Path, values: Array, photometric: int, words: tuple[str, ...]
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff_bytes(values, photometric=photometric))
    with raises(ImageError, "images.tiff_layout_unsupported") as caught:
        load(ImageRef(tmp_path / "a.tif"), AS_IT_IS)
    assert all(word in str(caught.problem.value) for word in words)


def test_the_header_alone_of_a_tiff_is_a_truncated_file(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0\0\0\0\0")
    with raises(ImageError, "images.truncated"):
        load(ImageRef(tmp_path / "a.tif"), AS_IT_IS)


def test_a_float_tiff_keeps_its_full_range(tmp_path: Path) -> None:
    values = np.linspace(-3, 7, 40).astype(np.float32).reshape(5, 8)
    (tmp_path / "a.tif").write_bytes(tiff_bytes(values))
    assert load(ImageRef(tmp_path / "a.tif"), AS_IT_IS).record.window == (-3.0, 7.0)


def reject_strips(size: tuple[int, int]) -> str:
    return "too long" if max(size) > 200 * min(size) else ""


@pytest.mark.parametrize("mode", ["full", "header"])
def test_a_size_that_the_model_rejects_is_an_unreadable_image(tmp_path: Path, mode: ScanMode) -> None:
    strip, wide = (
        saved(tmp_path, name, [Image.new("L", size)])
        for name, size in (("strip.png", (4800, 20)), ("wide.png", (4000, 20)))
    )
    policy = ImagePolicy(max_side=896)
    assert policy.output_size((4800, 20)) == (896, 4)  # the size for the model counts: 224 to 1, and 224 for 4000 x 20
    store = ImageStore(policy, "placeholder", rejection=reject_strips)
    report = scan([strip, wide], store, mode)
    assert [(one.ref.path.name, one.error.code) for one in report.bad] == [
        ("strip.png", "images.size_rejected"),
        ("wide.png", "images.size_rejected"),
    ]
    with raises(ImageError, "images.size_rejected"):
        store.reduced_size(strip)
    assert store.load(strip).record.placeholder
    large = ImageStore(ImagePolicy(max_side=4096), rejection=reject_strips)
    assert [one.ref.path.name for one in scan([strip, wide], large, mode).bad] == ["strip.png"]


@pytest.mark.slow
def test_a_real_processor_of_qwen_rejects_strips_of_200_to_1(
    tmp_path: Path, shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = unpack_processors(shared_data, tmp_path) / "processors" / "qwen2_vl"
    rejection = ProcessorSizes(Model(name=str(folder)))
    accepted = {size: not rejection(size) for size in [(896, 4), (4, 896), (896, 5), (1, 1), (300, 200)]}
    assert accepted == {(896, 4): False, (4, 896): False, (896, 5): True, (1, 1): True, (300, 200): True}
    assert "200" in pickle.loads(pickle.dumps(rejection))((896, 4))
    assert ProcessorSizes(Model(name=str(tmp_path / "none")))((896, 4)) == ""
    assert "images.sizes_not_checked" in {problem.code for problem in warnings_in(caplog)}


def test_an_image_smaller_than_a_patch_is_reported(tmp_path: Path) -> None:
    refs = [saved(tmp_path, f"{size[0]}.png", [Image.new("L", size)]) for size in ((1, 1), (20, 9), (14, 14))]
    assert notes(refs)["images.smaller_than_patch"] == 2


def test_an_image_of_one_value_is_reported(tmp_path: Path) -> None:
    refs = [saved(tmp_path, f"{value}.png", [Image.new("RGB", (40, 20), (value, 9, 9))]) for value in (0, 9, 200)]
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "eye.png")
    assert notes([*refs, ImageRef(tmp_path / "eye.png")]) == {"images.constant": 3}


def test_a_truncated_jpeg_with_a_thumbnail_is_incomplete(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    thumbnail, photo = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(thumbnail, "JPEG")
    exif = b"Exif\0\0" + thumbnail.getvalue()
    Image.fromarray(pixels).save(photo, "JPEG", exif=exif)
    (tmp_path / "whole.jpg").write_bytes(photo.getvalue())
    (tmp_path / "cut.jpg").write_bytes(photo.getvalue()[:9000])
    assert load(ImageRef(tmp_path / "whole.jpg"), AS_IT_IS).record.source_size == (200, 200)
    with raises(ImageError, "images.truncated"):
        load(ImageRef(tmp_path / "cut.jpg"), AS_IT_IS)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"\0\0\0\x20ftypisom\0\0\2\0", "a video or another MPEG-4 file"),
        (b"ObjectType = Image\nNDims = 3\n", "MetaImage"),
        (b"junk", "a file that begins with b'…'"),
    ],
)
def test_a_file_that_is_no_image_is_described(tmp_path: Path, content: bytes, value: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with raises(ImageError, "images.format_unknown") as caught:
        load(ImageRef(tmp_path / "a.png"), AS_IT_IS)
    assert caught.problem.value == value


def test_every_note_has_a_sentence() -> None:
    assert all(code.startswith("images.") and text for code, text in NOTES.items())


def recipe_file(folder: Path, **images: object) -> Path:
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    names = ["a.png", "b.png"]
    rows = [{"id": f"r{i}", "question": f"q{i}", "answer": "yes", "image": name} for i, name in enumerate(names)]
    (folder / "rows.json").write_text(json.dumps(rows))
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in images.items())
    data = '[data]\ntask = "vqa"\ntrain = "rows.json"\nsplit = { test = 0 }\n'
    (folder / "r.toml").write_text(f'[run]\nname = "x"\n{data}[images]\n{lines}[sft]\n')
    return folder / "r.toml"


def test_inspect_exits_with_1_if_an_image_is_unusable_and_the_run_would_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["data", "inspect", str(recipe_file(tmp_path))]) == 1
    assert "rows.json, row 1, image 1:" in capsys.readouterr().out
    assert call(["data", "inspect", str(recipe_file(tmp_path, unreadable="placeholder"))]) == 0


@pytest.mark.parametrize(
    ("window", "windows"),
    [
        ("auto", ()),
        ("hu:40,400", ((-160.0, 240.0),)),
        ("brain", ((0.0, 80.0),)),
        ("medgemma_ct", ((-1024.0, 1024.0), (-135.0, 215.0), (0.0, 80.0))),
        (["wide", "hu:40,350", "brain"], ((-1024.0, 1024.0), (-135.0, 215.0), (0.0, 80.0))),
    ],
)
def test_a_recipe_names_hounsfield_windows(window: object, windows: tuple[tuple[float, float], ...]) -> None:
    data = {"task": "vqa", "train": "a.json"}
    recipe = make_recipe({"run": {"name": "x"}, "data": data, "images": {"window": window}, "sft": {}})
    policy = ImagePolicy.from_recipe(recipe.images, recipe.model)
    assert policy.windows == windows
    assert policy.window == ("hu" if windows else "auto")


@pytest.mark.parametrize("window", ["lungs", "hu:40", "hu:40,0", "hu:40,-5", "hu:nan,400", "hu:a,b", ["brain", "x"]])
def test_an_unknown_window_is_rejected(window: str | list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        hounsfield_windows(window)
    assert caught.value.args[0] in window


def test_a_recipe_with_an_unknown_window_is_rejected_with_the_nearest(tmp_path: Path) -> None:
    with raises(RecipeError, "recipe.window_unknown") as caught:
        load_recipe(recipe_file(tmp_path, window="lungs"))
    assert "lung" in caught.problem.remedy
