"""Slices of NIfTI volumes: orientation, display, numbering, scaling and windows, against nibabel and NumPy."""

import gzip
import shutil
import struct
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.helpers.problems import image_of, raises
from toolkit.errors import ImageError, RecipeError
from toolkit.identifiers import hidden_id
from toolkit.images import ImagePolicy, ImageStore, load, nifti, scan
from toolkit.images.header import read_header
from toolkit.images.ref import AXES, ImageRef
from toolkit.images.scan import ScanMode
from toolkit.images.window import Array

SHAPE = (7, 5, 4)
"""Voxels of the oracle volume along right, anterior and superior."""
WHOLE = ImagePolicy(max_side=4096)
MEDGEMMA = ImagePolicy(max_side=4096, window="hu", windows=((-1024, 1024), (-135, 215), (0, 80)))


def canonical() -> Array:
    """Return a volume in RAS whose values are distinct: 100 per step to the right, 10 anterior, 1 superior."""
    x, y, z = np.indices(SHAPE)
    values: Array = (100 * x + 10 * y + z).astype(np.int16)
    return values


def stored(path: Path, axcodes: str, values: Array | None = None) -> Path:
    """Write the volume with its array in another orientation, such as LPS. The affine says so."""
    image = nibabel.Nifti1Image(canonical() if values is None else values, np.diag([0.7, 0.7, 3.0, 1.0]))
    target = nibabel.orientations.axcodes2ornt(axcodes)
    nibabel.save(
        image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), target)), path
    )
    return path


ORIENTATIONS = ["".join(letters) for order in permutations(("RL", "AP", "SI")) for letters in product(*order)]


def shown(ref: ImageRef) -> Array:
    """Return the values of a slice as they are shown, before the window."""
    return nifti.read_slice(ref).values


def test_there_are_48_orientations_and_a_slice_looks_the_same_in_all(tmp_path: Path) -> None:
    assert len(ORIENTATIONS) == 48
    volume = canonical()
    for axcodes in ORIENTATIONS:
        path = stored(tmp_path / f"{axcodes}.nii", axcodes)
        # Radiological convention: the patient's right (high x) is at the left, anterior and superior are at the top.
        assert (shown(ImageRef(path, 1, axis="axial")) == volume[::-1, ::-1, 1].T).all(), axcodes
        assert (shown(ImageRef(path, 2, axis="coronal")) == volume[::-1, 2, ::-1].T).all(), axcodes
        assert (shown(ImageRef(path, 3, axis="sagittal")) == volume[3, ::-1, ::-1].T).all(), axcodes


def test_the_patients_right_is_at_the_left_whatever_the_handedness(tmp_path: Path) -> None:
    """A marker at a known place in the scanner's millimetres, found by the affine alone."""
    for axcodes in ("RAS", "LAS"):  # a right-handed and a left-handed array
        path = stored(tmp_path / f"{axcodes}.nii.gz", axcodes, np.zeros(SHAPE, np.int16))
        image = nibabel.load(path)
        assert np.sign(np.linalg.det(image.affine)) == (1 if axcodes == "RAS" else -1)
        array = np.zeros(SHAPE, np.int16)
        most_right = np.array([0.7 * (SHAPE[0] - 1), 0, 0, 1])  # RAS millimetres
        i, j, k = np.rint(np.linalg.inv(image.affine) @ most_right)[:3].astype(int)
        array[i, j, k] = 1
        nibabel.save(nibabel.Nifti1Image(array, image.affine), path)
        rows, columns = np.nonzero(shown(ImageRef(path, 0, axis="axial")))
        assert (rows.tolist(), columns.tolist()) == ([SHAPE[1] - 1], [0])  # posterior at the bottom, right at the left


@pytest.mark.parametrize("name", ["anatomical.nii", "reoriented_anat_moved.nii", "resampled_anat_moved.nii"])
def test_slices_of_real_volumes_are_those_of_nibabels_canonical_volume(name: str) -> None:
    path = Path(nibabel.__file__).parent / "tests" / "data" / name
    if not path.is_file():
        pytest.skip(f"nibabel was installed without {name}")
    volume = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    x, y, z = (side // 2 for side in volume.shape)
    expected = {"axial": (z, volume[:, :, z]), "coronal": (y, volume[:, y]), "sagittal": (x, volume[x])}
    for axis, (number, plane) in expected.items():
        found = shown(ImageRef(path, number, axis=axis))
        assert np.allclose(found, plane[::-1, ::-1].T, equal_nan=True), axis


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_slice_is_scaled_as_nibabel_scales_the_volume(
    tmp_path: Path, suffix: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(nifti, "KEPT_BYTES", 0)
    image = nibabel.Nifti1Image(canonical(), np.eye(4), dtype=np.int16)
    image.header.set_slope_inter(0.5, -1024)
    path = tmp_path / f"ct{suffix}"
    nibabel.save(image, path)
    whole = nibabel.load(path).get_fdata()
    assert whole.min() < -900
    assert np.allclose(shown(ImageRef(path, 2, axis="axial")), whole[::-1, ::-1, 2].T)


def test_header_and_decoded_slice_agree(tmp_path: Path) -> None:
    path = stored(tmp_path / "ct.nii.gz", "PSR")
    for axis, size, slices in (("axial", (7, 5), 4), ("coronal", (7, 4), 5), ("sagittal", (5, 4), 7)):
        ref = ImageRef(path, slices - 1, axis=axis)
        with path.open("rb") as stream:
            header = read_header(stream, ref, 10**6)
        loaded = load(ref, WHOLE)
        assert (header.format, header.size, header.frames, header.bits) == ("NIfTI", size, slices, 16)
        assert (loaded.record.source_size, loaded.image.size) == (size, size)
        with raises(ImageError, "images.frame_missing") as caught:
            load(ImageRef(path, slices, axis=axis), WHOLE)
        assert caught.problem.value == f"slice {slices} of {slices}"


def test_a_crop_is_cut_from_the_slice_as_shown(tmp_path: Path) -> None:
    path = stored(tmp_path / "ct.nii", "LPS")
    window = ImagePolicy(max_side=4096, window="hu", windows=((-1000.0, 1000.0),))
    ref = ImageRef(path, 1, axis="axial")
    whole, part = (np.asarray(load(one, window).image) for one in (ref, ImageRef(path, 1, (2, 1, 6, 4), "axial")))
    assert (part == whole[1:4, 2:6]).all()


def test_three_windows_are_red_green_and_blue_as_in_the_medgemma_notebook(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(-1500, 1500, (40, 30, 3)).astype(np.int16)
    path = stored(tmp_path / "ct.nii.gz", "RAS", values)
    loaded = load(ImageRef(path, 1, axis="axial"), MEDGEMMA)
    ct = values[::-1, ::-1, 1].T.astype(np.float32)
    planes = [(ct.clip(low, high) - low) / (high - low) * 255 for low, high in ((-1024, 1024), (-135, 215), (0, 80))]
    assert np.abs(np.asarray(loaded.image, np.float32) - np.round(np.stack(planes, 2))).max() <= 1
    assert np.abs(np.asarray(loaded.image, np.float32) - np.round(np.stack(planes, 2))).mean() < 0.01
    assert loaded.record.windows == MEDGEMMA.windows
    assert loaded.record.window == (-1024, 1024)


def test_slices_and_windows_have_their_own_cache_entries(tmp_path: Path) -> None:
    path = stored(tmp_path / "ct.nii.gz", "RAS")
    lung, brain = (ImagePolicy(64, "hu", windows=(window,)) for window in ((-1350.0, 150.0), (0.0, 80.0)))
    refs = [ImageRef(path, number, axis=axis) for axis in AXES for number in (0, 1)]
    images: dict[object, bytes] = {}
    for policy in (lung, brain):
        for _ in range(2):
            store = ImageStore(policy, disk=tmp_path / "cache", memory_mb=0)
            for ref in refs:
                pixels = np.asarray(store.get(ref)).tobytes()
                assert images.setdefault((policy.key, ref), pixels) == pixels
        assert (store.report().opened, store.report().disk_hits) == (0, len(refs))
    assert len({ref.part for ref in refs}) == len(refs)
    assert lung.key != brain.key != MEDGEMMA.key != ImagePolicy().key


def without_orientation(header: Any) -> None:
    header["sform_code"] = header["qform_code"] = 0


def contradicting(header: Any) -> None:
    header.set_qform(np.diag([-1, 1, 1, 1]), 1)


@pytest.mark.parametrize(
    ("change", "values", "code"),
    [
        (without_orientation, None, "images.volume_orientation_unknown"),
        (contradicting, None, "images.volume_orientation_unknown"),
        (lambda header: None, np.zeros((4, 4, 4, 3), np.int16), "images.volume_not_3d"),
        (lambda header: None, np.zeros((4, 4, 4), np.complex64), "images.voxels_unsupported"),
    ],
)
def test_a_volume_that_can_be_read_in_two_ways_is_rejected(
    tmp_path: Path, change: Callable[[Any], None], values: Any, code: str
) -> None:
    image = nibabel.Nifti1Image(canonical() if values is None else values, np.eye(4))
    image.header.set_sform(np.eye(4), 1)
    change(image.header)
    nibabel.save(image, tmp_path / "a.nii")
    if change is without_orientation:  # nibabel writes an sform
        data = bytearray((tmp_path / "a.nii").read_bytes())
        data[252:256] = b"\0" * 4
        (tmp_path / "a.nii").write_bytes(data)
    with raises(ImageError, code):
        load(ImageRef(tmp_path / "a.nii", 0, axis="axial"), WHOLE)


@pytest.mark.parametrize(("at", "value"), [(80, float("nan")), (280, float("nan")), (256, 9.0), (284, float("inf"))])
def test_an_affine_that_is_not_finite_or_has_no_rotation_is_an_orientation_error(
    tmp_path: Path, at: int, value: float
) -> None:
    """Bytes 80 are a voxel size, 256 is part of the quaternion, 280 and 284 are in the first row of the sform."""
    image = nibabel.Nifti1Image(canonical(), np.eye(4))
    image.header.set_qform(np.eye(4), 1)
    image.header.set_sform(np.eye(4), 1)
    data = bytearray(image.to_bytes())
    struct.pack_into("<f", data, at, value)
    (tmp_path / "a.nii").write_bytes(data)
    with raises(ImageError, "images.volume_orientation_unknown") as caught:
        load(ImageRef(tmp_path / "a.nii", 0, axis="axial"), WHOLE)
    assert image_of(caught) == tmp_path / "a.nii"
    assert caught.problem.remedy


def test_a_volume_without_a_slice_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = stored(tmp_path / "ct.nii.gz", "LPS")
    with raises(ImageError, "images.volume_without_slice") as caught:
        load(ImageRef(path), WHOLE)
    assert "7 x 5 x 4" in str(caught.problem.value)
    assert "ct.nii.gz#42" in caught.problem.remedy
    single = stored(tmp_path / "one.nii", "LPS", np.ones((4, 4, 1), np.int16))
    assert load(ImageRef(single), WHOLE).record.source_size == (4, 4)


def test_damaged_volumes_are_image_errors(tmp_path: Path) -> None:
    whole = stored(tmp_path / "a.nii", "RAS").read_bytes()
    packed = gzip.compress(whole)
    files = {"cut.nii": whole[:-50], "cut.nii.gz": packed[:-30], "text.nii": b"no volume", "text.nii.gz": b"no gzip"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with raises(ImageError, "images.not_decodable"):
            load(ImageRef(tmp_path / name, 3, axis="axial"), WHOLE)


def test_a_large_file_without_compression_is_read_by_slice(tmp_path: Path) -> None:
    """The file has holes of 4 GiB. Reading it whole would take as much memory."""
    image = nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes()[:352])
    data[40:48] = np.array([3, 1024, 1024, 2048], "<i2").tobytes()
    with (tmp_path / "a.nii").open("wb") as stream:
        stream.write(data)
        stream.truncate(352 + 2 * 1024 * 1024 * 2048)
    loaded = load(ImageRef(tmp_path / "a.nii", 2000, axis="axial"), ImagePolicy(max_side=64))
    assert loaded.record.source_size == (1024, 1024)


def test_the_scan_reports_what_a_slice_is(tmp_path: Path) -> None:
    plain, flipped = stored(tmp_path / "plain.nii", "RAS"), stored(tmp_path / "flipped.nii", "RAI")
    deep = np.zeros(SHAPE, np.int16) - 1000
    ct = stored(tmp_path / "ct.nii", "LPS", deep)
    refs = [ImageRef(plain, 0, axis="coronal"), ImageRef(flipped, 0, axis="axial"), ImageRef(ct, 0, axis="axial")]
    policy = ImagePolicy(window="hu", windows=((-160.0, 240.0),))
    modes: tuple[ScanMode, ...] = ("full", "header")
    for mode in modes:
        report = scan(refs, ImageStore(policy), mode).with_rows({refs[0]: "row 0", refs[1]: "row 1", refs[2]: "row 2"})
        notes = {note.code: (note.count, note.examples) for note in report.notes}
        assert notes["images.pixels_not_square"] == (1, ("row 0",))
        assert notes["images.slices_renumbered"] == (1, ("row 1",))
        assert notes["images.smaller_than_patch"][0] == 3
        assert "images.first_frame" not in notes
    assert {note.code: note.examples for note in scan(refs, ImageStore(policy), "full").notes}[
        "images.no_value_below_zero"
    ] == tuple(f"image {hidden_id(path)}" for path in (plain, flipped))


def test_unsigned_voxels_are_not_hounsfield_units(tmp_path: Path) -> None:
    path = stored(tmp_path / "mr.nii", "RAS", canonical().astype(np.uint16))
    with raises(ImageError, "images.not_hounsfield"):
        load(ImageRef(path, 0, axis="axial"), MEDGEMMA)
    labels = stored(tmp_path / "labels.nii", "RAS", (canonical() % 256).astype(np.uint8))
    assert load(ImageRef(labels, 0, axis="axial"), MEDGEMMA).record.window is None


def test_colour_voxels_are_rgb(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    rgb["R"], rgb["B"] = 200, 30
    path = stored(tmp_path / "rgb.nii", "RAS", rgb)
    assert np.asarray(load(ImageRef(path, 0, axis="axial"), WHOLE).image)[0, 0].tolist() == [200, 0, 30]


def test_a_compressed_volume_is_decompressed_once_for_all_of_its_slices(tmp_path: Path) -> None:
    path = stored(tmp_path / "ct.nii.gz", "RAS")
    before = nifti._decompressed.cache_info().misses
    for number in range(SHAPE[2]):
        load(ImageRef(path, number, axis="axial"), WHOLE)
    assert nifti._decompressed.cache_info().misses == before + 1
    other = stored(tmp_path / "other.nii.gz", "RAS", canonical() + np.int16(5))
    shutil.copy(other, path)
    assert shown(ImageRef(path, 0, axis="axial")).min() == 5


def test_a_fixed_window_does_not_take_windows_and_hu_needs_them() -> None:
    one = (0.0, 1.0)
    for window, windows in (("hu", ()), ("auto", (one,)), ("hu", (one, one))):
        with pytest.raises(RecipeError):
            ImagePolicy(window=window, windows=windows)  # type: ignore[arg-type]
