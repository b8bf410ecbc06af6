"""Synthetic lesions: reproducible, in the layouts of HAM10000 and ISIC, with visible classes."""

import csv
import hashlib
import math
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.helpers.isic_files import ANATOM_SITES, DIAGNOSES, write_isic
from tests.helpers.problems import raises
from toolkit.errors import DataError
from toolkit.prepare import PrepareRequest, prepare_ham10000, prepare_isic
from toolkit.synthetic.dermoscopy import LesionImage
from toolkit.synthetic.lesions import FREQUENCIES, Photo, make_photos
from toolkit.tasks.lesion.diagnoses import HAM10000
from toolkit.tasks.lesion.synthetic import MARKER, ham10000_row, write_ham10000

SIZE = (300, 225)
EVEN = MappingProxyType(dict.fromkeys(FREQUENCIES, 1.0))
Drawn = list[tuple[Photo, LesionImage]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Return photographs with uniform class frequencies."""
    return [(photo, photo.draw(SIZE)) for photo in make_photos(500, 3, EVEN)]


@pytest.fixture(scope="module")
def ham(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ham10000")
    write_ham10000(folder, 30, seed=5)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def regions(mask: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """Return left, top, width and height of each connected region."""
    _, _, figures, _ = cv2.connectedComponentsWithStats(mask)
    return [tuple(row[:4]) for row in figures[1:].tolist()]


def test_files_depend_only_on_the_seed(ham: Path, tmp_path: Path) -> None:
    write_ham10000(tmp_path / "again", 30, seed=5)
    write_ham10000(tmp_path / "other", 30, seed=6)
    first, again, other = digests(ham), digests(tmp_path / "again"), digests(tmp_path / "other")
    assert first == again
    assert first.keys() == other.keys()
    assert not set(first.values()) & set(other.values())


def test_a_smaller_dataset_is_a_prefix_of_a_larger_one() -> None:
    few, many = make_photos(7, 2), make_photos(40, 2)
    assert many[:7] == few
    assert np.array_equal(few[6].draw(SIZE).pixels, many[6].draw(SIZE).pixels)


def test_the_order_of_frequencies_does_not_matter() -> None:
    assert make_photos(30, 2, dict(reversed(list(FREQUENCIES.items())))) == make_photos(30, 2)


def test_the_layout_matches_ham10000(ham: Path) -> None:
    names = [row["image_id"] for row in table(ham / "HAM10000_metadata.csv")]
    assert names == [f"ISIC_{24306 + i:07d}" for i in range(30)]
    parts = [{path.stem for path in (ham / f"HAM10000_images_part_{i}").glob("*.jpg")} for i in (1, 2)]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(names)
    masks = {path.name for path in (ham / "HAM10000_segmentations_lesion").iterdir()}
    assert masks == {f"{name}_segmentation.png" for name in names}


def test_masks_have_0_and_255_and_images_have_the_requested_size(tmp_path: Path) -> None:
    files = write_ham10000(tmp_path, 6, seed=1, size=(200, 160))
    for path in files["masks"].iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask is not None
        assert mask.shape == (160, 200)
        assert set(np.unique(mask)) == {0, 255}
    for path in files["images_part_1"].iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert image.shape == (160, 200, 3)


def test_columns_and_values_match_the_real_table(shared_data: Path) -> None:
    real = table(shared_data / "skin" / "ham10000" / "HAM10000_metadata.csv")
    made = [{key: str(value) for key, value in ham10000_row(photo).items()} for photo in make_photos(1000, 4)]
    assert list(made[0]) == list(real[0])
    for column in ("dx", "dx_type", "age", "sex", "localization", "dataset"):
        assert {row[column] for row in made} <= {row[column] for row in real}
    assert {(row["dx"], row["dx_type"]) for row in made} <= {(row["dx"], row["dx_type"]) for row in real}


def test_some_ages_are_blank_and_some_sexes_and_sites_unknown() -> None:
    rows = [ham10000_row(photo) for photo in make_photos(1000, 4)]
    # 3 % of some 390 patients and 590 lesions: 12 and 18 are expected.
    assert 0.005 < sum(row["age"] == "" for row in rows) / 1000 < 0.08
    assert 0.005 < sum(row["sex"] == "unknown" for row in rows) / 1000 < 0.08
    assert 0.005 < sum(row["localization"] == "unknown" for row in rows) / 1000 < 0.08


def test_photographs_of_a_lesion_have_its_appearance_at_other_locations() -> None:
    photos = make_photos(300, 8)
    by_lesion: dict[int, list[Photo]] = {}
    for photo in photos:
        by_lesion.setdefault(photo.lesion.number, []).append(photo)
    assert {len(group) for group in by_lesion.values()} == {1, 2, 3}
    for group in by_lesion.values():
        assert len({photo.lesion for photo in group}) == 1
        assert len({spot.dx for photo in group for spot in photo.lesion.spots}) == 1
    one, other = next(group for group in by_lesion.values() if len(group) > 1)[:2]
    assert not np.array_equal(one.draw(SIZE).mask, other.draw(SIZE).mask)


def test_class_frequencies_match_the_request() -> None:
    counts = Counter(photo.lesion.dx for photo in make_photos(3000, 1))
    fractions = {dx: count / 3000 for dx, count in counts.items()}
    assert fractions == pytest.approx(FREQUENCIES, abs=0.04)
    assert {photo.lesion.dx for photo in make_photos(50, 1, {"df": 1, "mel": 3})} == {"df", "mel"}


@pytest.mark.slow
def test_one_image_in_seven_has_two_disjoint_lesions(drawn: Drawn) -> None:
    counts = [len(regions(image.mask)) for _, image in drawn]
    assert counts == [len(photo.lesion.spots) for photo, _ in drawn]
    assert set(counts) == {1, 2}
    # 15 % of some 290 lesions: two standard deviations are 4.2 points, more for their photographs.
    assert counts.count(2) / len(counts) == pytest.approx(0.15, abs=0.06)


def test_lesion_areas_are_in_range(drawn: Drawn) -> None:
    for photo, image in drawn:
        whole = sum(spot.fraction for spot in photo.lesion.spots)
        seen = np.count_nonzero(image.mask) / image.mask.size
        assert 0.7 * whole < seen < 1.05 * whole + 0.005
        assert all(0.04 <= spot.fraction <= 0.25 for spot in photo.lesion.spots)


def test_lesions_occur_in_every_grid_cell(drawn: Drawn) -> None:
    places: Counter[tuple[int, int]] = Counter()
    for _, image in drawn:
        for x, y, width, height in regions(image.mask):
            places[int(3 * (x + width / 2) / SIZE[0]), int(3 * (y + height / 2) / SIZE[1])] += 1
    even = sum(places.values()) / 9
    assert len(places) == 9
    # Some 64 a cell: three standard deviations are 0.36 of it.
    assert all(0.6 * even < count < 1.4 * even for count in places.values())


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (112, 112), (450, 600), (400, 100)])
def test_images_of_any_shape_have_lesions(size: tuple[int, int]) -> None:
    for photo in make_photos(40, 6):
        image = photo.draw(size)
        assert image.pixels.shape == (size[1], size[0], 3)
        assert len(regions(image.mask)) == len(photo.lesion.spots)


@pytest.mark.slow
def test_masks_match_the_images(drawn: Drawn) -> None:
    kernel = np.ones((9, 9), np.uint8)
    for photo, image in drawn:
        inside = image.mask > 0
        outside = cv2.dilate(image.mask, kernel) == 0
        difference = image.pixels[inside].mean(0) - image.pixels[outside].mean(0)
        # The means' own error is below 0.1. The white and the brown of a dermatofibroma partly cancel on tanned skin.
        assert np.abs(difference).max() > 6, photo.lesion.dx
        # The border is that of the mask: a rim within it is nearer to the lesion's colour than a rim around it.
        rims = inside & (cv2.erode(image.mask, kernel) == 0), ~inside & ~outside
        within, around = (image.pixels[rim].mean(0) - image.pixels[outside].mean(0) for rim in rims)
        assert np.linalg.norm(within) > np.linalg.norm(around), photo.lesion.dx


def look(image: LesionImage) -> list[float]:
    """Return mean and standard deviation of the colours in the mask, and border length relative to a circle."""
    inside = image.pixels[image.mask > 0].astype(float)
    outlines, _ = cv2.findContours(image.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(outlines, key=cv2.contourArea)
    irregularity = cv2.arcLength(largest, True) ** 2 / (4 * np.pi * cv2.contourArea(largest))
    return [*inside.mean(0), *inside.std(0), irregularity]


def test_a_linear_classifier_recognizes_the_class(drawn: Drawn) -> None:
    """On held-out lesions, from seven features. Chance is one in seven."""
    seen = [(look(image), photo.lesion.dx, photo.lesion.number % 3 == 0) for photo, image in drawn]
    train, test = ([one for one in seen if one[2] is held_out] for held_out in (False, True))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit([look for look, *_ in train], [dx for _, dx, _ in train])
    truth = [dx for _, dx, _ in test]
    predicted = model.predict([look for look, *_ in test])
    assert set(truth) == set(FREQUENCIES)
    recalls = {dx: np.mean([p == dx for p, t in zip(predicted, truth, strict=True) if t == dx]) for dx in FREQUENCIES}
    assert min(recalls.values()) > 0.8, recalls


def test_complete_files_are_not_rewritten(tmp_path: Path) -> None:
    files = write_ham10000(tmp_path, 6, seed=1)
    before = digests(tmp_path)
    kept, lost = sorted(files["masks"].iterdir())[:2]
    kept.write_bytes(b"kept")
    lost.unlink()
    write_ham10000(tmp_path, 6, seed=1)
    assert kept.read_bytes() == b"kept"
    assert digests(tmp_path) | {str(kept.relative_to(tmp_path)): ""} == before | {str(kept.relative_to(tmp_path)): ""}


@pytest.mark.parametrize("change", [{"images": 4}, {"images": 9}, {"seed": 2}, {"size": (120, 90)}])
def test_a_changed_request_gives_the_files_of_a_new_folder(change: dict[str, Any], tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"images": 6, "seed": 1, "size": (160, 120)} | change
    write_ham10000(tmp_path / "one", 6, seed=1, size=(160, 120))
    write_ham10000(tmp_path / "one", **wanted)
    write_ham10000(tmp_path / "new", **wanted)
    assert digests(tmp_path / "one") == digests(tmp_path / "new")


def test_a_folder_with_real_images_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "HAM10000_images_part_1").mkdir()
    with raises(DataError, "synthetic.folder_of_other_data") as caught:
        write_ham10000(tmp_path, 3, seed=1)
    assert caught.problem.place == str(tmp_path)
    assert "HAM10000_images_part_1" in str(caught.problem.value)
    assert [path.name for path in tmp_path.iterdir()] == ["HAM10000_images_part_1"]


@pytest.mark.parametrize("marker", ["{", "[]", '{"seed": 1}'])
def test_a_folder_with_another_marker_is_not_changed(marker: str, tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(marker)
    with raises(DataError, "synthetic.folder_of_other_data"):
        write_ham10000(tmp_path, 2, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


@pytest.mark.parametrize(
    ("wrong", "code", "value"),
    [
        ({"images": 0}, "no_images", 0),
        ({"seed": -1}, "seed_negative", -1),
        ({"size": (300, 20)}, "size_too_small", (300, 20)),
        ({"frequencies": {"nv": 1, "wart": 1}}, "class_unknown", "wart"),
        ({"frequencies": {"nv": 0}}, "frequencies_out_of_range", {"nv": 0}),
        ({"frequencies": {"nv": math.nan}}, "frequencies_out_of_range", {"nv": math.nan}),
    ],
)
def test_arguments_out_of_range_are_rejected(wrong: dict[str, Any], code: str, value: object, tmp_path: Path) -> None:
    with raises(DataError, f"synthetic.{code}") as caught:
        write_ham10000(tmp_path / "set", **({"images": 2, "seed": 1} | wrong))
    assert caught.problem.place == next(iter(wrong))
    assert caught.problem.value == value
    assert not (tmp_path / "set").exists()


def test_prepare_accepts_the_ham10000_layout(ham: Path, tmp_path: Path) -> None:
    parts = [ham / f"HAM10000_images_part_{i}" for i in (1, 2)]
    masks, metadata = ham / "HAM10000_segmentations_lesion", ham / "HAM10000_metadata.csv"
    prepare_ham10000(parts, masks, metadata, PrepareRequest(tmp_path / "out"))
    rows = table(tmp_path / "out" / "ham10000_with_spatial_data.csv")
    assert len(rows) == 30
    assert all(row["mask_available"].lower() == "true" and row["spatial_description"] for row in rows)


def test_prepare_accepts_the_isic_layout_and_its_diagnoses(tmp_path: Path) -> None:
    files = write_isic(tmp_path / "isic", 20, seed=5, frequencies=EVEN)
    rows = table(files["metadata"])
    assert len(rows) == len(list(files["images"].glob("*.jpg"))) == len(list(files["masks"].iterdir())) == 20
    assert ",".join(rows[0]) == (
        "isic_id,attribution,copyright_license,age_approx,anatom_site_general,benign_malignant,diagnosis_1,diagnosis_2,"
        "diagnosis_3,image_type,sex,patient_id,lesion_id"
    )
    prepare_isic(tmp_path / "isic", 2, PrepareRequest(tmp_path / "out"))
    prepared = table(tmp_path / "out" / "isic_stage2.csv")
    assert {row["image_name"] for row in prepared} == {row["isic_id"] for row in rows}
    assert all(row["bbox"] and row["diagnosis"] for row in prepared)


def test_isic_diagnoses_map_to_the_classes() -> None:
    assert {dx: HAM10000.read(diagnosis.levels[2])[0] for dx, diagnosis in DIAGNOSES.items()} == {
        dx: dx for dx in FREQUENCIES
    }
    sites = {photo.lesion.site for photo in make_photos(500, 1)} - {None}
    assert sites == ANATOM_SITES.keys()


def test_both_layouts_have_the_same_images(ham: Path, tmp_path: Path) -> None:
    write_isic(tmp_path / "isic", 4, seed=5)
    for path in sorted((tmp_path / "isic").glob("*.jpg")):
        (same,) = ham.rglob(path.name)
        assert path.read_bytes() == same.read_bytes()
