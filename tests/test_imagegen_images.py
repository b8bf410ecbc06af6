"""Images of [imagegen]: one policy for each modality, and a scan that reports all bad files together."""

from dataclasses import replace
from pathlib import Path

from tests.helpers.problems import raises
from tests.helpers.rated import rated, ratings_of, write_images
from toolkit import recipe
from toolkit.errors import ImageError
from toolkit.imagegen.ratings.load import Ratings
from toolkit.imagegen.ratings.prepare import image_policies, image_stores, scan_images
from toolkit.images.ref import ImageRef
from toolkit.recipe.imagegen import Imagegen


def test_each_modality_has_its_window_and_all_have_the_same_square() -> None:
    section = Imagegen(
        ratings=("a.csv",),
        window="fixed",
        windows={"CT": {"preset": "ct_lung"}, "MRI": {"centre": 300.0, "width": 500.0}},
        size=64,
    )
    policies = image_policies(section, recipe.Images(resample="lanczos"))
    assert set(policies) == set(section.modalities)
    assert (policies["CT"].centre, policies["CT"].width) == (-600.0, 1500.0)
    assert policies["MRI"].fixed_window == (50.0, 550.0)
    assert policies["OCT"].window == "auto"
    assert {(one.max_side, one.square, one.resample) for one in policies.values()} == {(64, "pad", "lanczos")}


def test_modalities_with_one_policy_have_one_store() -> None:
    stores = image_stores(Imagegen(ratings=("a.csv",)), recipe.Images(disk_cache=False))
    assert len({id(store) for store in stores.values()}) == 1


def on_disk(folder: Path, names: dict[str, str]) -> Ratings:
    write_images(folder, list(names))
    images = [replace(rated(name, [1], modality), image=ImageRef(folder / name)) for name, modality in names.items()]
    return ratings_of(images)


def test_the_scan_reads_every_image_through_its_modalitys_policy(tmp_path: Path) -> None:
    section = Imagegen(ratings=("a.csv",), window="fixed", windows={"CT": {"preset": "ct_lung"}}, size=16)
    stores = image_stores(section, recipe.Images(disk_cache=False))
    reports = scan_images(on_disk(tmp_path, {"a.png": "CT", "b.png": "MRI", "c.png": "OCT"}), stores)
    assert sorted(report.checked for report in reports) == [1, 2]


def test_unreadable_images_of_all_modalities_are_reported_together(tmp_path: Path) -> None:
    section = Imagegen(ratings=("a.csv",), window="fixed", windows={"CT": {"preset": "ct_lung"}}, size=16)
    ratings = on_disk(tmp_path, {"a.png": "CT", "b.png": "MRI", "c.png": "MRI"})
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"not an image")
    with raises(ImageError, "images.unusable") as caught:
        scan_images(ratings, image_stores(section, recipe.Images(disk_cache=False)))
    assert "2 of 3" in str(caught.error)
    assert not any(name in str(caught.error) for name in ("a.png", "b.png", "c.png"))
