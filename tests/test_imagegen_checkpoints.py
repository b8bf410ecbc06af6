"""Checkpoints are complete or absent, and a killed update resumes to the table of an undisturbed one."""

import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.damage import change_one_byte
from tests.helpers.imagegen_models import random_dit_folder
from tests.helpers.problems import raises, warnings_in
from toolkit.errors import RunError
from toolkit.imagegen.checkpoints import (
    POLICY,
    SYNTHETIC,
    is_saved,
    load_part,
    load_tensors,
    newest_epoch,
    open_checkpoints,
    save_epoch,
    save_tensors,
)

NOW = datetime(2026, 3, 4, 5, 6, 7)


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    round: int
    lora: dict[str, Tensor] = field(default_factory=dict)
    random: tuple[Any, ...] = ()
    loss: float = 0.0


PART = {SYNTHETIC: Content(1, {"a": torch.ones(2)}, random.getstate())}
HERE = Path(__file__).parent


def test_layout_is_one_timestamp_and_numbered_epochs(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path / "checkpoints", 5, NOW)
    save_epoch(checkpoints, 1, PART, lambda folder: (folder / "lora.safetensors").touch())
    again = open_checkpoints(tmp_path / "checkpoints", 5, datetime(2027, 1, 1))
    save_epoch(again, 2, PART)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        "checkpoints/20260304-050607/epoch_1/lora.safetensors",
        "checkpoints/20260304-050607/epoch_1/manifest.json",
        "checkpoints/20260304-050607/epoch_1/synthetic_checkpoint.pt",
        "checkpoints/20260304-050607/epoch_2/manifest.json",
        "checkpoints/20260304-050607/epoch_2/synthetic_checkpoint.pt",
    ]


def test_the_newest_epochs_are_kept_in_the_order_of_numbers(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path, 2, NOW)
    for epoch in (8, 9, 10, 11):
        save_epoch(checkpoints, epoch, PART)
    assert checkpoints.epochs() == [10, 11]


def test_an_epoch_comes_back_and_is_replaced(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path, 2, NOW)
    save_epoch(checkpoints, 1, PART)
    loaded = load_part(checkpoints, 1, SYNTHETIC, Content)
    assert torch.equal(loaded.lora["a"], torch.ones(2))
    random.setstate(loaded.random)
    save_epoch(checkpoints, 1, {SYNTHETIC: Content(7)})
    assert load_part(checkpoints, 1, SYNTHETIC, Content).round == 7
    assert [path.name for path in checkpoints.folder.iterdir()] == ["epoch_1"]


def test_a_numpy_number_is_an_error_when_it_is_saved_and_loses_nothing(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path, 1, NOW)
    save_epoch(checkpoints, 1, PART)
    with pytest.raises(TypeError):
        save_epoch(checkpoints, 2, {SYNTHETIC: Content(2, loss=np.float64(1))})
    assert checkpoints.epochs() == [1]


def test_an_interrupted_save_is_undone_also_between_its_two_renames(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path, 1, NOW)
    final = save_epoch(checkpoints, 3, PART)
    final.rename(final.with_name(".epoch_3.old"))
    final.with_name(".epoch_3.partial").mkdir()
    again = open_checkpoints(tmp_path, 1, NOW)
    assert [path.name for path in again.folder.iterdir()] == ["epoch_3"]
    assert load_part(again, 3, SYNTHETIC, Content).round == 1


def test_the_newest_epoch_is_one_with_all_files(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path, 3, NOW)
    assert newest_epoch(checkpoints, [SYNTHETIC]) is None
    save_epoch(checkpoints, 1, PART)
    save_epoch(checkpoints, 2, {POLICY: Content(1)})
    assert newest_epoch(checkpoints, [SYNTHETIC]) == 1
    assert newest_epoch(checkpoints, []) == 2


def test_damaged_and_missing_parts_are_run_errors(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path, 1, NOW)
    path = save_epoch(checkpoints, 1, PART) / SYNTHETIC
    path.write_bytes(path.read_bytes()[:100])
    with raises(RunError, "imagegen.checkpoint_unreadable"):
        load_part(checkpoints, 1, SYNTHETIC, Content)
    path.write_bytes(b"")
    with raises(RunError, "imagegen.checkpoint_unreadable"):
        load_part(checkpoints, 1, SYNTHETIC, Content)
    with raises(RunError, "imagegen.checkpoint_unreadable"):
        load_part(checkpoints, 1, POLICY, Content)


@pytest.mark.parametrize("name", [SYNTHETIC, "lora.safetensors", "manifest.json"])
def test_a_damaged_epoch_is_skipped_with_a_warning_and_replaced(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = open_checkpoints(tmp_path, 1, NOW)
    for epoch in (1, 2):
        save_epoch(replace(checkpoints, keep_last=2), epoch, PART, write_lora)
    change_one_byte(checkpoints.path(2) / name)
    assert newest_epoch(checkpoints, [SYNTHETIC]) == 1
    assert [problem.code for problem in warnings_in(caplog)] == ["imagegen.checkpoint_damaged"]
    save_epoch(checkpoints, 1, PART)
    assert newest_epoch(checkpoints, [SYNTHETIC]) == 1, "the damaged epoch does not count as one to keep"
    save_epoch(checkpoints, 2, PART)
    assert newest_epoch(checkpoints, [SYNTHETIC]) == 2


def write_lora(folder: Path) -> None:
    (folder / "lora.safetensors").write_bytes(bytes(range(200)))


def test_a_saved_model_is_checked_by_its_digest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "judge.pt"
    assert not is_saved(file)
    save_tensors(file, Content(3))
    assert is_saved(file)
    assert load_tensors(file, Content, "").round == 3
    digest = (tmp_path / "judge.pt.sha256").read_text()
    assert digest == f"{hashlib.sha256(file.read_bytes()).hexdigest()}  judge.pt\n"
    (tmp_path / "judge.pt.sha256").unlink()  # a crash between the two writes
    assert not is_saved(file)
    save_tensors(file, Content(3))
    change_one_byte(file)
    assert not is_saved(file)
    with raises(RunError, "imagegen.checkpoint_unreadable") as caught:
        load_tensors(file, Content, "Restore the file.")
    assert (caught.problem.place, caught.problem.remedy) == (str(file), "Restore the file.")
    assert {problem.code for problem in warnings_in(caplog)} == {"imagegen.model_damaged"}


def test_several_timestamps_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with raises(RunError, "imagegen.checkpoint_folders_several"):
        open_checkpoints(tmp_path, 1, NOW)


PROGRAM = """
import json, os, random, signal, sys, time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.helpers.imagegen_models import DDPO, PROMPTS, ddpo_round, dit_generator
from toolkit.imagegen.checkpoints import SYNTHETIC, load_part, newest_epoch, open_checkpoints, save_epoch
from toolkit.imagegen.training.ddpo import DdpoRound
from toolkit.imagegen.training.update_state import SavedUpdate, dump_state, restore_state, start_update

base, whole, killed = map(Path, sys.argv[1:])

@dataclass(frozen=True)
class Content:
    state: SavedUpdate
    table: tuple[DdpoRound, ...]

settings = replace(DDPO, generations=4, denoising_steps=4)

def update(out):
    checkpoints = open_checkpoints(out / "checkpoints", 2, datetime.now())
    state, table = start_update(dit_generator(base), settings.learning_rate), ()
    epoch = newest_epoch(checkpoints, [SYNTHETIC])
    if epoch is not None:
        saved = load_part(checkpoints, epoch, SYNTHETIC, Content)
        restore_state(state, saved.state, checkpoints.path(epoch) / SYNTHETIC)
        table = saved.table
    while state.round < 30:
        table = (*table, ddpo_round(state, settings, PROMPTS, lambda images, _: images.mean((1, 2, 3))))
        parts = {SYNTHETIC: Content(dump_state(state), table)}
        save_epoch(checkpoints, state.round, parts, state.generator.save_lora)
    (out / "table.json").write_text(json.dumps([asdict(one) for one in table]))

def in_a_child(out, kill_after=None):
    child = os.fork()
    if child == 0:
        update(out)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

dit_generator(base)  # Imports come before the fork.
whole.mkdir()
killed.mkdir()
began = time.monotonic()
assert in_a_child(whole) == 0
seconds = time.monotonic() - began
moments = random.Random(0)
kills = sum(in_a_child(killed, moments.uniform(0, seconds / 8)) == -signal.SIGKILL for _ in range(20))
assert in_a_child(killed) == 0
print(kills)
"""


@pytest.mark.slow
def test_an_update_killed_at_20_moments_ends_with_the_table_of_an_undisturbed_one(tmp_path: Path) -> None:
    base, whole, killed = random_dit_folder(tmp_path / "base"), tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-c", PROGRAM, *map(str, (base, whole, killed))]
    ended = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 5  # the moments depend on the load of the machine
    tables = [json.loads((folder / "table.json").read_text()) for folder in (whole, killed)]
    assert tables[0] == tables[1]
    assert len(list((killed / "checkpoints").iterdir())) == 1
