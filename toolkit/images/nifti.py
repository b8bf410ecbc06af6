"""NIfTI volumes: one slice as grey values in the file's units, or as RGB (extra ``nifti``: nibabel).

Slices are numbered from 0 along the axes of the volume in its closest canonical orientation RAS: axial from inferior to
superior, coronal from posterior to anterior, sagittal from left to right. Nothing is resampled. A slice is shown by the
radiological convention, as DICOM viewers do:

    axial      top: anterior, left: the patient's right
    coronal    top: superior, left: the patient's right
    sagittal   top: superior, left: anterior
"""

import math
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, cast

import numpy as np

from toolkit.errors import ImageError, MissingExtraError
from toolkit.images.ref import AXES, NO_FRAME, TRUNCATED, ImageRef, unreadable_image
from toolkit.images.window import Array, Pixels

KEPT_BYTES = 256 * 2**20
"""A compressed volume up to this size is kept decompressed for its further slices, one at a time. Of a larger one, each
slice is read alone, and so is each slice of a file without compression."""

ROUND = 1e-3
"""Largest relative difference of two sides of a pixel that is square."""

CANONICAL = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Axis -> its number in RAS."""

MALFORMED = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, RuntimeError),
    *(struct.error, zlib.error),
)
"""Exceptions of nibabel and gzip for malformed files, besides nibabel's own errors."""

_LOCK = Lock()


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """The header of one slice: (width, height), stored bits, number of slices, and codes of ``scan.NOTES``."""

    size: tuple[int, int]
    bits: int
    slices: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Volume:
    """An opened volume. ``voxel_axis`` and ``flipped`` have the array's axis and direction for each axis of RAS."""

    image: Any
    path: Path
    shape: tuple[int, int, int]
    voxel_axis: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def plane(self, axis: str) -> tuple[int, int, int]:
        """Return the axis of RAS across a slice, and those along its columns and rows."""
        across = CANONICAL[axis]
        along, down = (one for one in range(3) if one != across)
        return across, along, down


def read_slice_header(ref: ImageRef) -> SliceHeader:
    """Return the header of a slice without reading its voxels.

    Raises:
        ImageError: The file is malformed or truncated, its orientation is unknown, no slice is named, or the slice does
            not exist.
        MissingExtraError: nibabel is not installed.
    """
    volume = _open(ref)
    across, along, down = volume.plane(_axis(volume, ref))
    number, slices = volume.voxel_axis[across], volume.shape[across]
    if ref.frame >= slices:
        raise unreadable_image(ref.path, *NO_FRAME, f"slice {ref.frame} of {slices}")
    spacing = [float(one) for one in volume.image.header.get_zooms()[:3]] + [1.0] * 3
    x, y = (spacing[volume.voxel_axis[one]] for one in (along, down))
    notes = []
    if not math.isclose(x, y, rel_tol=ROUND):
        notes.append("images.pixels_not_square")
    if number != across or volume.flipped[across]:
        notes.append("images.slices_renumbered")
    bits = volume.image.get_data_dtype().itemsize * 8
    return SliceHeader((volume.shape[along], volume.shape[down]), bits, slices, tuple(notes))


def read_slice(ref: ImageRef) -> Pixels:
    """Return the voxels of a slice after the file's scaling, as they are shown.

    Raises:
        ImageError: As in ``read_slice_header``.
        MissingExtraError: nibabel is not installed.
    """
    volume = _open(ref)
    across, along, down = volume.plane(_axis(volume, ref))
    count = volume.shape[across]
    index: list[int | slice] = [slice(None)] * 3
    index[volume.voxel_axis[across]] = count - 1 - ref.frame if volume.flipped[across] else ref.frame
    try:
        voxels = _voxels(volume, tuple(index[: len(volume.image.shape)]))
    except _malformed() as error:
        raise _damaged(ref.path, error) from error
    kept = [one for one in range(3) if one != volume.voxel_axis[across]]
    # The array's axes in the order (row, column) of the image.
    values = voxels if kept == [volume.voxel_axis[down], volume.voxel_axis[along]] else voxels.swapaxes(0, 1)
    # RAS increases towards superior, anterior and right, which are at the top and at the left of the image.
    values = values[:: 1 if volume.flipped[down] else -1, :: 1 if volume.flipped[along] else -1]
    values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    bits = volume.image.get_data_dtype().itemsize * 8
    if values.dtype.names:  # RGB24 and RGBA32
        return Pixels(np.ascontiguousarray(np.stack([values[name] for name in "RGB"], 2)), 8)
    unsigned = values.dtype.kind == "u"
    return Pixels(values, bits, hounsfield=not unsigned)


def _axis(volume: _Volume, ref: ImageRef) -> str:
    """Return the axis of the slice.

    Raises:
        ImageError: No slice is named, and the volume has more than one.
    """
    if ref.axis in AXES or volume.shape[CANONICAL["axial"]] == 1:
        return ref.axis or "axial"
    rule = "a volume is shown by slice, and the row must name one"
    size = " x ".join(map(str, volume.shape))
    remedy = 'Add a column slice, or write the slice into the path, such as "ct.nii.gz#42". Slices count from 0.'
    raise ImageError(
        "images.volume_without_slice", rule, place=ref.path, value=f"NIfTI, {size} voxels in RAS", remedy=remedy
    )


def _voxels(volume: _Volume, index: tuple[int | slice, ...]) -> Array:
    """Return scaled voxels. Those of a compressed volume of moderate size come from RAM after the first slice."""
    proxy = volume.image.dataobj
    rest = (0,) * (len(volume.image.shape) - 3)
    size = math.prod(volume.image.shape) * volume.image.get_data_dtype().itemsize
    if volume.path.suffix.lower() != ".gz" or size > KEPT_BYTES:
        found: Array = np.asanyarray(proxy[index + rest])
    else:
        facts = volume.path.stat()
        with _LOCK:  # two threads would decompress the same volume
            kept = _decompressed(volume.path, facts.st_size, facts.st_mtime_ns)
        found = kept[index + rest]
        if (proxy.slope, proxy.inter) != (1, 0):
            found = found * float(proxy.slope) + float(proxy.inter)
    return found[:, np.newaxis] if found.ndim == 1 else found


@lru_cache(maxsize=1)
def _decompressed(path: Path, size: int, changed: int) -> Array:
    """Return all voxels as stored. ``size`` and ``changed`` identify the content of the file."""
    return cast(Array, np.asanyarray(_nibabel().load(path).dataobj.get_unscaled()))


def _open(ref: ImageRef) -> _Volume:
    nibabel = _nibabel()
    try:
        image = nibabel.load(ref.path)
        if not isinstance(image, nibabel.Nifti1Image):  # also the class of NIfTI-2
            raise ValueError(type(image).__name__)
        shape = tuple(int(one) for one in image.shape)
        _require_whole_file(ref.path, image)
    except _malformed() as error:
        raise _damaged(ref.path, error) from error
    if not len(shape) >= 2 or any(one > 1 for one in shape[3:]) or min(shape) < 1:
        rule, remedy = "a NIfTI file must have one volume of three axes", "Write one volume per file."
        value = " x ".join(map(str, shape))
        raise ImageError("images.volume_not_3d", rule, place=ref.path, value=f"{value} voxels", remedy=remedy)
    if image.get_data_dtype().kind not in "uif" and image.get_data_dtype().names is None:
        rule, value = "the voxels of a NIfTI file must be integers, floats or RGB", str(image.get_data_dtype())
        raise unreadable_image(ref.path, "images.voxels_unsupported", rule, value)
    axes, flipped = _orientation(nibabel, image, ref.path)
    whole = (*shape[:3], 1)[:3]
    return _Volume(image, ref.path, (whole[axes[0]], whole[axes[1]], whole[axes[2]]), axes, flipped)


def _require_whole_file(path: Path, image: Any) -> None:
    """Check the length of a file without compression. That of a compressed one is known after decompression.

    Raises:
        ValueError: The end is missing.
    """
    due = int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize
    if path.suffix.lower() == ".nii" and path.stat().st_size < due:
        raise ValueError(TRUNCATED[1])


def _orientation(nibabel: ModuleType, image: Any, path: Path) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return the array's axis for each axis of RAS, and whether it runs against it.

    Raises:
        ImageError: The header has no orientation, or two that differ.
    """
    code = "images.volume_orientation_unknown"
    header = image.header
    affine_rule = "the affine of a NIfTI header must be finite and invertible"
    try:
        stated = {
            name: "".join(str(one) for one in nibabel.aff2axcodes(getattr(header, f"get_{name}")()))
            for name in ("sform", "qform")
            if int(header[f"{name}_code"])
        }
        found = nibabel.io_orientation(image.affine)
    except ValueError as error:  # NaN, infinity, or a quaternion that is none. NumPy's LinAlgError is a ValueError
        raise unreadable_image(path, code, affine_rule) from error
    if not stated:
        rule = "a NIfTI header must have an orientation (sform or qform), because left and right are unknown otherwise"
        raise unreadable_image(path, code, rule)
    if len(set(stated.values())) > 1:
        rule = "sform and qform of a NIfTI header must have the same orientation"
        raise unreadable_image(path, code, rule, ", ".join(f"{name} {axes}" for name, axes in stated.items()))
    if not np.isfinite(found).all():
        raise unreadable_image(path, code, affine_rule)
    axes = [int(np.flatnonzero(found[:, 0] == one)[0]) for one in range(3)]
    flips = [bool(found[one, 1] < 0) for one in axes]
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def _damaged(path: Path, error: Exception) -> ImageError:
    first = (str(error) or type(error).__name__).splitlines()[0][:200]
    return unreadable_image(path, "images.not_decodable", "the NIfTI file must be readable", first)


def _nibabel() -> ModuleType:
    try:
        import nibabel
        import nibabel.filebasedimages
        import nibabel.spatialimages
        import nibabel.wrapstruct
    except ImportError:
        raise MissingExtraError("nibabel", "nifti", "reading NIfTI") from None
    return nibabel


def _malformed() -> tuple[type[Exception], ...]:
    nibabel = _nibabel()
    return (
        *MALFORMED,
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.spatialimages.HeaderTypeError,
        nibabel.wrapstruct.WrapStructError,
    )
