"""Fixed windows and square images: pydicom's CT, hand-made files, and unchanged earlier policies."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from tests.helpers.problems import raises
from toolkit import recipe
from toolkit.data.image_sizes import coordinate_frame
from toolkit.errors import RecipeError
from toolkit.images import ImagePolicy, ImageRecord, ImageStore, load, reduced_size
from toolkit.images import render as render_module
from toolkit.images.policy import Resample, Square, Window
from toolkit.images.ref import ImageRef
from toolkit.images.window import Array
from toolkit.scoring.regions import COORDINATES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

SOFT_TISSUE = ImagePolicy(4096, "fixed", centre=40, width=400)
LUNG = ImagePolicy(4096, "fixed", centre=-600, width=1500)


def ct() -> ImageRef:
    return ImageRef(Path(get_testdata_file("CT_small.dcm", download=False)))


def hounsfield() -> np.ndarray:
    data = pydicom.dcmread(ct().path)
    return np.asarray(apply_modality_lut(data.pixel_array, data), float)


def grey(ref: ImageRef, policy: ImagePolicy) -> np.ndarray:
    return np.asarray(load(ref, policy).image)[..., 0].astype(int)


def dicom(folder: Path, stored: np.ndarray, **elements: object) -> ImageRef:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["toolkit"])
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, int(stored.dtype.kind == "i")
    for name, value in elements.items():
        setattr(data, name, value)
    data.PixelData = stored.tobytes()
    path = folder / f"{len(list(folder.iterdir()))}.dcm"
    data.save_as(path, enforce_file_format=True)
    return ImageRef(path)


def png(folder: Path, values: np.ndarray) -> ImageRef:
    path = folder / f"{len(list(folder.iterdir()))}.png"
    Image.fromarray(values).save(path)
    return ImageRef(path)


@pytest.mark.parametrize("policy", [SOFT_TISSUE, LUNG])
def test_a_fixed_window_is_applied_to_hounsfield_units(policy: ImagePolicy) -> None:
    low, high = policy.fixed_window
    expected = np.rint(((hounsfield() - low) / (high - low)).clip(0, 1) * 255)
    assert np.abs(grey(ct(), policy) - expected).max() <= 1
    assert load(ct(), policy).record.window_from == "fixed"


def test_soft_tissue_saturates_9_percent_of_a_ct_on_hounsfield_units_and_87_percent_on_stored_values() -> None:
    record = load(ct(), SOFT_TISSUE).record
    stored = pydicom.dcmread(ct().path).pixel_array
    assert record.above == pytest.approx(0.0872, abs=5e-5)
    assert record.above == np.mean(hounsfield() > 240)
    assert np.mean(grey(ct(), SOFT_TISSUE) == 255) == pytest.approx(0.088, abs=1e-3)
    assert np.mean(stored > 240) == pytest.approx(0.869, abs=5e-4)
    # The rest of what is outside the window is air, which is black.
    assert record.below == pytest.approx(0.230, abs=5e-4)


def test_the_fixed_window_replaces_the_window_of_the_file(tmp_path: Path) -> None:
    stored = np.arange(0, 4096, dtype=np.int16).reshape(64, 64)
    plain = dicom(tmp_path, stored, RescaleSlope=2, RescaleIntercept=-1000)
    own = dicom(tmp_path, stored, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=500, WindowWidth=100)
    assert (grey(plain, LUNG) == grey(own, LUNG)).all()
    expected = np.rint(((stored * 2.0 - 1000 + 1350) / 1500).clip(0, 1) * 255)
    assert np.abs(grey(own, LUNG) - expected).max() <= 1


def test_monochrome1_is_inverted_once(tmp_path: Path) -> None:
    stored = np.arange(-1000, 1000, dtype=np.int16)[:1600].reshape(40, 40)
    bright = grey(dicom(tmp_path, stored), SOFT_TISSUE)
    inverse = grey(dicom(tmp_path, stored, PhotometricInterpretation="MONOCHROME1"), SOFT_TISSUE)
    assert np.abs(bright + inverse - 255).max() <= 1
    assert bright.max() == inverse.max() == 255


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black_and_is_not_counted(tmp_path: Path, photometric: str) -> None:
    stored = np.full((10, 10), 100, np.int16)
    stored[:5] = -2000
    ref = dicom(tmp_path, stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
    loaded = load(ref, SOFT_TISSUE)
    assert (grey(ref, SOFT_TISSUE)[:5] == 0).all()
    assert (grey(ref, SOFT_TISSUE)[5:] > 0).all()
    assert loaded.record.clipped == 0


def test_images_of_8_bits_keep_their_values_under_a_fixed_window(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (grey(png(tmp_path, values), SOFT_TISSUE) == values).all()


@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64), (7, 200)])
def test_pad_puts_the_whole_image_into_a_square_with_black_margins(tmp_path: Path, shape: tuple[int, int]) -> None:
    loaded = load(png(tmp_path, np.full(shape, 200, np.uint8)), ImagePolicy(32, square="pad"))
    values = np.asarray(loaded.image)
    x1, y1, x2, y2 = loaded.record.content or (0, 0, 32, 32)
    mask = np.zeros((32, 32), np.bool_)
    mask[y1:y2, x1:x2] = True
    assert values.shape == (32, 32, 3)
    assert (values[mask] == 200).all()
    assert (values[~mask] == 0).all()
    height, width = (max(1, round(side * 32 / max(shape))) for side in shape)
    assert mask.sum() == height * width
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    for used in (rows, columns):
        assert abs(used[0] - (31 - used[-1])) <= 1
    assert loaded.record.scale == (width / shape[1], height / shape[0])


@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64), (7, 12)])
def test_crop_takes_the_central_square(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    side = min(shape)
    loaded = load(png(tmp_path, values), ImagePolicy(side, square="crop"))
    y, x = ((length - side) // 2 for length in shape)
    assert (np.asarray(loaded.image)[..., 0] == values[y : y + side, x : x + side]).all()
    assert loaded.record.source_size == (side, side)
    assert loaded.record.content is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("square", ["pad", "crop"])
def test_squares_are_cut_from_the_upright_image(tmp_path: Path, orientation: int, square: Square) -> None:
    values = np.random.default_rng(1).integers(0, 256, (11, 24)).astype(np.uint8)
    image, exif = Image.fromarray(values), Image.Exif()
    exif[0x0112] = orientation
    turned = tmp_path / "turned.png"
    image.save(turned, exif=exif)
    with Image.open(turned) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
    policy = ImagePolicy(16, resample="bilinear", square=square)
    expected = load(png(tmp_path, upright), policy)
    found = load(ImageRef(turned), policy)
    assert np.abs(np.asarray(found.image).astype(int) - np.asarray(expected.image)).max() <= 1
    assert found.record.content == expected.record.content


@pytest.mark.parametrize("square", ["pad", "crop"])
@pytest.mark.parametrize("resample", ["area", "bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_smaller_images_are_enlarged_to_the_square(
    tmp_path: Path, square: Square, resample: Resample, dtype: type[np.unsignedinteger[Any]]
) -> None:
    ramp: Array = np.tile(np.linspace(0, np.iinfo(dtype).max, 12).astype(dtype), (12, 1))
    policy = ImagePolicy(48, resample=resample, square=square)
    ref = png(tmp_path, ramp)
    values = grey(ref, policy)
    assert values.shape == (48, 48)
    assert (np.diff(values[24]) >= -2).all()
    assert abs(values.mean() - 127.5) < 3
    assert reduced_size(ref, policy) == (48, 48)


def test_area_enlarges_smoothly(tmp_path: Path) -> None:
    ramp: Array = np.tile(np.array([0, 80, 160, 240], np.uint8), (4, 1))
    values = grey(png(tmp_path, ramp), ImagePolicy(32, square="pad"))
    assert np.abs(np.diff(values[16])).max() <= 11


def test_colours_keep_their_channels_in_a_square(tmp_path: Path) -> None:
    colours = np.zeros((10, 20, 3), np.uint8)
    colours[..., 0] = 250
    values = np.asarray(load(png(tmp_path, colours), ImagePolicy(20, square="pad")).image)
    assert values[10, 10].tolist() == [250, 0, 0]
    assert values[0, 10].tolist() == [0, 0, 0]


def test_a_crop_of_the_row_becomes_a_square_too(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 256, (40, 40)).astype(np.uint8)
    ref = ImageRef(png(tmp_path, values).path, crop=(4, 8, 24, 18))
    found = grey(ref, ImagePolicy(10, square="crop"))
    assert (found == values[8:18, 9:19]).all()


def test_the_key_changes_with_window_and_square_and_earlier_keys_stay() -> None:
    # The keys of images that are cached on users' disks.
    assert ImagePolicy().key == "d106d6002c142fa6"
    assert ImagePolicy(512, "percentile").key == "949624d97ae08875"
    policies = [
        ImagePolicy(),
        SOFT_TISSUE,
        LUNG,
        ImagePolicy(4096, "fixed", centre=40, width=401),
        ImagePolicy(square="pad"),
        ImagePolicy(square="crop"),
        ImagePolicy(4096, "fixed", centre=40, width=400, square="pad"),
    ]
    assert len({policy.key for policy in policies}) == len(policies)
    assert ImagePolicy(4096, "fixed", centre=40.0, width=400.0).key == SOFT_TISSUE.key


def test_a_record_cached_before_margins_existed_is_read() -> None:
    record = ImageRecord("PNG", (4, 4), (4, 4), 8, content=(0, 1, 4, 3))
    assert ImageRecord.from_json(record.as_json()) == record
    old = {name: value for name, value in record.as_json().items() if name != "content"}
    assert ImageRecord.from_json(old).content is None


def test_margins_survive_the_disk_cache(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    ref = png(tmp_path / "images", np.full((10, 40), 90, np.uint8))
    policy = ImagePolicy(20, square="pad")
    first = ImageStore(policy, memory_mb=0, disk=tmp_path / "cache").load(ref)
    store = ImageStore(policy, memory_mb=0, disk=tmp_path / "cache")
    again = store.load(ref)
    assert store.report().disk_hits == 1
    assert again.record == first.record
    assert again.record.content == (0, 7, 20, 12)
    assert (np.asarray(again.image) == np.asarray(first.image)).all()


@pytest.mark.parametrize(
    ("window", "centre", "width"),
    [("fixed", None, 400), ("fixed", 40, None), ("fixed", 40, 0), ("fixed", float("nan"), 1), ("auto", 40, 400)],
)
def test_a_fixed_window_needs_centre_and_width(window: Window, centre: float | None, width: float | None) -> None:
    code = "images.fixed_window_malformed" if window == "fixed" else "images.window_not_fixed"
    with raises(RecipeError, code):
        ImagePolicy(window=window, centre=centre, width=width)


def test_the_examples_in_docstrings_hold() -> None:
    result = doctest.testmod(render_module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (50, 50)])
def test_coordinates_of_a_padded_image_are_those_of_the_square(tmp_path: Path, size: tuple[int, int]) -> None:
    """A white box on grey is found in the pixels of the square at the coordinates of the model."""
    policy = ImagePolicy.from_recipe(recipe.Images(max_side=120), recipe.Model(name="google/medgemma-4b-it"))
    box = (10, 20, 30, 40)
    image = Image.new("RGB", size, (90, 90, 90))
    image.paste((255, 255, 255), box)
    image.save(tmp_path / "a.png")
    loaded = load(ImageRef(tmp_path / "a.png"), policy)
    frame = coordinate_frame(size, policy, COORDINATES["thousand"])
    rows, columns = np.nonzero(np.asarray(loaded.image)[..., 0] > 172)
    found = [edge * 1000 / 120 for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
    written = frame.write(box)
    assert written == pytest.approx(found, abs=1000 / 120)
    assert frame.read(written) == pytest.approx(box, abs=0.05)
    assert loaded.image.size == policy.output_size(size) == (120, 120)
    assert loaded.record.content == policy.content_box(size)


def test_only_medgemma_is_padded_by_default() -> None:
    def square(name: str, value: str = "auto", **model: str) -> str:
        images = recipe.Images.model_validate({"square": value})
        return ImagePolicy.from_recipe(images, recipe.Model.model_validate({"name": name, **model})).square

    names = ("tiny", "google/gemma-3-4b-it", "Qwen/Qwen2.5-VL-7B-Instruct", "google/medgemma-1.5-4b-it")
    assert [square(name) for name in names] == ["off", "off", "off", "pad"]
    assert square("google/medgemma-4b-it", "off") == "off"
    assert square("acme/model", family="medgemma-1") == "pad"
    assert square("tiny", "pad") == "pad"
