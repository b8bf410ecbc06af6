"""Ratings: every row that can be used survives, every other one is counted under its reason."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.problems import raises
from tests.helpers.rated import COLUMNS, rated, ratings_of, write_csv, write_images
from toolkit.errors import DataError
from toolkit.imagegen.ratings.experts import ROUNDING_VARIANCE, expert_variances, expert_weights
from toolkit.imagegen.ratings.load import RatedImage, Ratings, load_ratings
from toolkit.recipe.imagegen import Imagegen

SEED_SAMPLE = [
    ("data/oct/image1.png", 3, "OCT", 3, "OCT: healthy retinal layers"),
    ("data/ct/image2.png", 2, "CT", 2, "Chest CT: contrast enhanced scan showing aortic calcification"),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))


def section(*files: str, **keys: object) -> Imagegen:
    return Imagegen(ratings=files, **{"max_dropped": 1.0, **keys})


def load(
    folder: Path, rows: Sequence[tuple[object, ...]], columns: tuple[str, ...] = COLUMNS, **keys: object
) -> Ratings:
    return load_ratings(section(write_csv(folder / "ratings.csv", rows, columns), **keys))


def row(**changes: object) -> tuple[object, ...]:
    usual = {"image_path": "a.png", "rating": 1, "modality": "CT", "expert_level": 2, "prompt": "CT: clear lungs"}
    return tuple({**usual, **changes}.values())


def test_the_sample_of_the_description_is_read(tmp_path: Path) -> None:
    write_images(tmp_path, [path for path, *_ in SEED_SAMPLE])
    ratings = load(tmp_path, SEED_SAMPLE)
    assert ratings.dropped == ()
    assert [image.levels for image in ratings.images] == [(2,), (1,)]
    first = ratings.images[0]
    assert (first.modality, first.prompt, first.ratings[0].expert_level) == ("OCT", SEED_SAMPLE[0][4], 3)
    assert first.image.path == tmp_path / "data/oct/image1.png"
    assert ratings.prompts == {"OCT": (SEED_SAMPLE[0][4],), "CT": (SEED_SAMPLE[1][4],)}
    assert [ratings.normalised(image.levels[0]) for image in ratings.images] == [1.0, 0.5]


def test_every_low_rating_survives_whatever_the_experts_level(tmp_path: Path) -> None:
    cells = [(rating, expert) for rating in (1, 2, 3) for expert in (1, 2, 3)]
    names = [f"{rating}_{expert}.png" for rating, expert in cells]
    write_images(tmp_path, names)
    rows = [row(image_path=name, rating=r, expert_level=e) for name, (r, e) in zip(names, cells, strict=True)]
    ratings = load(tmp_path, rows)
    assert ratings.level_counts() == (3, 3, 3)
    assert [(rating.level + 1, rating.expert_level) for _, rating in ratings.pairs] == cells


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "json"])
def test_all_formats_give_the_same_ratings(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    rows = [row(), row(rating=3), row(image_path="b.png", rating=2)]
    records = [dict(zip(COLUMNS, one, strict=True)) for one in rows]
    path = tmp_path / f"ratings.{kind}"
    if kind == "csv":
        write_csv(path, rows)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif kind == "json":
        path.write_text(json.dumps(records))
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    ratings = load_ratings(section(str(path)))
    assert [(image.name, image.levels) for image in ratings.images] == [("a.png", (0, 2)), ("b.png", (1,))]


def test_images_inside_a_parquet_file_are_used(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    record = dict(zip(COLUMNS, row(), strict=True)) | {"image_path": (tmp_path / "a.png").read_bytes()}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "ratings.parquet")
    (image,) = load_ratings(section(str(tmp_path / "ratings.parquet"))).images
    assert image.image.path.read_bytes() == record["image_path"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"rating": 4}, "rating_unknown"),
        ({"rating": 0}, "rating_unknown"),
        ({"rating": 2.5}, "rating_unknown"),
        ({"rating": ""}, "rating_unknown"),
        ({"rating": "good"}, "rating_unknown"),
        ({"rating": "nan"}, "rating_unknown"),
        ({"rating": " 2"}, "rating_unknown"),
        ({"modality": "PET"}, "modality_unknown"),
        ({"modality": "ct"}, "modality_unknown"),
        ({"modality": ""}, "cell_empty"),
        ({"expert_level": 4}, "expert_level_unknown"),
        ({"expert_level": "senior"}, "expert_level_unknown"),
        ({"prompt": ""}, "cell_empty"),
        ({"prompt": "   "}, "cell_empty"),
        ({"prompt": " CT: clear lungs"}, "cell_not_plain_text"),
        ({"image_path": "missing.png"}, "image_missing"),
        ({"image_path": ""}, "cell_empty"),
        ({"image_path": "../outside.png"}, "image_outside_root"),
        ({"image_path": "/etc/hostname"}, "image_outside_root"),
    ],
)
def test_a_row_that_breaks_a_rule_is_counted_with_place_and_value(
    tmp_path: Path, change: dict[str, object], code: str
) -> None:
    write_images(tmp_path, ["a.png", "good.png"])
    ratings = load(tmp_path, [row(image_path="good.png"), row(**change)])
    assert [image.name for image in ratings.images] == ["good.png"]
    (dropped,) = ratings.dropped
    assert (dropped.code, dropped.count, ratings.rows) == (f"imagegen.{code}", 1, 2)
    assert dropped.examples == ("ratings.csv, row 2",)
    value = str(next(iter(change.values())))
    shown = repr(value) if code.endswith("_unknown") else f"text of {len(value)} characters"
    assert dropped.values == (shown,)


def test_typed_files_are_not_coerced_either(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    usual = dict(zip(COLUMNS, row(), strict=True))
    broken = [
        {**usual, "rating": True},
        {**usual, "rating": None},
        {**usual, "prompt": 7},
        {**usual, "expert_level": True},
        {**usual, "patient_id": True},
        {**usual, "rater_id": 1.5},
        ["no", "record"],
    ]
    lines = [json.dumps(one) for one in [*broken, {**usual, "patient_id": 17, "rater_id": "r1"}]]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    ratings = load_ratings(section(str(tmp_path / "r.jsonl")))
    assert sum(one.count for one in ratings.dropped) == len(broken)
    ((image, rating),) = ratings.pairs
    assert (image.patient, rating.rater) == ("17", "r1")


def test_equal_reasons_are_counted_together_and_named_at_most_five_times(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    ratings = load(tmp_path, [row(), *[row(rating=9)] * 7])
    assert [(one.count, len(one.examples)) for one in ratings.dropped] == [(7, 5)]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("prompt", ("CT: clear lungs", "CT: a nodule")),
        ("modality", ("CT", "MRI")),
        ("patient_id", ("p1", "p2")),
        ("patient_id", ("p1", "")),
    ],
)
def test_rows_of_an_image_that_contradict_each_other_are_reported(
    tmp_path: Path, column: str, values: tuple[str, str]
) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    columns = (*COLUMNS, "patient_id")
    rows = [dict(zip(columns, (*row(), "p1"), strict=True)) | {column: value} for value in values]
    kept = (*row(image_path="b.png"), "p1")
    ratings = load(tmp_path, [*(tuple(one.values()) for one in rows), kept], columns)
    assert [image.name for image in ratings.images] == ["b.png"]
    (dropped,) = ratings.dropped
    assert dropped.count == 2
    assert column in dropped.reason
    assert dropped.examples == ("ratings.csv, row 1", "ratings.csv, row 2")
    assert dropped.values[0] == (repr(list(values)) if column == "modality" else "list of 2 values")


def test_one_file_written_in_two_ways_is_one_image(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    ratings = load(tmp_path, [row(), row(image_path="./a.png", rating=2), row(image_path=str(tmp_path / "a.png"))])
    assert [image.levels for image in ratings.images] == [(0, 1, 0)]


def test_several_files_are_joined_and_equal_names_are_distinguished(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_images(tmp_path / folder, ["a.png"])
        write_csv(tmp_path / folder / "r.csv", [row()])
    ratings = load_ratings(section(str(tmp_path / "one/r.csv"), str(tmp_path / "two/r.csv")))
    assert [image.name for image in ratings.images] == ["a.png", "a.png#2"]
    assert len({image.group for image in ratings.images}) == 2


def test_image_root_is_where_paths_start(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", ["a.png"])
    assert len(load(tmp_path, [row()], image_root=tmp_path / "elsewhere").images) == 1
    with raises(DataError, "imagegen.too_many_rows_unusable"):
        load(tmp_path, [row()])


def test_more_unusable_rows_than_allowed_stop_the_run_and_all_reasons_are_reported(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    rows = [row()] * 18 + [row(rating=9), row(modality="PET")]
    assert load(tmp_path, rows, max_dropped=0.1).count == 18
    with raises(DataError, "imagegen.too_many_rows_unusable") as caught:
        load(tmp_path, rows, max_dropped=0.05)
    assert all(word in str(caught.error) for word in ("row 19", "row 20", "'9'", "'PET'"))


def test_a_file_without_a_column_is_rejected_with_a_suggestion(tmp_path: Path) -> None:
    with raises(DataError, "imagegen.columns_missing") as caught:
        load(tmp_path, [row()], ("image_path", "ratings", "modality", "expert_level", "prompt"))
    assert "'ratings'" in caught.problem.remedy
    with raises(DataError, "data.file_missing"):
        load_ratings(section(str(tmp_path / "missing.csv")))
    with raises(DataError, "imagegen.columns_missing"):
        load(tmp_path, [])


@pytest.mark.parametrize("levels", [(0, 1), (0.0, 0.5, 1.0), tuple(range(1, 11))])
def test_any_rating_range_is_read(tmp_path: Path, levels: tuple[float, ...]) -> None:
    names = [f"{number}.png" for number in range(len(levels))]
    write_images(tmp_path, names)
    rows = [row(image_path=name, rating=level) for name, level in zip(names, levels, strict=True)]
    ratings = load(tmp_path, rows, rating_range=levels)
    assert [image.levels[0] for image in ratings.images] == list(range(len(levels)))


def test_linear_weights_are_level_over_highest_level_and_labels_stay() -> None:
    images = [rated(f"{level}", [level], experts=[level + 1]) for level in range(3)]
    before = ratings_of(images)
    assert expert_weights(section("a"), before) == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3), 3: 1.0}
    assert before == ratings_of(images)


def test_table_weights_are_those_of_the_table() -> None:
    keys = {"expert_weight": "table", "expert_table": {"1": 0.0, "2": 0.3, "3": 2.0}}
    assert expert_weights(section("a", **keys), ratings_of([])) == {1: 0.0, 2: 0.3, 3: 2.0}


def noisy(rng: np.random.Generator, sds: dict[int, float], n: int, per_image: int) -> Ratings:
    """Ratings with many levels, so that rounding hardly matters."""
    images = []
    for number in range(n):
        quality = rng.uniform(100, 200)
        experts = rng.choice(list(sds), per_image).tolist()
        levels = [round(quality + rng.normal(0, sds[expert])) for expert in experts]
        images.append(rated(str(number), levels, experts=experts))
    return ratings_of(images, levels=301)


@pytest.mark.slow
@pytest.mark.parametrize("per_image", [2, 3, 5])
def test_precision_recovers_the_error_variances_of_simulated_experts(per_image: int) -> None:
    sds = {1: 12.0, 2: 6.0, 3: 3.0}
    variances = expert_variances(noisy(np.random.default_rng(0), sds, 4000, per_image))
    assert [variances[level] for level in sds] == pytest.approx([sd**2 for sd in sds.values()], rel=0.12)
    weights = expert_weights(section("a", expert_weight="precision"), noisy(np.random.default_rng(0), sds, 4000, 3))
    assert weights[3] == 1.0
    assert weights[1] == pytest.approx(1 / 16, rel=0.2)


def test_pairs_of_one_level_give_half_their_mean_squared_difference() -> None:
    ratings = noisy(np.random.default_rng(1), {2: 5.0}, 50, 2)
    squares = [(image.levels[0] - image.levels[1]) ** 2 for image in ratings.images]
    assert expert_variances(ratings)[2] == pytest.approx(np.mean(squares) / 2)


def test_experts_who_always_agree_get_the_rounding_variance() -> None:
    ratings = ratings_of([rated(str(n), [n % 3, n % 3]) for n in range(20)])
    assert expert_variances(ratings) == {3: ROUNDING_VARIANCE}


@pytest.mark.parametrize(
    "images",
    [
        [],
        [rated(str(n), [n % 3]) for n in range(50)],
        [rated(str(n), [n % 3, 1], experts=[1, 3]) for n in range(50)],
        [rated(str(n), [n % 3, 1]) for n in range(9)],
    ],
    ids=["no ratings", "one rating an image", "only pairs of two levels", "too few images"],
)
def test_precision_that_cannot_be_estimated_is_an_error_that_names_linear(images: list[RatedImage]) -> None:
    with raises(DataError, "imagegen.expert_ratings_too_few"):
        expert_weights(section("a", expert_weight="precision"), ratings_of(images))


def test_a_missing_file_names_itself_and_the_key(tmp_path: Path) -> None:
    missing = tmp_path / "none.csv"
    with raises(DataError, "data.file_missing") as caught:
        load_ratings(section(str(missing)))
    assert caught.problem.place == str(missing)
    assert "imagegen.ratings" in caught.problem.remedy
