"""DICOM: values, windows and colours against pydicom's own functions, on its example files and generated ones.

Compressed frames are compared with the original pixels, with uncompressed copies, and with Pillow's decoder.
"""

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, get_decoder, pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, SecondaryCaptureImageStorage, generate_uid

from tests.helpers.problems import image_of, raises
from toolkit.errors import ImageError, MissingExtraError
from toolkit.images import ImagePolicy, ImageStore, dicom, load, reduced_size, scan
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
    ("name", "oracle"),
    [
        ("examples_rgb_color.dcm", ""),
        ("examples_ybr_color.dcm", "pillow"),
        ("examples_jpeg2k.dcm", "pillow"),
        ("SC_rgb_jpeg_dcmtk.dcm", "pillow"),
    ],
)
def test_colours_of_every_encoding_are_converted_to_rgb(name: str, oracle: str) -> None:
    ref = example(name)
    assert np.array_equal(np.asarray(load(ref, AUTO).image), pixel_array(ref.path, index=0, decoding_plugin=oracle))


def test_each_frame_is_an_image_and_further_frames_are_rejected() -> None:
    first, last = (load(example("examples_ybr_color.dcm", frame), AUTO) for frame in (0, 29))
    assert not np.array_equal(np.asarray(first.image), np.asarray(last.image))
    expected = pixel_array(path_of("examples_ybr_color.dcm"), index=29, decoding_plugin="pillow")
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
    ("name", "code"),
    [
        ("MR_truncated.dcm", "images.truncated"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "images.not_decodable"),
    ],
)
def test_damaged_files_are_rejected(name: str, code: str) -> None:
    with raises(ImageError, code):
        load(example(name), AUTO)


@pytest.mark.parametrize("damage", [b"\0" * 8, b"\0\0\0\x07free", b"\0\0\0\x01free"])
def test_boxes_of_a_jp2_file_that_do_not_lead_on_are_damage(tmp_path: Path, damage: bytes) -> None:
    """pydicom 3.0.2 would read a box of length 0 again and again."""
    whole = example("GDCMJ2K_TextGBR.dcm")
    load(whole, AUTO)
    content = bytearray(whole.path.read_bytes())
    at = content.index(b"jp2h") - 4
    content[at : at + 8] = damage
    (tmp_path / "damaged.dcm").write_bytes(content)
    with raises(ImageError, "images.not_decodable"):
        load(ImageRef(tmp_path / "damaged.dcm"), AUTO)


@pytest.mark.parametrize("name", ["test-SR.dcm", "rtplan.dcm", "DICOMDIR-nopatient"])
def test_a_dicom_file_without_an_image_is_rejected(name: str) -> None:
    report = scan([example(name)], ImageStore(AUTO), "header")
    assert [bad.error.code for bad in report.bad] == ["images.dicom_without_image"]


@pytest.mark.parametrize("bits", [None, ""])
def test_a_dicom_file_without_its_number_of_bits_is_rejected(tmp_path: Path, bits: str | None) -> None:
    ref = made(tmp_path, RAMP)
    data = pydicom.dcmread(ref.path)
    data.BitsStored = bits
    data.save_as(ref.path)
    report = scan([ref], ImageStore(AUTO), "header")
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
    monkeypatch.setattr(type(get_decoder(JPEG2000Lossless)), "available_plugins", ("pillow",))
    with raises(MissingExtraError, "install.extra_missing") as caught:
        load(example("JPEG2000.dcm"), AUTO)
    assert caught.problem.place == "imagecodecs"
    assert "JPEG 2000" in caught.problem.rule
    assert "[dicom]" in caught.problem.remedy


@pytest.mark.parametrize("package", ["pydicom", "imagecodecs"])
def test_no_package_of_the_extra_is_under_the_gpl(package: str) -> None:
    fields = metadata(package)
    licences = [*fields.get_all("License", []), *fields.get_all("License-Expression", [])]
    licences += [name for name in fields.get_all("Classifier", []) if name.startswith("License")]
    assert licences
    assert not any("GPL" in name or "General Public" in name for name in licences)


# ---- compressed frames ----

Encoder = Callable[[Array, int], bytes]
"""Function of unsigned values and their bits."""

LOSSLESS: dict[uid.UID, Encoder] = {
    uid.JPEGLosslessSV1: lambda values, bits: jpeg_lossless(values, 1, bits),
    uid.JPEGLossless: lambda values, bits: jpeg_lossless(values, 6, bits),
    uid.JPEGLSLossless: lambda values, bits: bytes(imagecodecs.jpegls_encode(values)),
    uid.JPEG2000Lossless: lambda values, bits: jpeg_2000(values, reversible=True, level=0, bitspersample=bits),
    uid.HTJ2KLossless: lambda values, bits: bytes(imagecodecs.htj2k_encode(values)),
}

EVERY: dict[uid.UID, Encoder] = {
    **LOSSLESS,
    uid.JPEGBaseline8Bit: lambda values, bits: bytes(imagecodecs.jpeg8_encode(values, level=90)),
    uid.JPEGExtended12Bit: lambda values, bits: bytes(imagecodecs.jpeg8_encode(values, level=98, bitspersample=bits)),
    uid.JPEGLSNearLossless: lambda values, bits: bytes(imagecodecs.jpegls_encode(values, level=3)),
    uid.JPEG2000: lambda values, bits: jpeg_2000(values, level=45),
}


def jpeg_lossless(values: Array, predictor: int, bits: int) -> bytes:
    colours = {"colorspace": "RGB", "outcolorspace": "RGB"} if values.ndim == 3 else {}
    return bytes(imagecodecs.jpeg8_encode(values, lossless=True, predictor=predictor, bitspersample=bits, **colours))


def jpeg_2000(values: Array, **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(values, codecformat="j2k", **options))


def waves(bits: int, signed: bool = False, colours: int = 1) -> Array:
    """Return a smooth image of odd size with noise, over the whole range of the bits."""
    rows, columns = np.mgrid[:37, :53]
    noise = np.random.default_rng(bits).normal(0, 0.02, (37, 53, colours))
    unit = (np.sin(columns / 9)[..., None] + np.cos(rows / 7)[..., None] * np.arange(1, colours + 1)) / 4 + 0.5
    values = np.rint(np.clip(unit + noise, 0, 1) * (2**bits - 1)) - (2 ** (bits - 1) if signed else 0)
    kind = "i" if signed else "u"
    whole: Array = values.astype(f"{kind}{1 if bits <= 8 else 2}")
    return whole if colours > 1 else whole[..., 0]


def compressed(folder: Path, like: Array, bits: int, syntax: str, frames: list[bytes], **elements: Any) -> ImageRef:
    """Write a DICOM file with compressed frames of the shape and type of ``like``."""
    plain = made(folder, np.ascontiguousarray(like[..., 0] if like.ndim == 3 else like))
    data = pydicom.dcmread(plain.path)
    data.BitsStored, data.HighBit = bits, bits - 1
    if like.ndim == 3:
        data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = 3, 0, "RGB"
    if len(frames) > 1:
        data.NumberOfFrames = len(frames)
    for name, value in elements.items():
        setattr(data, name, value)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    data.save_as(plain.path, enforce_file_format=True)
    return plain


def stored(ref: ImageRef) -> Array:
    """Return the decoded values without a window."""
    with ref.path.open("rb") as stream:
        return dicom.read_pixels(stream, ref, own_window=False).values


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (12, False), (12, True), (16, False), (16, True)])
def test_lossless_syntaxes_keep_every_value(tmp_path: Path, syntax: uid.UID, bits: int, signed: bool) -> None:
    values = waves(bits, signed)
    # Signed values are encoded as their two's complement in the stored bits, or as signed by JPEG 2000.
    unsigned = values.view(values.dtype.str.replace("i", "u")) & (2**bits - 1)
    two_frames = [LOSSLESS[syntax](frame, bits) for frame in (unsigned, unsigned[::-1].copy())]
    ref = compressed(tmp_path, values, bits, syntax, two_frames)
    for frame, expected in enumerate((values, values[::-1])):
        found = stored(ImageRef(ref.path, frame))
        assert found.dtype == values.dtype
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_lossless_syntaxes_keep_colours_and_palette_indices(tmp_path: Path, syntax: uid.UID) -> None:
    colours = waves(8, colours=3)
    encode = LOSSLESS[syntax]
    photometric = "YBR_RCT" if syntax in (uid.JPEG2000Lossless, uid.HTJ2KLossless) else "RGB"
    ref = compressed(tmp_path, colours, 8, syntax, [encode(colours, 8)], PhotometricInterpretation=photometric)
    assert np.array_equal(stored(ref), colours)
    data = pydicom.dcmread(path_of("examples_palette.dcm"))
    indices = np.asarray(pixel_array(data))
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([encode(indices, 8)])
    data.save_as(tmp_path / "palette.dcm")
    assert np.array_equal(stored(ImageRef(tmp_path / "palette.dcm")), stored(example("examples_palette.dcm")))


def test_jpeg_ls_with_a_scan_for_each_colour_is_decoded(tmp_path: Path) -> None:
    colours = waves(8, colours=3)
    # imagecodecs does not write such frames: its scans of grey images become the scans of one frame (T.87, C.2).
    rows, columns = colours.shape[:2]
    frame = b"\xff\xd8\xff\xf7" + struct.pack(">HBHHB", 17, 8, rows, columns, 3)
    frame += bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    for number, plane in enumerate(np.moveaxis(colours, -1, 0), 1):
        grey_frame = EVERY[uid.JPEGLSLossless](np.ascontiguousarray(plane), 8)
        scan = grey_frame[grey_frame.index(b"\xff\xda") + 10 : -2]
        frame += b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, number, 0, 0, 0, 0) + scan
    frame += b"\xff\xd9"
    assert np.array_equal(stored(compressed(tmp_path, colours, 8, uid.JPEGLSLossless, [frame])), colours)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"])
def test_compressed_copies_have_the_values_of_the_uncompressed_file(name: str) -> None:
    assert np.array_equal(stored(example(name)), stored(example("MR_small.dcm")))


@pytest.mark.parametrize(
    "name",
    [
        *("693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "SC_rgb_gdcm_KY.dcm"),
        *("SC_jpeg_no_color_transform.dcm", "SC_jpeg_no_color_transform_2.dcm", "SC_rgb_jpeg_app14_dcmd.dcm"),
        *(f"SC_rgb_dcmtk_+eb+{name}.dcm" for name in ("cr", "cy+n1", "cy+n2", "cy+np", "cy+s2", "cy+s4")),
        *("SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_small_odd_jpeg.dcm"),
    ],
)
def test_lossy_values_are_those_of_pillow(name: str) -> None:
    ref = example(name)
    data = pydicom.dcmread(ref.path)
    expected = pixel_array(data, decoding_plugin="pillow")
    found = dicom._decode(pydicom, data, ref)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_jpeg_of_12_bits_is_decoded_within_its_loss(tmp_path: Path) -> None:
    values = waves(12)
    frame = EVERY[uid.JPEGExtended12Bit](values, 12)
    found = stored(compressed(tmp_path, values, 12, uid.JPEGExtended12Bit, [frame]))
    error = np.abs(found.astype(int) - values.astype(int))
    assert 0 < error.max() <= 16  # of 4,095
    assert error.mean() < 4
    # Two encoders' files of one image. The first has false scan parameters, which sequential JPEG does not use.
    assert np.array_equal(stored(example("JPEG-lossy.dcm")), stored(example("JPGExtended.dcm")))


def test_near_lossless_values_differ_by_at_most_the_bound(tmp_path: Path) -> None:
    values = waves(12)
    frame = EVERY[uid.JPEGLSNearLossless](values, 12)
    found = stored(compressed(tmp_path, values, 12, uid.JPEGLSNearLossless, [frame]))
    assert np.abs(found.astype(int) - values.astype(int)).max() == 3


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless], ids=lambda syntax: syntax.keyword)
def test_negative_values_keep_their_sign_if_the_frame_has_more_bits_than_the_header(
    tmp_path: Path, syntax: uid.UID
) -> None:
    values = waves(12, signed=True)
    frame = LOSSLESS[syntax](values.view(np.uint16) & 0xFFF, 16)
    assert values.min() < 0
    assert np.array_equal(stored(compressed(tmp_path, values, 12, syntax, [frame])), values)


@pytest.mark.parametrize("syntax", EVERY, ids=lambda syntax: syntax.keyword)
def test_truncated_frames_and_frames_of_another_size_are_rejected(tmp_path: Path, syntax: uid.UID) -> None:
    values = waves(8)
    frame = EVERY[syntax](values, 8)
    assert stored(compressed(tmp_path, values, 8, syntax, [frame])).shape == values.shape
    for part in (frame[: len(frame) // 4], frame[: len(frame) * 3 // 4], frame[:-2]):
        with raises(ImageError, "images.not_decodable") as caught:
            stored(compressed(tmp_path, values, 8, syntax, [part]))
        assert syntax.name in str(caught.problem.value)
    for other in (values.T, values[:-1], np.zeros((1, 1), np.uint8)):
        with raises(ImageError, "images.not_decodable"):
            stored(compressed(tmp_path, other.copy(), 8, syntax, [frame]))


@pytest.mark.parametrize("syntax", [uid.MPEG2MPML, uid.UID("1.2.840.10008.1.2.4.110")])
def test_a_syntax_without_a_decoder_is_named_with_a_remedy(tmp_path: Path, syntax: uid.UID) -> None:
    ref = compressed(tmp_path, waves(8), 8, uid.MPEG2MPML, [bytes(100)])
    # pydicom does not write a syntax that it does not know, such as JPEG XL.
    ref.path.write_bytes(ref.path.read_bytes().replace(uid.MPEG2MPML.encode(), syntax.encode()))
    with raises(ImageError, "images.not_decodable") as caught:
        load(ref, AUTO)
    assert syntax.name in str(caught.problem.value)
    assert "Explicit VR Little Endian" in caught.problem.remedy
    assert image_of(caught) == ref.path


DECODE_ALL = """
import sys
from pathlib import Path
from toolkit.errors import ImageError
from toolkit.images import dicom
from toolkit.images.ref import ImageRef

for path in sorted(Path(sys.argv[1]).glob("*.dcm")):
    print(path.name, flush=True)
    try:
        dicom.read_pixels(path.open("rb"), ImageRef(path), own_window=False)
    except ImageError as error:
        print(error.code)
"""


@pytest.mark.slow
def test_damaged_frames_end_in_errors_and_never_end_the_process(tmp_path: Path) -> None:
    chance = random.Random(3)
    for number in range(120):
        syntax = list(EVERY)[number % len(EVERY)]
        frame = bytearray(EVERY[syntax](waves(8), 8))
        begin = chance.choice([0, 0, len(frame) // 3])  # most damage is in the frame's header
        for _ in range(chance.randint(1, 8)):
            frame[chance.randrange(begin, min(begin + 150, len(frame)))] = chance.randrange(256)
        ref = compressed(tmp_path, waves(8), 8, syntax, [bytes(frame)])
        ref.path.rename(tmp_path / f"{number:03}.dcm")
    command = [sys.executable, "-W", "ignore", "-c", DECODE_ALL, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, (result.returncode, result.stdout.splitlines()[-1], result.stderr[-500:])
    lines = result.stdout.splitlines()
    assert sum(line.endswith(".dcm") for line in lines) == 120
    assert lines.count("images.not_decodable") > 30
