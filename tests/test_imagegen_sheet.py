"""Rating sheets without a browser: order, blinding, the key, and intra-rater agreement."""

import json
import re
import stat
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sklearn.metrics import cohen_kappa_score

from tests.helpers.optional import defined
from tests.helpers.problems import raises
from tests.helpers.rated import rated, ratings_of, write_csv
from tests.helpers.sheets import PROMPTS, SIZE, SOURCES, make_sheet, sheet_items, sheet_section
from toolkit import recipe
from toolkit.errors import DataError, ImageError
from toolkit.imagegen.ratings.experts import intra_rater_agreement
from toolkit.imagegen.ratings.load import RatedImage, Rating, load_ratings
from toolkit.imagegen.ratings.prepare import image_stores
from toolkit.imagegen.ratings.sheet import (
    SheetItem,
    SheetOptions,
    page_orders,
    ratings_by_source,
    read_key,
    write_sheet,
)
from toolkit.images.ref import ImageRef

STORES = image_stores(sheet_section(), recipe.Images(disk_cache=False))
COLUMNS = ("image_path", "rating", "modality", "expert_level", "prompt", "rater_id")


def page_data(page: Path) -> Any:
    """The data of a page, as a browser finds them: up to the first end of the script element."""
    text = page.read_text(encoding="utf-8")
    return json.loads(
        defined(re.search(r'<script type="application/json" id="sheet">(.*?)</script', text, re.DOTALL))[1]
    )


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 400),
    repeated=st.floats(0, 0.5),
    per_page=st.integers(2, 100),
    seed=st.integers(0, 10),
)
def test_every_image_is_on_one_page_and_repeats_are_far_apart(
    count: int, repeated: float, per_page: int, seed: int
) -> None:
    orders = page_orders(count, SheetOptions(seed, repeated, per_page))
    distinct = [set(order) for order in orders]
    assert sorted(index for page in distinct for index in page) == list(range(count))
    assert max(map(len, orders)) <= per_page
    assert max(map(len, distinct)) - min(map(len, distinct)) <= 1
    for order, images in zip(orders, distinct, strict=True):
        twice = [index for index, n in Counter(order).items() if n == 2]
        assert len(order) == len(images) + len(twice)
        assert bool(twice) == (repeated > 0 and len(images) > 1)
        for index in twice:
            first, second = (place for place, other in enumerate(order) if other == index)
            assert second - first > len(images) // 2
        assert all(one != other for one, other in pairwise(order))


def test_the_order_is_random_and_the_same_for_a_seed() -> None:
    options = SheetOptions(seed=3)
    assert page_orders(60, options) == page_orders(60, options) != page_orders(60, SheetOptions(seed=4))
    # The mean of half of the images in a random order: a sheet sorted by item would have a mean of 14.5 or 44.5.
    assert abs(np.mean(list(dict.fromkeys(page_orders(60, options)[0]))[:30]) - 29.5) < 8


@pytest.mark.parametrize(("name", "value"), [("repeated", 0.6), ("repeated", -0.1), ("per_page", 1), ("per_page", 101)])
def test_options_out_of_range_are_rejected(name: str, value: Any) -> None:
    what = {"repeated": "repeated_fraction", "per_page": "page_size"}[name]
    with raises(DataError, f"imagegen.{what}_out_of_range") as caught:
        SheetOptions(**{name: value})
    assert (caught.problem.place, caught.problem.value) == (name, value)


def test_the_sheet_reveals_neither_source_nor_patient_nor_file(tmp_path: Path) -> None:
    sheet = make_sheet(tmp_path, 20)
    files = [file for file in (tmp_path / "sheet").rglob("*") if file.is_file()]
    assert len(files) == 21
    for file in files:
        content = file.read_bytes() + str(file.relative_to(tmp_path)).encode()
        for secret in (*SOURCES, "MRN-", str(tmp_path)):
            assert secret.encode() not in content
    items = [entry.item for entry in sheet.key.images]
    assert items != sorted(items)
    assert all(re.fullmatch(rf"images/{sheet.id}_\d{{4}}\.png", entry.image_path) for entry in sheet.key.images)


def test_the_key_maps_every_image_back(tmp_path: Path) -> None:
    sheet = make_sheet(tmp_path, 30, SheetOptions(per_page=12))
    key = read_key(tmp_path / "key.json")
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600  # it has patients
    assert key == sheet.key
    items = sheet_items(30)
    assert sorted(entry.item for entry in key.images) == list(range(30))
    for entry in key.images:
        item = items[entry.item]
        with Image.open(tmp_path / "sheet" / entry.image_path) as image:
            assert (np.asarray(image) == np.asarray(item.image)[..., None]).all()
        assert (entry.source, entry.patient) == (item.source, item.patient)
        page = page_data(sheet.pages[entry.page - 1])
        shown = [page["images"][index]["path"] for index in page["order"]]
        assert [place for place, path in enumerate(shown, start=1) if path == entry.image_path] == list(entry.positions)


def test_pages_hold_prompts_unchanged_and_load_nothing(tmp_path: Path) -> None:
    sheet = make_sheet(tmp_path, 10, SheetOptions(repeated=0))
    page = page_data(sheet.pages[0])
    assert sorted(image["prompt"] for image in page["images"]) == sorted(PROMPTS * 2)
    text = sheet.pages[0].read_text(encoding="utf-8")
    assert text.count("</script>") == 2
    assert not re.search(r"https?://|@import|\bfetch\(|XMLHttpRequest", text)


def test_a_sheet_is_the_same_for_the_same_items_and_another_for_others(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    one, same, other = make_sheet(folders[0], 5), make_sheet(folders[1], 5), make_sheet(folders[2], 6)
    assert one.id == same.id != other.id
    assert one.pages[0].read_bytes() == same.pages[0].read_bytes()


def test_files_go_through_the_image_policy_and_lose_their_metadata(tmp_path: Path) -> None:
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("parameters", "generated by a secret model")
    Image.new("L", (60, 20), 200).save(tmp_path / "generated.png", pnginfo=metadata)
    item = SheetItem(ImageRef(tmp_path / "generated.png"), "CT: a prompt", "CT", "real")
    sheet = write_sheet([item], sheet_section(), STORES, tmp_path / "sheet", tmp_path / "key.json")
    file = tmp_path / "sheet" / sheet.key.images[0].image_path
    assert b"secret" not in file.read_bytes()
    with Image.open(file) as image:
        assert (image.size, image.mode, image.info) == ((SIZE, SIZE), "RGB", {})
        assert (np.asarray(image) == np.asarray(STORES["CT"].get(ImageRef(tmp_path / "generated.png")))).all()
    assert sheet.key.images[0].file == str(tmp_path / "generated.png")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"modality": "PET"}, "imagegen.modality_unknown"),
        ({"prompt": " CT: a prompt"}, "imagegen.cell_not_plain_text"),
        ({"prompt": ""}, "imagegen.cell_not_plain_text"),
        ({"source": ""}, "imagegen.sheet_source_empty"),
        ({"image": np.zeros((SIZE, SIZE), np.float32)}, "imagegen.sheet_pixels_unsupported"),
        ({"image": np.zeros((SIZE, 2 * SIZE), np.uint8)}, "imagegen.sheet_pixels_unsupported"),
        ({"image": ImageRef(Path("/nowhere/a.png"))}, "images.missing"),
    ],
)
def test_an_item_that_breaks_a_rule_writes_nothing(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    items = [*sheet_items(2), replace(sheet_items(1)[0], **changes)]
    with raises(ImageError if code.startswith("images.") else DataError, code):
        write_sheet(items, sheet_section(), STORES, tmp_path / "sheet", tmp_path / "key.json")
    assert list(tmp_path.iterdir()) == []


def test_no_item_and_too_many_ratings_are_rejected(tmp_path: Path) -> None:
    with raises(DataError, "imagegen.sheet_empty"):
        make_sheet(tmp_path, 0)
    with raises(DataError, "imagegen.sheet_levels_too_many"):
        make_sheet(tmp_path, 1, section=sheet_section(rating_range=tuple(range(11))))


def test_no_file_is_replaced_and_the_key_stays_out_of_the_folder(tmp_path: Path) -> None:
    items = sheet_items(2)
    (tmp_path / "sheet").mkdir()
    with raises(DataError, "imagegen.sheet_key_in_sheet"):
        write_sheet(items, sheet_section(), STORES, tmp_path / "sheet", tmp_path / "sheet" / "key.json")
    (tmp_path / "sheet" / "mine.txt").write_text("mine")
    with raises(DataError, "imagegen.folder_not_empty"):
        make_sheet(tmp_path, 2)
    (tmp_path / "sheet" / "mine.txt").unlink()
    (tmp_path / "key.json").write_text("mine")
    with raises(DataError, "imagegen.sheet_key_exists"):
        make_sheet(tmp_path, 2)
    (tmp_path / "key.json").unlink()
    make_sheet(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.json", "sheet"]


@pytest.mark.parametrize(
    ("levels", "values", "keys"),
    [
        ((1, 2, 3), ["1", "2", "3"], ["1", "2", "3"]),
        ((0, 1, 4), ["0", "1", "4"], ["0", "1", "4"]),
        ((-1, 0.5, 10), ["-1", "0.5", "10"], ["1", "2", "3"]),
        (tuple(range(1, 11)), [str(n) for n in range(1, 11)], [*map(str, range(1, 10)), "0"]),
    ],
)
def test_each_rating_has_a_digit_as_its_key(
    tmp_path: Path, levels: tuple[float, ...], values: list[str], keys: list[str]
) -> None:
    page = page_data(make_sheet(tmp_path, 1, section=sheet_section(rating_range=levels)).pages[0])
    assert [level["value"] for level in page["levels"]] == values
    assert [level["key"] for level in page["levels"]] == keys


def test_ratings_are_divided_by_the_source_of_the_key(tmp_path: Path) -> None:
    sheet = make_sheet(tmp_path, 6, SheetOptions(repeated=0))
    items = sheet_items(6)
    rows = [
        (entry.image_path, 1 + entry.item % 3, items[entry.item].modality, 2, items[entry.item].prompt, "ab")
        for entry in sheet.key.images
    ]
    ratings = load_ratings(sheet_section(), [write_csv(tmp_path / "sheet" / "ratings.csv", rows, COLUMNS)])
    by_source = ratings_by_source(ratings, read_key(tmp_path / "key.json"))
    assert {source: sorted(one.images[0].levels) for source, one in by_source.items()}.keys() == set(SOURCES)
    assert sorted(level for image in by_source[SOURCES[0]].images for level in image.levels) == [0, 1, 2]
    assert by_source[SOURCES[1]].count == 3
    with raises(DataError, "imagegen.sheet_image_not_in_key"):
        ratings_by_source(ratings_of([rated("other.png", [0])]), sheet.key)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 1, "sheet": "a"}'])
def test_a_file_that_is_not_a_key_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.json").write_text(text)
    with raises(DataError, "imagegen.sheet_key_unreadable"):
        read_key(tmp_path / "key.json")


def twice(name: str, *ratings: tuple[str, int, str]) -> RatedImage:
    """An image with ratings of (rater, level, file)."""
    made = tuple(Rating(level, 3, rater, f"{file}, row {n}") for n, (rater, level, file) in enumerate(ratings))
    return replace(rated(name, [0]), ratings=made)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40))
def test_kappa_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    images = [twice(str(n), ("x", first, "f"), ("x", second, "f")) for n, (first, second) in enumerate(pairs)]
    found = intra_rater_agreement(ratings_of(images), resamples=2).kappa
    first, second = zip(*pairs, strict=True)
    if len({*first, *second}) == 1:
        assert found is None
    else:
        expected = cohen_kappa_score(first, second, weights="quadratic", labels=range(3))
        assert found == pytest.approx(expected, abs=1e-12)


def test_intra_rater_agreement_pairs_first_and_second_ratings_of_a_rater() -> None:
    images = [
        twice("a", ("x", 0, "1.csv"), ("y", 2, "2.csv"), ("x", 0, "1.csv"), ("y", 1, "2.csv")),
        twice("b", ("x", 2, "1.csv"), ("x", 1, "1.csv")),
        twice("c", ("x", 1, "1.csv"), ("x", 1, "1.csv"), ("x", 0, "1.csv")),
        # Once by each rater, twice by nobody known, and once in two downloads.
        twice("d", ("x", 1, "1.csv"), ("y", 1, "2.csv")),
        twice("e", ("", 1, "1.csv"), ("", 2, "1.csv")),
        twice("f", ("x", 1, "1.csv"), ("x", 1, "1 (copy).csv")),
    ]
    found = intra_rater_agreement(ratings_of(images))
    assert (found.n, found.images, found.equal) == (4, 3, 0.5)
    expected = cohen_kappa_score([0, 2, 1, 2], [0, 1, 1, 1], weights="quadratic", labels=[0, 1, 2])
    assert found.kappa == pytest.approx(expected)
    assert defined(found.low) <= defined(found.kappa) <= defined(found.high)
    assert {rater: one.n for rater, one in found.by_rater.items()} == {"x": 3, "y": 1}
    assert found.by_rater["y"].equal == 0


def test_undefined_intra_rater_agreement_has_a_reason() -> None:
    none = intra_rater_agreement(ratings_of([rated("a", [0, 1])]))
    assert (none.kappa, none.n, none.equal) == (None, 0, None)
    assert none.reason
    equal = intra_rater_agreement(ratings_of([twice("a", ("x", 1, "f"), ("x", 1, "f"))]))
    assert (equal.kappa, equal.n, equal.equal) == (None, 1, 1.0)
    assert equal.reason
