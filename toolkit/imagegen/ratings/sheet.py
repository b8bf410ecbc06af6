"""A rating sheet: images, and HTML pages on which an expert rates them by keyboard, blinded to their source.

The sheet's folder goes to the expert. Each page is self-contained: its images are inside, and it loads nothing.
The page downloads a CSV in the format of ``load_ratings``, whose paths start from the sheet's folder. File names and
order are random. Where an image comes from is only in the key, a file outside that folder.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.errors import DataError
from toolkit.imagegen.ratings.load import Ratings
from toolkit.images import ImageStore
from toolkit.images.ref import ImageRef
from toolkit.recipe.imagegen import Imagegen
from toolkit.runfolder import new_folder, read_json, require_writable, write_json, write_text

Pixels = NDArray[np.uint8]

KEY_VERSION = 1
MAX_LEVELS = 10
"""Each rating has a digit as its key."""

_TEMPLATE = Path(__file__).parent / "sheet.html"
_MARK = "__SHEET__"

MAX_ON_A_PAGE = 100
MAX_REPEATED = 0.5


@dataclass(frozen=True, slots=True)
class SheetOptions:
    """Order and size of a sheet.

    Attributes:
        seed: the seed of the order and of the selection of repeated images.
        repeated: fraction of the images that are shown twice, from 0 to 0.5. If it is above 0, every page with at least
            two images repeats at least one.
        per_page: images of a page, repeats included, from 2 to 100.
    """

    seed: int = 0
    repeated: float = 0.1
    per_page: int = MAX_ON_A_PAGE

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            DataError: a value is out of its range.
        """
        if not 0 <= self.repeated <= MAX_REPEATED:
            rule = f"the fraction of repeated images must be from 0 to {MAX_REPEATED}"
            raise DataError("imagegen.repeated_fraction_out_of_range", rule, place="repeated", value=self.repeated)
        if not 2 <= self.per_page <= MAX_ON_A_PAGE:
            rule = f"a page must have from 2 to {MAX_ON_A_PAGE} images"
            raise DataError("imagegen.page_size_out_of_range", rule, place="per_page", value=self.per_page)


@dataclass(frozen=True, slots=True, eq=False)
class SheetItem:
    """One image to rate.

    Attributes:
        image: a file, or pixels of [imagegen]'s size (height x width, or height x width x 3).
        prompt: shown beside the image.
        modality: one of ``modalities``.
        source: where the image comes from, such as a method and its round. Only the key has it.
        patient: the patient's id, if the image is real. Only the key has it.
    """

    image: ImageRef | Pixels
    prompt: str
    modality: str
    source: str
    patient: str = ""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One image of a sheet in its key.

    Attributes:
        image_path: path in the sheet's folder, as in the CSV.
        source: the source, as in ``SheetItem``.
        patient: the patient's id, as in ``SheetItem``.
        item: number of the item, from 0.
        file: the image's file. Empty: pixels.
        page: the image's page, from 1.
        positions: where the page shows the image, from 1. Two, if it is repeated.
    """

    image_path: str
    source: str
    patient: str
    item: int
    file: str
    page: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SheetKey:
    """The mapping from a sheet's images to their sources."""

    sheet: str
    images: tuple[KeyEntry, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet that was written.

    Attributes:
        id: digest of the sheet's contents. Pages store their state under it.
        pages: the HTML pages.
        key: the contents of the key file.
    """

    id: str
    pages: tuple[Path, ...]
    key: SheetKey


def write_sheet(
    items: Sequence[SheetItem],
    section: Imagegen,
    stores: Mapping[str, ImageStore],
    folder: Path,
    key_file: Path,
    options: SheetOptions | None = None,
) -> Sheet:
    """Write a rating sheet. The same items and options give the same files.

    Args:
        items: the images.
        section: rating levels, expert levels, modalities and size.
        stores: the stores from ``image_stores``: the expert sees the same pixels as the models.
        folder: goes to the expert. It must be absent or empty.
        key_file: stays here. It must be absent and outside ``folder``.
        options: order and size of the sheet.

    Raises:
        DataError: an item, the section or a path breaks a rule. Nothing is written.
        ImageError: an image cannot be read. Nothing is written.
    """
    options = options or SheetOptions()
    folder, key_file = folder.absolute(), key_file.absolute()
    _check_paths(folder, key_file)
    _check_items(items, section)
    with new_folder(folder) as work:
        sheet = _write(items, section, stores, work, options)
        write_json(key_file, {"schema_version": KEY_VERSION, **asdict(sheet.key)}, private=True)
    return Sheet(sheet.id, tuple(folder / page.name for page in sheet.pages), sheet.key)


def check_folder(folder: Path) -> None:
    """Check that nothing would be overwritten, and that the folder can be written.

    Raises:
        DataError: the folder has files, or is a file.
        RunError: it cannot be created.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            "imagegen.folder_not_empty",
            "the folder must be absent or empty",
            place=folder,
            remedy="Choose another folder.",
        )
    require_writable(folder.absolute().parent)


def read_key(file: Path) -> SheetKey:
    """Read a key file.

    Raises:
        DataError: it is no key of this version.
    """
    try:
        record = read_json(file)
        if record["schema_version"] != KEY_VERSION:
            raise ValueError(f"version {record['schema_version']}")
        entries = (KeyEntry(**{**entry, "positions": tuple(entry["positions"])}) for entry in record["images"])
        return SheetKey(record["sheet"], tuple(entries))
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule = f"the file must be a rating sheet's key of version {KEY_VERSION}"
        raise DataError(
            "imagegen.sheet_key_unreadable",
            rule,
            place=file,
            value=str(error),
            remedy="Use the key that was written with it.",
        ) from None


def ratings_by_source(ratings: Ratings, key: SheetKey) -> Mapping[str, Ratings]:
    """Return the ratings of each source, in the order of the key.

    Args:
        ratings: the ratings from the CSV files of the sheet, loaded with the sheet's folder as image root.
        key: the sheet's key.

    Raises:
        DataError: an image is not in the key.
    """
    source_of = {entry.image_path: entry.source for entry in key.images}
    unknown = [image.name for image in ratings.images if image.name not in source_of]
    if unknown:
        remedy = "Load the ratings of this sheet only, with its folder as imagegen.image_root."
        raise DataError(
            "imagegen.sheet_image_not_in_key",
            "every rated image must be in the key",
            place=key.sheet,
            value=unknown[0],
            remedy=remedy,
        )
    return {
        source: ratings.only([image for image in ratings.images if source_of[image.name] == source])
        for source in dict.fromkeys(source_of.values())
    }


def page_orders(count: int, options: SheetOptions) -> tuple[tuple[int, ...], ...]:
    """Return the images of each page in the order in which they are shown. An image is on one page only.

    The order is random. A repeated image is from the first half of its page, and comes again in the second half: at
    least half of the page's images are between the two.

    Args:
        count: number of images.
        options: seed, fraction of repeated images, and size of a page.

    Returns:
        For each page, indices from 0 to count - 1. A repeated image has its index twice.

    >>> page_orders(3, SheetOptions(repeated=0))
    ((2, 0, 1),)
    """
    rng = np.random.default_rng(options.seed)
    order = [int(index) for index in rng.permutation(count)]
    n_pages = -(-count // _distinct_per_page(options))
    borders = [count * page // n_pages for page in range(n_pages + 1)]
    return tuple(_with_repeats(order[start:stop], options, rng) for start, stop in pairwise(borders))


def _check_paths(folder: Path, key_file: Path) -> None:
    check_folder(folder)
    if key_file.exists():
        raise DataError(
            "imagegen.sheet_key_exists",
            "the key file must not exist yet",
            place=key_file,
            remedy="Choose another file.",
        )
    if key_file.resolve().is_relative_to(folder.resolve()):
        remedy = "Keep it in the run: the folder goes to the expert."
        raise DataError(
            "imagegen.sheet_key_in_sheet", "the key must be outside the sheet's folder", place=key_file, remedy=remedy
        )


def _check_items(items: Sequence[SheetItem], section: Imagegen) -> None:
    if not items:
        raise DataError(
            "imagegen.sheet_empty",
            "a rating sheet must have at least one image",
            place="rating sheet",
            value="no image",
        )
    if len(section.rating_range) > MAX_LEVELS:
        rule = f"a rating sheet must have at most {MAX_LEVELS} ratings, one for each digit"
        raise DataError(
            "imagegen.sheet_levels_too_many",
            rule,
            place="imagegen.rating_range",
            value=f"{len(section.rating_range)} ratings",
        )
    for number, item in enumerate(items):
        if problem := _item_problem(item, section):
            code, rule, value = problem
            raise DataError(code, rule, place=f"rating sheet, item {number}", value=value)


def _item_problem(item: SheetItem, section: Imagegen) -> tuple[str, str, object] | None:
    """Return the code and the rule that an item breaks, and the value.

    Modality and prompt must load again from the CSV file.
    """
    if item.modality not in section.modalities:
        return "imagegen.modality_unknown", f"modality must be one of {', '.join(section.modalities)}", item.modality
    if not item.prompt.strip() or item.prompt != item.prompt.strip():
        return "imagegen.cell_not_plain_text", "prompt must be text without blanks at its ends", item.prompt
    if not item.source.strip():
        return "imagegen.sheet_source_empty", "source must not be empty", item.source
    if isinstance(item.image, ImageRef):
        return None
    square = (section.size, section.size)
    if item.image.dtype != np.uint8 or item.image.shape not in (square, (*square, 3)):
        rule = f"pixels must be uint8 of shape {square} or {(*square, 3)}"
        return "imagegen.sheet_pixels_unsupported", rule, f"{item.image.dtype} {item.image.shape}"
    return None


def _write(
    items: Sequence[SheetItem],
    section: Imagegen,
    stores: Mapping[str, ImageStore],
    work: Path,
    options: SheetOptions,
) -> Sheet:
    orders = page_orders(len(items), options)
    shuffled = [index for order in orders for index in dict.fromkeys(order)]
    (work / "images").mkdir(parents=True)
    digest = hashlib.blake2b(json.dumps([orders, section.rating_range, section.expert_levels]).encode(), digest_size=5)
    for number, index in enumerate(shuffled, start=1):
        data = _png(items[index], stores)
        (work / "images" / f"{number:04}.png").write_bytes(data)
        digest.update(json.dumps([items[index].prompt, items[index].modality]).encode())
        digest.update(hashlib.blake2b(data).digest())
    sheet = digest.hexdigest()
    paths = {}
    for number, index in enumerate(shuffled, start=1):
        # With the sheet's id, so that the images of several sheets can be in one folder.
        paths[index] = f"images/{sheet}_{number:04}.png"
        (work / "images" / f"{number:04}.png").rename(work / paths[index])
    pages = []
    for page, order in enumerate(orders, start=1):
        pages.append(work / f"page_{page}.html")
        texts = {"id": sheet, "page": page, "pages": len(orders), **_levels(section)}
        write_text(pages[-1], _html({**texts, **_images(items, order, paths, work)}))
    return Sheet(sheet, tuple(pages), SheetKey(sheet, tuple(_entries(items, orders, paths))))


def _png(item: SheetItem, stores: Mapping[str, ImageStore]) -> bytes:
    """Return the image as the models see it, as PNG without metadata, because metadata could name its source."""
    image = stores[item.modality].get(item.image) if isinstance(item.image, ImageRef) else Image.fromarray(item.image)
    stream = BytesIO()
    Image.fromarray(np.asarray(image.convert("RGB"))).save(stream, "PNG")
    return stream.getvalue()


def _levels(section: Imagegen) -> Mapping[str, object]:
    values = [np.format_float_positional(level, trim="-") for level in section.rating_range]
    are_keys = all(len(value) == 1 for value in values)
    keys = values if are_keys else [str((rank + 1) % 10) for rank in range(len(values))]
    return {
        "levels": [{"value": value, "key": key} for value, key in zip(values, keys, strict=True)],
        "expert_levels": section.expert_levels,
    }


def _images(
    items: Sequence[SheetItem], order: Sequence[int], paths: Mapping[int, str], work: Path
) -> Mapping[str, object]:
    distinct = list(dict.fromkeys(order))
    images = [
        {
            "path": paths[index],
            "modality": items[index].modality,
            "prompt": items[index].prompt,
            "data": "data:image/png;base64," + base64.b64encode((work / paths[index]).read_bytes()).decode(),
        }
        for index in distinct
    ]
    return {"images": images, "order": [distinct.index(index) for index in order]}


def _html(data: Mapping[str, object]) -> str:
    """Return the page. In a script element, only "<" could end the data or begin a comment."""
    text = json.dumps(data).replace("<", "\\u003c")
    return _TEMPLATE.read_text(encoding="utf-8").replace(_MARK, text, 1)


def _entries(
    items: Sequence[SheetItem], orders: Sequence[Sequence[int]], paths: Mapping[int, str]
) -> Iterator[KeyEntry]:
    for page, order in enumerate(orders, start=1):
        for index in dict.fromkeys(order):
            item = items[index]
            file = str(item.image.path) if isinstance(item.image, ImageRef) else ""
            positions = tuple(place for place, other in enumerate(order, start=1) if other == index)
            yield KeyEntry(paths[index], item.source, item.patient, index, file, page, positions)


def _distinct_per_page(options: SheetOptions) -> int:
    fitting = (n for n in range(1, options.per_page + 1) if n + _repeats(n, options.repeated) <= options.per_page)
    return max(fitting)


def _repeats(distinct: int, fraction: float) -> int:
    """Return the number of repeated images of a page."""
    if not fraction:
        return 0
    return min(distinct // 2, max(1, round(fraction * distinct)))


def _with_repeats(images: Sequence[int], options: SheetOptions, rng: np.random.Generator) -> tuple[int, ...]:
    half = len(images) // 2
    firsts = rng.choice(half, size=_repeats(len(images), options.repeated), replace=False) if half else ()
    again: dict[int, list[int]] = {}
    for first in firsts:
        again.setdefault(int(rng.integers(first + half, len(images))), []).append(images[first])
    return tuple(shown for place, image in enumerate(images) for shown in (image, *again.get(place, ())))
