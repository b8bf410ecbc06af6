"""The store, its caches and the scan: equal images from every source, limited caches, and counts of every failure."""

import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.problems import image_of, raises
from toolkit import recipe
from toolkit.errors import ImageError
from toolkit.images import ImagePolicy, ImageRecord, ImageStore, cache, load, scan
from toolkit.images.cache import DiskCache, MemoryCache
from toolkit.images.ref import ImageRef
from toolkit.images.render import Reduced
from toolkit.runfolder.cache import cache_folder

POLICY = ImagePolicy(max_side=64, window="percentile", percentiles=(1, 99))


def xray(folder: Path, name: str, seed: int = 0, size: tuple[int, int] = (120, 100)) -> ImageRef:
    values = np.random.default_rng(seed).normal(20_000, 4_000, size).clip(0, 65_535).astype(np.uint16)
    Image.fromarray(values).save(folder / name)
    return ImageRef(folder / name)


def same(one: Image.Image, two: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(two))


def entries(folder: Path) -> list[Path]:
    """Return the files of stored images, without content keys."""
    return [path for path in folder.rglob("*") if path.is_file() and "files" not in path.relative_to(folder).parts]


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be old enough for its content key to be stored."""
    monkeypatch.setattr(cache, "SETTLED_NS", -(10**12))


def test_an_image_is_the_same_from_its_file_and_from_both_caches(tmp_path: Path) -> None:
    ref = xray(tmp_path, "a.png")
    expected = load(ref, POLICY)
    first, again = ImageStore(POLICY, disk=tmp_path / "cache"), ImageStore(POLICY, disk=tmp_path / "cache")
    for got in (first.load(ref), first.load(ref), again.load(ref)):
        assert same(got.image, expected.image)
        assert got.record == expected.record
    report = first.report()
    assert (report.opened, report.memory_hits, report.disk_hits) == (1, 1, 0)
    report = again.report()
    assert (report.opened, report.memory_hits, report.disk_hits) == (0, 0, 1)


def test_colour_images_are_cached_as_such(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    ref = ImageRef(tmp_path / "a.png")
    for _ in range(2):
        assert same(ImageStore(POLICY, disk=tmp_path / "cache").get(ref), load(ref, POLICY).image)


def test_a_caller_can_modify_its_image(tmp_path: Path) -> None:
    ref = xray(tmp_path, "a.png")
    store = ImageStore(POLICY, disk=tmp_path / "cache")
    for _ in range(3):
        image = store.get(ref)
        assert same(image, load(ref, POLICY).image)
        image.paste((255, 0, 0), (0, 0, 20, 20))


def test_the_in_memory_cache_is_limited_in_bytes_and_evicts_the_least_recently_used_image(tmp_path: Path) -> None:
    refs = [xray(tmp_path, f"{i}.png", i, (1024, 1024)) for i in range(3)]
    store = ImageStore(ImagePolicy(max_side=1024), memory_mb=2)  # a grey image of 1024 x 1024 takes 1 MiB
    store.get(refs[0])
    store.get(refs[1])
    store.get(refs[0])
    store.get(refs[2])  # drops 1, which was used longest ago
    assert store.report().memory_hits == 1
    store.get(refs[0])
    assert store.report().memory_hits == 2
    store.get(refs[1])
    assert store.report().opened == 4


def test_an_image_larger_than_the_in_memory_cache_is_not_cached(tmp_path: Path) -> None:
    store = ImageStore(POLICY, memory_mb=0)
    ref = xray(tmp_path, "a.png")
    store.get(ref)
    store.get(ref)
    assert (store.report().opened, store.report().memory_hits) == (2, 0)


def test_the_in_memory_cache_counts_an_image_once_if_it_is_stored_again() -> None:
    record = ImageRecord("PNG", (10, 6), (10, 6), 8)
    memory = MemoryCache(100)
    for _ in range(5):
        memory.put("a", Reduced(np.zeros((6, 10), np.uint8), record))
    assert memory.used == 60
    memory.put("b", Reduced(np.zeros((5, 10), np.uint8), record))
    assert (memory.used, memory.get("a")) == (50, None)


def test_the_disk_cache_finds_images_by_content_not_by_name(tmp_path: Path) -> None:
    ref = xray(tmp_path, "a.png")
    (tmp_path / "copy").mkdir()
    copy = ImageRef(tmp_path / "copy" / "b.img")
    copy.path.write_bytes(ref.path.read_bytes())
    ImageStore(POLICY, disk=tmp_path / "cache").get(ref)
    store = ImageStore(POLICY, disk=tmp_path / "cache")
    store.get(copy)
    assert (store.report().opened, store.report().disk_hits) == (0, 1)
    assert len(entries(tmp_path / "cache")) == 1


def test_a_file_that_changed_within_one_tick_of_the_clock_is_read_again(tmp_path: Path) -> None:
    ref = xray(tmp_path, "a.png", 1)
    blank = tmp_path / "blank.bmp"
    Image.new("L", (20, 20), 10).save(blank)
    ref.path.write_bytes(blank.read_bytes())
    facts = ref.path.stat()
    ImageStore(POLICY, disk=tmp_path / "cache").get(ref)
    Image.new("L", (20, 20), 200).save(blank)  # the same number of bytes
    ref.path.write_bytes(blank.read_bytes())
    os.utime(ref.path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert ImageStore(POLICY, disk=tmp_path / "cache").get(ref).getpixel((0, 0)) == (200, 200, 200)


def test_a_stored_content_key_is_valid_until_the_file_changes(tmp_path: Path, settled: None) -> None:
    ref = xray(tmp_path, "a.png")
    disk = DiskCache(tmp_path / "cache", POLICY.key)
    disk.remember(ref.path, ref.path.stat(), "k" * 32)
    assert disk.content_key(ref.path, ref.path.stat()) == "k" * 32
    time.sleep(0.01)
    xray(tmp_path, "a.png", 1)
    assert disk.content_key(ref.path, ref.path.stat()) is None


def test_the_content_key_of_a_file_that_just_changed_is_not_stored(tmp_path: Path) -> None:
    ref = xray(tmp_path, "a.png")
    disk = DiskCache(tmp_path / "cache", POLICY.key)
    disk.remember(ref.path, ref.path.stat(), "k" * 32)
    assert disk.content_key(ref.path, ref.path.stat()) is None


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes read, which Linux counts")
def test_a_hit_on_disk_does_not_read_the_original_again(tmp_path: Path, settled: None) -> None:
    ref = xray(tmp_path, "a.png", size=(1000, 1000))
    ImageStore(POLICY, disk=tmp_path / "cache").get(ref)
    store = ImageStore(POLICY, disk=tmp_path / "cache")
    before = bytes_read()
    store.get(ref)
    assert store.report().disk_hits == 1
    assert bytes_read() - before < ref.path.stat().st_size / 20  # the reduced image has 64 x 64 bytes


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize(
    "other", [ImagePolicy(max_side=32), ImagePolicy(max_side=64), ImagePolicy(max_side=64, resample="nearest")]
)
def test_another_policy_does_not_find_the_image(tmp_path: Path, other: ImagePolicy) -> None:
    ref = xray(tmp_path, "a.png")
    ImageStore(POLICY, disk=tmp_path / "cache").get(ref)
    store = ImageStore(other, disk=tmp_path / "cache")
    assert same(store.get(ref), load(ref, other).image)
    assert store.report().opened == 1


def test_frames_of_one_file_are_cached_separately(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 8), value) for value in (10, 20)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for _ in range(2):
        store = ImageStore(POLICY, disk=tmp_path / "cache")
        got = [np.asarray(store.get(ImageRef(tmp_path / "a.tif", frame)))[0, 0, 0] for frame in (0, 1)]
        assert got == [10, 20]
    assert store.report().disk_hits == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        lambda data: b"not json\n" + data,
        lambda data: b"{}\n",
        lambda data: b"[1]\n",
        lambda data: data.replace(b'"shape": [64', b'"shape": [-1'),
        lambda data: data.replace(b'"size"', b'"seize"'),
        lambda data: data.replace(b"percentile", b"perhaps"),
        lambda data: b"\xff\xfe\n" + data,
    ],
)
def test_a_corrupt_cache_entry_is_written_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    ref = xray(tmp_path, "a.png")
    ImageStore(POLICY, disk=tmp_path / "cache").get(ref)
    (entry,) = entries(tmp_path / "cache")
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert entry.read_bytes() != whole
    store = ImageStore(POLICY, disk=tmp_path / "cache")
    assert same(store.get(ref), load(ref, POLICY).image)
    assert (store.report().opened, store.report().disk_hits) == (1, 0)
    assert entry.read_bytes() == whole


def test_an_unwritable_cache_is_reported_and_does_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in place of the folder")
    store = ImageStore(POLICY, disk=tmp_path / "cache")
    ref = xray(tmp_path, "a.png")
    assert same(store.get(ref), load(ref, POLICY).image)
    assert store.report().unstored == 1
    assert "cache" in store.report().cache_problem


def test_a_nearly_full_disk_gets_no_more_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FREE_LEAST", 2**62)
    store = ImageStore(POLICY, disk=tmp_path / "cache")
    store.get(xray(tmp_path, "a.png"))
    assert (store.report().opened, store.report().unstored) == (1, 1)
    assert "would be left on the disk" in store.report().cache_problem
    assert not entries(tmp_path / "cache")


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no"):
        cache.write_atomically(tmp_path / "cache" / "a", b"data")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_of_a_recipe_is_in_the_cache_folder_and_can_be_disabled(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = xray(tmp_path, "a.png")
    ImageStore.from_recipe(recipe.Images(disk_cache=False), recipe.Model()).get(ref)
    assert not list(private_cache.iterdir())
    ImageStore.from_recipe(recipe.Images(), recipe.Model()).get(ref)
    assert len(entries(private_cache / "images")) == 1
    monkeypatch.delenv("TOOLKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "toolkit"


def test_unreadable_files_are_handled_and_counted_as_the_recipe_says(tmp_path: Path) -> None:
    missing = ImageRef(tmp_path / "none.png")
    stop, skip, grey = (ImageStore(POLICY, rule) for rule in ("stop", "skip", "placeholder"))
    for store in (stop, skip):
        with raises(ImageError, "images.missing") as caught:
            store.get(missing)
        assert image_of(caught) == missing.path
    loaded = grey.load(missing)
    assert np.unique(np.asarray(loaded.image)).tolist() == [128]
    assert loaded.image.size == (64, 64)
    assert loaded.record.placeholder
    assert loaded.record.reason == str(caught.error)
    assert [(s.report().skipped, s.report().placeholders) for s in (stop, skip, grey)] == [(0, 0), (1, 0), (0, 1)]


def test_a_placeholder_is_not_cached_in_place_of_a_file_that_appears_later(tmp_path: Path) -> None:
    store = ImageStore(POLICY, "placeholder", disk=tmp_path / "cache")
    store.get(ImageRef(tmp_path / "a.png"))
    ref = xray(tmp_path, "a.png")
    assert same(store.get(ref), load(ref, POLICY).image)


def test_clipped_pixels_are_counted_over_the_images_that_were_windowed(tmp_path: Path) -> None:
    refs = [xray(tmp_path, f"{i}.png", i) for i in range(4)]
    Image.new("L", (9, 9), 7).save(tmp_path / "small.png")
    for _ in range(2):  # opened, then from disk
        store = ImageStore(POLICY, disk=tmp_path / "cache")
        records = [store.load(ref).record for ref in [*refs, ImageRef(tmp_path / "small.png")]]
        report = store.report()
        assert (report.windowed, report.clipped) == (4, 4)
        assert report.clipped_fraction == pytest.approx(np.mean([record.clipped for record in records[:4]]))
        assert 0.01 < report.clipped_fraction < 0.021  # 1 % on either side


def test_a_pickled_store_has_its_settings_and_new_counters(tmp_path: Path) -> None:
    store = ImageStore(POLICY, "placeholder", 7, tmp_path / "cache", [tmp_path])
    store.get(xray(tmp_path, "a.png"))
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.policy, copy.unreadable, copy.memory_mb, copy.disk, copy.roots) == (
        store.policy,
        store.unreadable,
        store.memory_mb,
        store.disk,
        store.roots,
    )
    assert copy.report().opened == 0
    copy.get(ImageRef(tmp_path / "a.png"))
    assert copy.report().disk_hits == 1


def test_forked_workers_read_images_after_the_parent_did(tmp_path: Path) -> None:
    refs = [xray(tmp_path, f"{i}.png", i, (900, 800)) for i in range(4)]
    store = ImageStore(POLICY)
    expected = [np.asarray(store.get(ref)).sum() for ref in refs]
    fresh = ImageStore(POLICY)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        got = pool.map_async(fresh.get, refs).get(timeout=60)
    assert [np.asarray(image).sum() for image in got] == expected


def test_threads_get_the_right_images_and_every_call_is_counted(tmp_path: Path) -> None:
    refs = [xray(tmp_path, f"{i}.png", i) for i in range(6)]
    expected = {ref: load(ref, POLICY).image for ref in refs}
    store = ImageStore(POLICY, disk=tmp_path / "cache")
    calls = refs * 20
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(store.get, calls))
    assert all(same(image, expected[ref]) for image, ref in zip(images, calls, strict=True))
    report = store.report()
    assert report.opened + report.memory_hits + report.disk_hits == len(calls)
    assert not list((tmp_path / "cache").rglob(".new-*"))


def spoiled(folder: Path) -> list[ImageRef]:
    """Return two good images and four bad ones, mixed."""
    good = [xray(folder, "good0.png"), xray(folder, "good1.png", 1, (300, 200))]
    whole = good[0].path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2 : len(whole) // 2 + 99] = bytes(99)
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "damaged.png").write_bytes(middle)
    bad = [ImageRef(folder / name) for name in ("cut.png", "text.png", "missing.png", "damaged.png")]
    return [bad[0], good[0], *bad[1:], good[1]]


def test_a_full_scan_finds_every_bad_image_in_order_and_fills_the_disk_cache(tmp_path: Path) -> None:
    refs = spoiled(tmp_path)
    store = ImageStore(POLICY, "placeholder", disk=tmp_path / "cache")
    report = scan(refs * 3, store, "full")
    assert report.checked == 6
    assert [bad.ref.path.name for bad in report.bad] == ["cut.png", "text.png", "missing.png", "damaged.png"]
    assert report.bad_refs == {bad.ref for bad in report.bad}
    assert (dict(report.formats), dict(report.bits)) == ({"PNG": 2}, {16: 2})
    assert (report.smallest, report.largest) == ((100, 120), (200, 300))
    assert (report.windowed, report.clipped, report.nonfinite, report.transparent) == (2, 2, 0, 0)
    assert 0.01 < report.worst_clipped < 0.021
    assert store.report().placeholders == 0
    later = ImageStore(POLICY, disk=tmp_path / "cache")
    later.get(refs[1])
    assert later.report().disk_hits == 1


def test_a_header_scan_finds_all_but_the_damage_inside_and_decodes_nothing(tmp_path: Path) -> None:
    store = ImageStore(POLICY, disk=tmp_path / "cache")
    report = scan(spoiled(tmp_path), store, "header")
    assert [bad.ref.path.name for bad in report.bad] == ["cut.png", "text.png", "missing.png"]
    assert (dict(report.bits), report.largest, report.windowed) == ({16: 3}, (200, 300), 0)
    assert store.report().opened == 0
    assert not entries(tmp_path / "cache")


def test_auto_is_full_for_few_images_and_header_for_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["toolkit.images.scan"], "FULL_UP_TO", 3)
    refs = [xray(tmp_path, f"{i}.png", i) for i in range(4)]
    few, many = scan(refs[:3] * 2, ImageStore(POLICY)), scan(iter(refs), ImageStore(POLICY))
    assert (few.mode, few.checked, few.windowed) == ("full", 3, 3)
    assert (many.mode, many.checked, many.windowed) == ("header", 4, 0)
    off = scan(refs, ImageStore(POLICY), "off")
    assert (off.mode, off.checked, off.bad) == ("off", 0, ())


def test_all_bad_images_are_reported_in_one_error_with_ten_rows(tmp_path: Path) -> None:
    refs = [ImageRef(tmp_path / f"{i:03}.png") for i in range(33)]
    rows = {ref: f"rows.json, row {i:03}, image 1" for i, ref in enumerate(refs)}
    report = scan(refs, ImageStore(POLICY)).with_rows(rows)
    assert {bad.error.code for bad in report.bad} == {"images.missing"}
    with raises(ImageError, "images.unusable") as caught:
        report.raise_if_bad()
    text = str(caught.error)
    assert "33 of 33" in text
    assert "\n. " not in text
    assert all(f"row {i:03}, image 1" in text for i in range(10))
    assert "row 010" not in text
    assert ".png" not in text
    assert "and 23 more" in text
    assert caught.problem.remedy == report.bad[0].error.remedy  # the same remedy once, not 33 times
    scan([xray(tmp_path, "a.png")], ImageStore(POLICY)).raise_if_bad()


def test_progress_of_a_scan_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["toolkit.images.scan"], "BATCH", 2)
    counts: list[int] = []
    scan([xray(tmp_path, f"{i}.png", i) for i in range(5)], ImageStore(POLICY), progress=counts.append)
    assert counts == [2, 4, 5]


def test_errors_of_a_scan_do_not_keep_files_in_ram(tmp_path: Path) -> None:
    report = scan(spoiled(tmp_path), ImageStore(POLICY), "full")
    assert all(bad.error.__traceback__ is None and bad.error.__cause__ is None for bad in report.bad)


def test_the_real_images_pass_a_full_scan(shared_data: Path, tmp_path: Path) -> None:
    images = sorted((shared_data / "cxr" / "vqa_rad" / "images").glob("*.jpg"))[:20]
    images += sorted((shared_data / "cxr" / "nih").glob("*.png"))
    report = scan([ImageRef(path) for path in images], ImageStore(ImagePolicy(max_side=224), disk=tmp_path))
    report.raise_if_bad()
    assert (report.checked, dict(report.formats)) == (len(images), {"JPEG": len(images) - 2, "PNG": 2})
