"""Synthetic lesions: as downloads of HAM10000 and of ISIC's archive, and as the rows that are prepared from one."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from toolkit.data.task import Synthetic
from toolkit.errors import DataError
from toolkit.prepare.ham10000 import prepare_ham10000
from toolkit.prepare.request import Request
from toolkit.recipe import Phantom
from toolkit.synthetic.lesion_shapes import Size
from toolkit.synthetic.lesion_tables import ham10000_row, isic_row
from toolkit.synthetic.lesions import FREQUENCIES, Photo, make_photos, name_of

SIZE: Size = (300, 225)
LEAST_SIDE = 64
MARKER = "practice.json"
"""Says what a folder holds, so that a later call knows what to keep."""
DRAWING = 1
"""Raised whenever pictures are drawn differently, so that old ones are drawn again."""
QUALITY = 95


def write_ham10000(
    folder: Path, images: int, seed: int, size: Size = SIZE, frequencies: Mapping[str, float] = FREQUENCIES
) -> dict[str, Path]:
    """Write so many pictures with masks and metadata as HAM10000 has them (Tschandl et al. 2018).

    ``folder`` gets ``HAM10000_images_part_1`` and ``_part_2`` (JPEG; a lesion's pictures may lie in both),
    ``HAM10000_segmentations_lesion/{image_id}_segmentation.png`` (0 or 255) and, last, ``HAM10000_metadata.csv``.
    What is whole already is not written again; pictures that an earlier call wrote otherwise are replaced. The same
    arguments give the same bytes with the same versions of NumPy and OpenCV.

    Args:
        folder: made if it is not there.
        images: how many pictures; fewer with the same seed are the first of more.
        seed: 0 or more; decides everything.
        size: width and height of the pictures in pixels.
        frequencies: class -> weight among the lesions; of classes that are not named there are none.

    Returns:
        ``images_part_1``, ``images_part_2`` and ``masks`` (folders) and ``metadata`` (the CSV).

    Raises:
        DataError: an argument out of range, or a folder that holds other data of this layout.
    """
    return _write(folder, _HAM10000, make_photos(images, seed, frequencies), _asked(images, seed, size, frequencies))


def write_isic(
    folder: Path, images: int, seed: int, size: Size = SIZE, frequencies: Mapping[str, float] = FREQUENCIES
) -> dict[str, Path]:
    """Write so many pictures as ISIC's archive hands them out, with masks as its challenge of 2018 does.

    ``folder`` gets ``{isic_id}.jpg``, ``ISIC2018_Task1_Training_GroundTruth/{isic_id}_segmentation.png`` (0 or 255)
    and, last, ``metadata.csv``. Otherwise as ``write_ham10000``: with the same arguments the pictures are the same.

    Returns:
        ``images`` and ``masks`` (folders) and ``metadata`` (the CSV).

    Raises:
        DataError: as ``write_ham10000``.
    """
    return _write(folder, _ISIC, make_photos(images, seed, frequencies), _asked(images, seed, size, frequencies))


def write_lesions(folder: Path, phantom: Phantom, seed: int) -> dict[str, Path]:
    """Write pictures, masks and rows, and give the JSON file of each split that has rows.

    The splits are by lesion, so their numbers of pictures are about those that are asked for. Pictures are
    ``phantom.size`` wide and three quarters of it high.
    """
    total = phantom.train + phantom.validation + phantom.test
    written = write_ham10000(folder, total, seed, (phantom.size, phantom.size * 3 // 4))
    shares = {"validation": phantom.validation / total, "test": phantom.test / total}
    request = Request(folder, seed, shares["validation"], shares["test"], workers=1)
    prepare_ham10000(
        [written["images_part_1"], written["images_part_2"]], written["masks"], written["metadata"], request
    )
    files = {split: folder / f"{split}.json" for split in ("train", "validation", "test")}
    return {split: file for split, file in files.items() if file.is_file()}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a data set keeps its files, and what it says about a picture."""

    name: str
    places: Mapping[str, str]
    """What a caller is told: name -> folder or file below the data set's."""
    picture: Callable[[int], str]
    """Number of a picture -> its folder."""
    row: Callable[[Photo], dict[str, object]]

    def files(self, folder: Path, number: int) -> tuple[Path, Path]:
        """Picture and mask."""
        name = name_of(number)
        return (
            folder / self.picture(number) / f"{name}.jpg",
            folder / self.places["masks"] / f"{name}_segmentation.png",
        )


_HAM10000 = _Layout(
    "ham10000",
    {
        "images_part_1": "HAM10000_images_part_1",
        "images_part_2": "HAM10000_images_part_2",
        "masks": "HAM10000_segmentations_lesion",
        "metadata": "HAM10000_metadata.csv",
    },
    # By turns, so that a picture's folder does not depend on how many there are.
    lambda number: f"HAM10000_images_part_{1 + number % 2}",
    ham10000_row,
)
_ISIC = _Layout(
    "isic",
    {"images": ".", "masks": "ISIC2018_Task1_Training_GroundTruth", "metadata": "metadata.csv"},
    lambda number: ".",
    isic_row,
)

Asked = dict[str, Any]


def _asked(images: int, seed: int, size: Size, frequencies: Mapping[str, float]) -> Asked:
    if min(size) < LEAST_SIDE:
        rule = f"sides must be at least {LEAST_SIDE} pixels"
        raise DataError("synthetic.size_too_small", rule, place="size", value=size, remedy="Raise it.")
    return {
        "images": images,
        "seed": seed,
        "size": list(size),
        "frequencies": dict(sorted(frequencies.items())),
        "drawing": DRAWING,
    }


def _write(folder: Path, layout: _Layout, photos: list[Photo], asked: Asked) -> dict[str, Path]:
    paths = {name: folder / place for name, place in layout.places.items()}
    _begin(folder, layout, {"layout": layout.name, **asked})
    for name, path in paths.items():
        if name != "metadata":
            path.mkdir(parents=True, exist_ok=True)
    size = asked["size"]

    def draw(photo: Photo) -> None:
        picture_file, mask_file = layout.files(folder, photo.number)
        if picture_file.is_file() and mask_file.is_file():
            return
        picture = photo.draw((size[0], size[1]))
        # OpenCV encodes blue first.
        _encode(picture_file, picture.pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        _encode(mask_file, picture.mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(draw, photos):
            pass
    _replace(paths["metadata"], _table([layout.row(photo) for photo in photos]).encode())
    return paths


def _begin(folder: Path, layout: _Layout, wanted: Asked) -> None:
    """Make the folder's marker say what is wanted, after removing what earlier calls wrote and this one would not."""
    marker, metadata = folder / MARKER, folder / layout.places["metadata"]
    if marker.is_file():
        held = _read(marker, layout)
        same = {**held, "images": None} == {**wanted, "images": None}
        if held != wanted:
            metadata.unlink(missing_ok=True)
        for number in range(wanted["images"] if same else 0, held["images"]):
            for file in layout.files(folder, number):
                file.unlink(missing_ok=True)
    elif found := [place for place in layout.places.values() if place != "." and (folder / place).exists()]:
        raise _other_data(folder, f"{found[0]}, but no {MARKER}")
    folder.mkdir(parents=True, exist_ok=True)
    _replace(marker, json.dumps(wanted, indent=1).encode())


def _read(marker: Path, layout: _Layout) -> Asked:
    try:
        held = json.loads(marker.read_bytes())
    except ValueError as error:
        raise _other_data(marker.parent, f"a {MARKER} that is no JSON") from error
    if not isinstance(held, dict) or held.get("layout") != layout.name or not isinstance(held.get("images"), int):
        raise _other_data(marker.parent, f"a {MARKER} of something else than {layout.name}")
    return held


def _other_data(folder: Path, found: str) -> DataError:
    rule = "the folder must be empty or have synthetic data of this layout"
    return DataError("synthetic.folder_of_other_data", rule, place=folder, value=found, remedy="Name another folder.")


def _table(rows: list[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _encode(path: Path, pixels: NDArray[Any], settings: list[int]) -> None:
    done, encoded = cv2.imencode(path.suffix, pixels, settings)
    if not done:
        raise DataError("synthetic.image_not_encoded", f"OpenCV must be able to write {path.suffix}", place=path)
    _replace(path, encoded.tobytes())


def _replace(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then give it its own."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)


LESIONS = Synthetic(
    kind="lesion",
    description="skin lesions with masks",
    write=write_lesions,
    columns=frozenset(
        {
            "age",
            "area_share",
            "bbox",
            "boxes",
            "dataset",
            "dx",
            "dx_type",
            "height",
            "image",
            "image_id",
            "lesion_id",
            "localization",
            "mask",
            "mask_available",
            "polygons",
            "sex",
            "spatial_description",
            "split",
            "width",
        }
    ),
    min_size=96,
    content="lesions",
)
