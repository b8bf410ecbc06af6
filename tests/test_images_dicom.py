"""DICOM: values, windows and colours against pydicom's own functions, on its example files and generated ones."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, get_decoder, pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, SecondaryCaptureImageStorage, generate_uid

from tests.helpers.problems import raises
from toolkit.errors import ImageError, MissingExtraError
from toolkit.images import ImagePolicy, ImageStore, load, reduced_size, scan
from toolkit.images.ref import ImageRef
from toolkit.images.window import Array

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

AUTO = ImagePolicy(max_side=4096)
RANGE = ImagePolicy(max_side=4096, window="range")


def example(name: str, frame: int = 0) -> ImageRef:
    """Return a file of pydicom's wheel. Nothing is downloaded."""
    return ImageRef(path_of(name), frame)


def path_of(name: str) -> Path:
    return Path(get_testdata_file(name, download=False))


def made(folder: Path, stored: Array, **elements: Any) -> ImageRef:
    """Write a DICOM file of grey values."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["toolkit"])
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        data.NumberOfFrames = len(stored)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = stored.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in elements.items():
        setattr(data, name, value)
    data.PixelData = stored.tobytes()
    path = folder / "made.dcm"
    data.save_as(path, enforce_file_format=True)
    return ImageRef(path)


def grey(ref: ImageRef, policy: ImagePolicy = AUTO) -> Array:
    values = np.asarray(load(ref, policy).image)
    assert (values == values[..., :1]).all()
    return values[..., 0].astype(int)


def by_pydicom(ref: ImageRef) -> Array:
    """Return the values by pydicom's modality and window functions, with the range of the stored bits as 0 to 255."""
    data = pydicom.dcmread(ref.path)
    values = apply_voi_lut(apply_modality_lut(pixel_array(data, index=ref.frame), data), data).astype(float)
    lowest = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
    expected: Array = np.rint((values - lowest) / (2**data.BitsStored - 1) * 255)
    return expected


RAMP = np.arange(0, 4096, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize("name", ["MR_small.dcm", "examples_overlay.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"])
def test_the_window_of_a_file_is_applied_as_by_pydicom(name: str) -> None:
    ref = example(name)
    assert np.abs(grey(ref) - by_pydicom(ref)).max() <= 1
    assert load(ref, AUTO).record.window_from == "dicom"


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [("LINEAR", 1000.0, 2999.0), ("LINEAR_EXACT", 1000.0, 3000.0), (None, 1000.0, 2999.0)],
)
def test_linear_windows_follow_the_standard(tmp_path: Path, function: str | None, low: float, high: float) -> None:
    # PS3.3 C.11.2.1.2: LINEAR reaches (w - 1) / 2 to both sides of c - 0.5, LINEAR_EXACT w / 2 to both sides of c
    extra = {} if function is None else {"VOILUTFunction": function}
    ref = made(tmp_path, RAMP, WindowCenter=2000, WindowWidth=2000, **extra)
    record = load(ref, AUTO).record
    assert record.window == (low, high)
    assert np.abs(grey(ref) - by_pydicom(ref)).max() <= 1
    assert record.below == np.mean(low > RAMP)
    assert record.above == np.mean(high < RAMP)


def test_a_sigmoid_window_follows_pydicom(tmp_path: Path) -> None:
    ref = made(tmp_path, RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    data = pydicom.dcmread(ref.path)
    expected = np.rint(apply_voi_lut(RAMP, data) / 65535 * 255)  # the sigmoid spans the 16 stored bits
    assert np.abs(grey(ref) - expected).max() <= 1


def test_a_voi_table_takes_precedence_over_a_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (65535 * (np.arange(4096) / 4095) ** 2).astype(np.uint16).tobytes()
    ref = made(tmp_path, RAMP, VOILUTSequence=Sequence([table]), WindowCenter=10, WindowWidth=5)
    assert np.abs(grey(ref) - np.rint((RAMP / 4095.0) ** 2 * 255)).max() <= 1


def test_a_modality_table_is_applied(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.ModalityLUTType = "US"
    table.LUTData = (60_000 - 10 * np.arange(4096)).astype(np.uint16).tobytes()
    ref = made(tmp_path, RAMP, ModalityLUTSequence=Sequence([table]))
    assert grey(ref)[0, 0] == 255
    assert grey(ref)[-1, -1] == 0
    assert load(ref, AUTO).record.window == (60_000.0 - 40_950, 60_000.0)


def test_without_a_window_the_range_after_rescale_is_used() -> None:
    # CT_small holds 128..2191 with slope 1 and intercept -1024
    ref = example("CT_small.dcm")
    record = load(ref, AUTO).record
    assert (record.window, record.window_from) == ((-896.0, 1167.0), "range")
    assert np.abs(grey(ref) - np.rint((pixel_array(ref.path) - 128.0) / (2191 - 128) * 255)).max() <= 1


def test_the_policy_range_ignores_the_window_of_the_file() -> None:
    record = load(example("MR_small.dcm"), RANGE).record
    assert (record.window, record.window_from) == ((127.0, 2145.0), "range")


HU = ImagePolicy(max_side=4096, window="hu", windows=((-160.0, 240.0),))


def test_a_hounsfield_window_applies_after_the_rescale() -> None:
    loaded = load(example("CT_small.dcm"), HU)
    ct = pydicom.dcmread(path_of("CT_small.dcm"))
    hounsfield = ct.pixel_array * float(ct.RescaleSlope) + float(ct.RescaleIntercept)
    expected = np.round((hounsfield.clip(-160, 240) + 160) / 400 * 255)
    assert np.abs(np.asarray(loaded.image)[..., 0] - expected).max() <= 1
    assert loaded.record.window_from == "hu"
    three = ImagePolicy(max_side=4096, window="hu", windows=((-1024.0, 1024.0), (-135.0, 215.0), (0.0, 80.0)))
    colours = np.asarray(load(example("CT_small.dcm"), three).image, np.float64)
    for plane, (low, high) in zip(np.moveaxis(colours, 2, 0), three.windows, strict=True):
        assert np.abs(plane - np.round((hounsfield.clip(low, high) - low) / (high - low) * 255)).max() <= 1


def test_a_hounsfield_window_rejects_other_units() -> None:
    for name in ("MR_small.dcm", "rtdose.dcm"):
        with raises(ImageError, "images.not_hounsfield"):
            load(example(name), HU)


def test_a_multi_frame_file_is_reported() -> None:
    report = scan([example("rtdose.dcm"), example("rtdose.dcm", 3)], ImageStore(AUTO))
    assert {note.code: note.count for note in report.notes}["images.first_frame"] == 1


@pytest.mark.parametrize(
    "elements", [{"WindowCenter": 100, "WindowWidth": 0}, {"WindowCenter": "", "WindowWidth": ""}, {}]
)
def test_a_window_without_width_is_none(tmp_path: Path, elements: dict[str, Any]) -> None:
    ref = made(tmp_path, RAMP, **elements)
    assert load(ref, AUTO).record.window_from == "range"
    with raises(ImageError, "images.window_missing"):
        load(ref, ImagePolicy(window="dicom"))


def test_the_first_of_several_windows_is_used(tmp_path: Path) -> None:
    ref = made(tmp_path, RAMP, WindowCenter=[2000, 100], WindowWidth=[2001, 10])
    assert load(ref, AUTO).record.window == (999.5, 2999.5)


@pytest.mark.parametrize(
    "elements", [{}, {"WindowCenter": 2000, "WindowWidth": 1000}, {"RescaleSlope": 2, "RescaleIntercept": 1}]
)
def test_monochrome1_is_the_negative_of_monochrome2(tmp_path: Path, elements: dict[str, Any]) -> None:
    positive = grey(made(tmp_path, RAMP, **elements))
    negative = grey(made(tmp_path, RAMP, PhotometricInterpretation="MONOCHROME1", **elements))
    assert np.abs(positive + negative - 255).max() <= 1
    assert negative[0, 0] == 255


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_widen_the_window(tmp_path: Path, photometric: str) -> None:
    stored = np.full((8, 8), -2000, np.int16)
    stored[2:6, 2:6] = np.arange(16).reshape(4, 4) * 100
    ref = made(tmp_path, stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
    loaded = load(ref, AUTO)
    assert loaded.record.window == (0.0, 1500.0)
    assert loaded.record.clipped == 0
    shown = grey(ref)
    assert not shown[stored == -2000].any()
    assert shown[2, 2] == (255 if photometric == "MONOCHROME1" else 0)
    assert shown[5, 5] == (0 if photometric == "MONOCHROME1" else 255)


def test_8_bit_grey_without_a_window_is_unchanged() -> None:
    ref = example("image_dfl.dcm")
    assert np.array_equal(grey(ref), pixel_array(pydicom.dcmread(ref.path)))
    assert load(ref, AUTO).record.window is None


def test_a_mask_of_one_bit_is_black_and_white() -> None:
    ref = example("liver_1frame.dcm")
    assert np.array_equal(grey(ref), pixel_array(ref.path) * 255)
    assert load(ref, AUTO).record.bits == 1


def test_a_palette_is_converted_to_its_colours() -> None:
    ref = example("examples_palette.dcm")
    data = pydicom.dcmread(ref.path)
    expected = apply_color_lut(pixel_array(data), data)
    assert expected.dtype == np.uint16
    assert np.array_equal(np.asarray(load(ref, AUTO).image), expected >> 8)


@pytest.mark.parametrize(
    "name", ["examples_rgb_color.dcm", "examples_ybr_color.dcm", "examples_jpeg2k.dcm", "SC_rgb_jpeg_dcmtk.dcm"]
)
def test_colours_of_every_encoding_are_converted_to_rgb(name: str) -> None:
    ref = example(name)
    assert np.array_equal(np.asarray(load(ref, AUTO).image), pixel_array(ref.path, index=0))


def test_each_frame_is_an_image_and_further_frames_are_rejected() -> None:
    first, last = (load(example("examples_ybr_color.dcm", frame), AUTO) for frame in (0, 29))
    assert not np.array_equal(np.asarray(first.image), np.asarray(last.image))
    expected = pixel_array(path_of("examples_ybr_color.dcm"), index=29)
    assert np.array_equal(np.asarray(last.image), expected)
    with raises(ImageError, "images.frame_missing") as caught:
        load(example("examples_ybr_color.dcm", 30), AUTO)
    assert caught.problem.value == "frame 30 of 30"


def test_each_frame_of_an_enhanced_file_has_its_own_window(tmp_path: Path) -> None:
    def group(name: str, **elements: Any) -> Dataset:
        item, outer = Dataset(), Dataset()
        for key, value in elements.items():
            setattr(item, key, value)
        setattr(outer, name, Sequence([item]))
        return outer

    each = [group("FrameVOILUTSequence", WindowCenter=c, WindowWidth=101) for c in (1000, 2000)]
    shared = group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=-10)
    groups = {
        "PerFrameFunctionalGroupsSequence": Sequence(each),
        "SharedFunctionalGroupsSequence": Sequence([shared]),
    }
    ref = made(tmp_path, np.stack([RAMP, RAMP]), **groups)
    for frame, centre in enumerate((1000, 2000)):
        loaded = load(ImageRef(ref.path, frame), AUTO)
        assert loaded.record.window == (centre - 50.5, centre + 49.5)
        # the brightest value that is still black: 2 v - 10 <= low
        assert np.asarray(loaded.image)[..., 0].ravel()[int((centre - 50.5 + 10) // 2)] == 0
        assert np.asarray(loaded.image)[..., 0].ravel()[int((centre + 49.5 + 10) // 2) + 1] == 255


def test_a_file_without_preamble_is_recognized_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "old.dcm"
    path.write_bytes(path_of("MR_small.dcm").read_bytes()[132:])
    assert np.array_equal(grey(ImageRef(path)), grey(example("MR_small.dcm")))


def test_a_dicom_file_needs_no_extension(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(path_of("MR_small.dcm").read_bytes())
    assert load(ImageRef(tmp_path / "IM0001"), AUTO).record.format == "DICOM"


def test_reduction_and_scale_are_those_of_other_formats() -> None:
    policy = ImagePolicy(max_side=100)
    loaded = load(example("examples_palette.dcm"), policy)
    assert loaded.record.source_size == (800, 350)
    assert loaded.image.size == (100, 44) == reduced_size(example("examples_palette.dcm"), policy)


@pytest.mark.parametrize(
    ("name", "code"), [("MR_truncated.dcm", "images.truncated"), ("JPEG-lossy.dcm", "images.not_decodable")]
)
def test_damaged_files_are_rejected(name: str, code: str) -> None:
    with raises(ImageError, code):
        load(example(name), AUTO)


@pytest.mark.parametrize("name", ["test-SR.dcm", "rtplan.dcm", "DICOMDIR-nopatient"])
def test_a_dicom_file_without_an_image_is_rejected(name: str) -> None:
    report = scan([example(name)], ImageStore(AUTO), "header")
    assert [bad.error.code for bad in report.bad] == ["images.dicom_without_image"]


def test_patient_data_of_the_file_are_not_in_the_message(tmp_path: Path) -> None:
    data = bytearray(path_of("CT_small.dcm").read_bytes())
    name = b"CompressedSamples^CT1"
    assert name in data
    data[132 + 6] = 0xF0  # a false length swallows the elements behind it
    data[132 + 7] = 0x7F
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError) as caught:
        load(ImageRef(path), AUTO)
    assert caught.value.code.startswith("images.")
    assert "CompressedSamples" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with raises(MissingExtraError, "install.extra_missing") as caught:
        load(example("CT_small.dcm"), AUTO)
    assert caught.problem.place == "pydicom"
    assert "[dicom]" in caught.problem.remedy
    with raises(MissingExtraError, "install.extra_missing"):
        scan([example("CT_small.dcm")], ImageStore(AUTO, "placeholder"))


def test_without_a_decoder_for_the_compression_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get_decoder(JPEG2000Lossless)), "is_available", False)
    with raises(MissingExtraError, "install.extra_missing") as caught:
        load(example("JPEG2000.dcm"), AUTO)
    assert caught.problem.place == "pylibjpeg"
    assert "JPEG 2000" in caught.problem.rule
    assert "[dicom]" in caught.problem.remedy
