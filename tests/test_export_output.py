"""Output folders of exports: complete or absent, never in place of foreign folders, with a check of the disk first."""

import os
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.exports import adapter_of, merged_of, verified
from tests.helpers.problems import raises, warnings_in
from tests.helpers.training import context_of, small_recipe
from toolkit import tiny
from toolkit.errors import Interrupted, ModelError, RunError
from toolkit.evaluation.stage_context import Context
from toolkit.exporting.atomic_output import (
    EXTRA_BYTES,
    MARGIN,
    OutputFolder,
    Size,
    WrittenFolders,
    base_size,
    digest_of,
    format_bytes,
    require_disk_space,
    weights_size,
)
from toolkit.exporting.export import export
from toolkit.models.backend import MergeComparison, Policy
from toolkit.models.hf import HfBackend
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Export, Model, Recipe
from toolkit.runfolder import free_name

FILES = 30
Disk = namedtuple("Disk", "total used free")


def write_version(output: OutputFolder, version: int) -> None:
    output.partial.mkdir()
    for number in range(FILES):
        (output.partial / f"{number}.txt").write_text(str(version), encoding="utf-8")


def versions_in(folder: Path) -> list[str]:
    return [file.read_text(encoding="utf-8") for file in folder.iterdir()]


def folders(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.is_dir())


def write_until_killed(output: OutputFolder, pipe: int) -> None:
    version = 0
    while True:
        output.prepare()
        write_version(output, version)
        output.commit()
        os.write(pipe, b".")
        version += 1


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_complete_export_or_none(tmp_path: Path) -> None:
    """A process that exports in a loop is killed 25 times. The final folder always has the files of one version."""
    output = OutputFolder(tmp_path / "merged")
    left = set()
    for attempt in range(25):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            write_until_killed(output, write)
        os.read(read, 1)
        time.sleep(0.002 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
        left |= {path.name for path in tmp_path.iterdir()}
        if output.target.exists():
            assert len(set(versions_in(output.target))) == 1
            assert len(versions_in(output.target)) == FILES
        output.prepare()
        assert len(versions_in(output.target)) == FILES  # a complete export is never lost
        assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert "merged.partial" in left  # some were killed while they wrote files


def test_an_export_between_two_renames_gets_its_name_back(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "merged")
    write_version(output, 1)
    output.commit()
    output.target.replace(output.old)  # as after a kill between the two renames
    output.prepare()
    assert versions_in(output.target) == ["1"] * FILES


def test_a_foreign_folder_is_rejected_and_renamed_with_force(tmp_path: Path) -> None:
    target = tmp_path / "merged"
    target.mkdir()
    (target / "thesis.txt").write_text("three years", encoding="utf-8")
    with raises(RunError, "export.target_exists") as caught:
        OutputFolder(target, own=False).prepare()
    assert caught.problem.place == str(target)
    assert "--force" in caught.problem.remedy
    forced = OutputFolder(target, own=False, force=True)
    for number in (1, 2):
        forced.prepare()
        write_version(forced, number)
        forced.commit()
    assert (tmp_path / "merged.old-1/thesis.txt").read_text(encoding="utf-8") == "three years"
    assert versions_in(tmp_path / "merged.old-2") == ["1"] * FILES
    assert versions_in(target) == ["2"] * FILES
    assert free_name(target) == tmp_path / "merged.old-3"


def test_an_empty_folder_is_replaced_and_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    output = OutputFolder(tmp_path / "merged", own=False)
    output.prepare()
    write_version(output, 1)
    output.commit()
    assert versions_in(output.target) == ["1"] * FILES
    (tmp_path / "adapter").write_text("", encoding="utf-8")
    with raises(RunError, "export.target_is_file"):
        OutputFolder(tmp_path / "adapter", force=True).prepare()


def test_a_folder_that_cannot_be_written_is_rejected_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with raises(RunError, "output.folder_not_writable") as caught:
        OutputFolder(tmp_path / "file" / "merged").prepare()
    assert caught.problem.place == str(tmp_path / "file")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    # Root may write anywhere except to /proc.
    read_only = Path("/proc") if os.geteuid() == 0 else locked
    with raises(RunError, "output.folder_not_writable"):
        OutputFolder(read_only / "merged").prepare()
    assert list(locked.iterdir()) == []


def test_a_small_disk_is_an_error_with_the_needed_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Path] = []

    def usage(folder: Path) -> Disk:
        checked.append(folder)
        return Disk(10**12, 0, round(MARGIN * 2_000_000_000) + EXTRA_BYTES - 1)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with raises(RunError, "export.disk_full") as caught:
        require_disk_space(tmp_path / "not/there/yet", 2_000_000_000, "export of merged")
    assert caught.problem.value == "2.16 GB"
    assert "export of merged needs 2.16 GB" in caught.problem.rule
    assert checked == [tmp_path]
    require_disk_space(tmp_path, 1_999_999_000, "export of merged")


def test_the_size_of_a_format_is_read_from_the_headers_of_its_weights(tmp_path: Path) -> None:
    stored = (tiny.FOLDER / "model.safetensors").stat().st_size
    base = base_size(Model())
    assert base is not None
    assert base.bytes == stored
    # Weights in 16 bits: 2 bytes each and a header of a few KB.
    assert 0 < stored - 2 * base.values < 50_000
    adapter = tmp_path / "weights"
    adapter.mkdir()
    shutil.copy(tiny.FOLDER / "model.safetensors", adapter)
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert format_bytes("adapter", adapter, Model()) == stored
    assert format_bytes("merged", adapter, Model(precision="32bit")) == 4 * base.values
    assert format_bytes("merged", adapter, Model(precision="16bit")) == 2 * base.values
    assert format_bytes("merged", adapter, Model(precision="4bit")) == stored  # merged into the weights as stored
    # A copy in 16 bits, and 8.5 bits per parameter. Merged weights count as their own format.
    gguf = format_bytes("gguf", adapter, Model(precision="16bit"), ["q8_0"])
    assert gguf == pytest.approx((2 + 8.5 / 8) * base.values, abs=1)
    assert format_bytes("merged", adapter, Model(name="nobody/has-this")) is None
    assert base_size(Model(name=str(tmp_path))) is None
    assert base_size(Model(name=str(adapter))) == Size(base.values, stored)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    tables: dict[str, dict[str, Any]] = {"sft": {"max_steps": 2}, "evaluate": {"before": False}}
    tables["export"] = {"verify": 1}
    recipe = small_recipe(tmp_path_factory.mktemp("place"), tables, "placed").model_copy(update={"grpo": None})
    run_recipe(recipe.model_copy(update={"export": None}), STAGES)
    return recipe


@pytest.fixture
def context(trained: Recipe) -> Iterator[Context]:
    with context_of(trained.model_copy(update={"export": None})) as made:
        yield replace(made, recipe=trained)


class Interrupting(HfBackend):
    """Counts loaded models, and gets SIGINT while it writes merged weights."""

    def __init__(self, context: Context) -> None:
        self.context, self.loaded = context, 0

    def load(self, *arguments: Any, **named: Any) -> Policy:
        self.loaded += 1
        return super().load(*arguments, **named)

    def save_merged(self, policy: Policy, folder: Path) -> MergeComparison | None:
        found = super().save_merged(policy, folder)
        self.context.stop.join(signal.SIGINT)
        return found


@pytest.mark.slow
def test_ctrl_c_keeps_complete_formats_only(context: Context, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="merged was not verified yet"):
        export(context, Interrupting(context), out=tmp_path)
    assert folders(tmp_path) == ["adapter", "merged.partial"]
    context.stop.number = None
    result = export(context, out=tmp_path)
    assert folders(tmp_path) == ["adapter", "merged"]
    assert verified(merged_of(result)).samples == 1


def test_nothing_is_loaded_if_the_disk_is_too_small_or_the_target_exists(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Interrupting(context)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/mine.txt").write_text("x", encoding="utf-8")
    with raises(RunError, "export.target_exists"):
        export(context, backend, out=tmp_path)
    assert folders(tmp_path) == ["merged"]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Disk(10**9, 10**9, 1000))
    with raises(RunError, "export.disk_full") as caught:
        export(context, backend)
    assert caught.problem.value == "0.00 GB"
    assert "export of adapter and merged needs 0.07 GB" in caught.problem.rule
    assert backend.loaded == 0


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "null", '{"a": ', '{"a": 1}', "[]"])
def test_a_damaged_record_of_exports_outside_the_run_is_a_warning_and_names_no_folder(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    written, target = WrittenFolders(tmp_path / "run/written.json"), tmp_path / "out/merged"
    written.begin(target)
    assert written.has(target)
    written.file.write_text(text)
    assert not written.has(target)
    assert written.digests(target) == set()
    assert {problem.code for problem in warnings_in(caplog)} == {"export.written_damaged"}
    written.begin(target)
    assert written.has(target)


def test_an_export_outside_the_run_is_its_own_before_and_after_the_folder_has_its_name(
    context: Context, tmp_path: Path
) -> None:
    section = Export(to=("adapter",), verify=1)
    only = replace(context, recipe=context.recipe.model_copy(update={"export": section}))
    target = tmp_path / "adapter"
    result = adapter_of(export(only, out=tmp_path))
    written = WrittenFolders(context.run.stage_folder("export") / "written.json")
    assert written.digests(target) == {digest_of(target)} == {result.digest}
    for digest in ("of the next export", "of the one after it"):  # killed twice before the folder has its name
        written.add(OutputFolder(target), replace(result, digest=digest))
        assert written.digests(target) == {digest, result.digest}
    export(only, out=tmp_path)
    assert folders(tmp_path) == ["adapter"]


def test_only_the_run_that_wrote_an_export_outside_it_replaces_it(context: Context, tmp_path: Path) -> None:
    section = Export(to=("adapter",), verify=1)
    only = replace(context, recipe=context.recipe.model_copy(update={"export": section}))
    result = export(only, out=tmp_path)
    assert adapter_of(result).folder == str(tmp_path / "adapter")
    export(only, out=tmp_path)
    assert folders(tmp_path) == ["adapter"]
    (tmp_path / "adapter/notes.txt").write_text("mine", encoding="utf-8")
    with raises(RunError, "export.target_exists"):
        export(only, out=tmp_path)
    export(only, out=tmp_path, force=True)
    assert folders(tmp_path) == ["adapter", "adapter.old-1"]


def test_foreign_folders_with_a_temporary_name_are_neither_used_nor_removed(context: Context, tmp_path: Path) -> None:
    only = replace(context, recipe=context.recipe.model_copy(update={"export": Export(to=("adapter",), verify=1)}))
    for name in ("old", "partial", "differs"):
        out = tmp_path / name
        (out / f"adapter.{name}").mkdir(parents=True)
        (out / f"adapter.{name}/thesis.txt").write_text("mine", encoding="utf-8")
        with raises(RunError, "export.temporary_name_taken") as caught:
            export(only, out=out)
        assert caught.problem.place == str(out / f"adapter.{name}")
        assert folders(out) == [f"adapter.{name}"]
    export(only, out=tmp_path / "old", force=True)
    assert folders(tmp_path / "old") == ["adapter", "adapter.old.old-1"]
    assert (tmp_path / "old/adapter.old.old-1/thesis.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_files_of_a_failed_export_outside_the_run_are_removed(context: Context, tmp_path: Path) -> None:
    only = replace(context, recipe=context.recipe.model_copy(update={"export": Export(to=("adapter",), verify=1)}))
    with raises(ModelError, "export.answers_differ") as caught:
        export(only, FailsVerification(), out=tmp_path)
    assert caught.problem.place == str(tmp_path / "adapter.differs")
    export(only, out=tmp_path)
    assert folders(tmp_path) == ["adapter"]


def test_a_format_that_is_a_link_is_replaced_without_its_target(tmp_path: Path) -> None:
    """Users move weights to a larger disk and leave a link."""
    output = OutputFolder(tmp_path / "merged")
    (tmp_path / "large").mkdir()
    output.target.symlink_to(tmp_path / "large")
    for version in range(3):
        output.prepare()
        write_version(output, version)
        output.commit()
        assert set(versions_in(output.target)) == {str(version)}
    assert folders(tmp_path) == ["large", "merged"]


def test_a_broken_link_is_rejected_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "merged").symlink_to(tmp_path / "gone")
    for own in (True, False):
        with raises(RunError, "export.target_broken_link"):
            OutputFolder(tmp_path / "merged", own=own).prepare()


class FailsVerification(HfBackend):
    """Saves an adapter with wrong weights."""

    def save(self, policy: Policy, folder: Path) -> None:
        for name, weights in policy.model.named_parameters():
            if "lora_B" in name:
                weights.data.fill_(3.0)
        super().save(policy, folder)


def test_an_export_that_fails_verification_never_gets_the_final_name(context: Context, tmp_path: Path) -> None:
    with raises(ModelError, "export.answers_differ") as caught:
        export(context, FailsVerification(), out=tmp_path)
    assert caught.problem.place == str(tmp_path / "adapter.differs")
    assert folders(tmp_path) == ["adapter.differs"]


def test_truncated_weights_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file({"a": np.zeros((2, 3), dtype=np.float32)}, file)
    found = weights_size(tmp_path)
    assert found is not None
    assert found.values == 6
    file.write_bytes(file.read_bytes()[:20])
    with raises(ModelError, "model.weights_damaged") as caught:
        weights_size(tmp_path)
    assert caught.problem.place == str(file)
