"""Commands whose disk, files or images fail: a clear error, and the same results once the command can run again."""

import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.children import Child, Ended, run_command, start_command
from tests.faults.kills import LIMIT_S, differences, wait_for_main
from tests.faults.part import Outcome, Part, Result, is_clear, random_of
from tests.faults.scenarios import SCENARIOS, Scenario, undisturbed

KIB, MIB = 1 << 10, 1 << 20
ENOUGH = 192 * MIB
"""Size of a small disk after space was freed."""


@cache
def no_mounts() -> str:
    """Return why a disk cannot be mounted, or nothing."""
    with TemporaryDirectory(prefix="toolkit-faults-mount-") as folder:
        try:
            mount("-t", "tmpfs", "-o", "size=16k", "none", folder)
        except (OSError, subprocess.CalledProcessError):
            return "a small disk cannot be mounted: this user has no right to"
        unmount(Path(folder))
    return ""


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """Mount a disk of ``size`` bytes at ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(place))
    try:
        yield
    finally:
        unmount(place)


def fill(place: Path, left: int) -> None:
    """Fill the disk at ``place`` up to some bytes."""
    facts = os.statvfs(place)
    size = facts.f_bavail * facts.f_frsize - left
    if size > 0:
        with (place / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def disk_is_small(at: str, seed: int, number: int, folder: Path) -> Outcome:
    """Start a run on a disk that is too small, free space, and run again."""
    chance = random_of(seed, f"small-{at}", number)
    if reason := no_mounts():
        return Outcome("skipped", reason)
    size = chance.choice([16 * KIB, 64 * KIB, 256 * KIB, MIB, 2 * MIB, 4 * MIB, 9 * MIB])
    with small_disk(folder / at, size):
        ended = run_command(chest().argv, folder, LIMIT_S)
        mount("-o", f"remount,size={ENOUGH}", str(folder / at))
        return recovered(ended, f"{at} is a disk of {size} bytes", folder)


def disk_fills(at: str, seed: int, number: int, folder: Path) -> Outcome:
    """Fill the disk during a run, free space, and run again."""
    chance = random_of(seed, f"fills-{at}", number)
    if reason := no_mounts():
        return Outcome("skipped", reason)
    left = chance.choice([0, 0, 4 * KIB, 40 * KIB, 400 * KIB, 4 * MIB])
    with small_disk(folder / at, ENOUGH):
        child = start_command(chest().argv, folder)
        moment = wait_at_random(child, chance)
        with suppress(OSError):  # another write took the last bytes
            fill(folder / at, left)
        ended = child.wait(LIMIT_S)
        (folder / at / "filler").unlink(missing_ok=True)
        return recovered(ended, f"{at} has {left} bytes left after {moment:.2f} s", folder)


def read_only(at: str, seed: int, number: int, folder: Path) -> Outcome:
    """Make a folder read-only at a random moment, or before the start, and run again when it can be written."""
    chance = random_of(seed, f"read-only-{at}", number)
    place = folder / at
    place.mkdir()
    if os.geteuid() == 0 and no_mounts():
        return Outcome("skipped", "the user root may write to a read-only folder")
    if chance.random() < 0.5:
        with unwritable(place):
            ended, moment = run_command(chest().argv, folder, LIMIT_S), 0.0
    else:
        child = start_command(chest().argv, folder)
        moment = wait_at_random(child, chance)
        with unwritable(place):
            ended = child.wait(LIMIT_S)
    return recovered(ended, f"{at} is read-only after {moment:.2f} s", folder)


@contextmanager
def unwritable(place: Path) -> Iterator[None]:
    """Make a folder read-only. The user root needs a mount for it."""
    if os.geteuid() == 0:
        mount("--bind", str(place), str(place))
        mount("-o", "remount,ro,bind", str(place))
    else:
        place.chmod(0o555)
    try:
        yield
    finally:
        if os.geteuid() == 0:
            unmount(place)
        else:
            place.chmod(0o755)


def limited(limit: int, values: Sequence[int], name: str, seed: int, number: int, folder: Path) -> Outcome:
    """Run with a limit of the operating system, then without it."""
    value = random_of(seed, name, number).choice(values)
    ended = run_command(chest().argv, folder, LIMIT_S, limits={limit: (value, value)})
    return recovered(ended, f"{name} {value}", folder)


def images_fail(seed: int, number: int, folder: Path) -> Outcome:
    """Remove, cut or replace images after the scan, restore them, and run again."""
    chance, scenario = random_of(seed, "images-vanish", number), SCENARIOS["files"]
    scenario.prepare(folder)
    images = sorted((folder / "data/images").iterdir())
    shutil.copytree(folder / "data", folder / "saved")
    child = start_command(scenario.argv, folder)
    while not (folder / "runs/files/stages/data/done.json").exists() and not child.ends_within(0.01):
        pass
    child.ends_within(chance.uniform(0, undisturbed("files").seconds / 2))
    damage, chosen = chance.choice([vanish, cut, become_folder]), chance.sample(images, chance.randint(1, len(images)))
    for image in chosen:
        damage(image)
    ended = child.wait(LIMIT_S)
    shutil.rmtree(folder / "data")
    (folder / "saved").rename(folder / "data")
    return recovered(ended, f"{len(chosen)} images {damage.__name__}", folder, scenario)


def vanish(image: Path) -> None:
    image.unlink()


def cut(image: Path) -> None:
    os.truncate(image, image.stat().st_size // 2)


def become_folder(image: Path) -> None:
    image.unlink()
    image.mkdir()


def in_use(seed: int, number: int, folder: Path) -> Outcome:
    """Start other commands in the folder of a run that is at work. They are rejected, and the run is not disturbed."""
    chance, scenario = random_of(seed, "in-use", number), chest()
    first = start_command(scenario.argv, folder)
    while not (folder / "runs/chest/run.json").exists() and not first.ends_within(0.01):
        pass
    first.ends_within(chance.uniform(0, undisturbed("chest").seconds / 2))
    first.send(signal.SIGSTOP)  # otherwise it may end before the others begin
    others = [("evaluate", "runs/chest"), scenario.argv, (*scenario.argv, "--fresh"), ("export", "runs/chest")]
    chance.shuffle(others)
    ended = [run_command(argv, folder, LIMIT_S) for argv in others]
    first.send(signal.SIGCONT)
    whole = first.wait(LIMIT_S)
    for argv, one in zip(others, ended, strict=True):
        if one.status != 1 or not one.last_line.endswith("[run.folder_in_use]"):
            return Outcome(problem_of(one) or "unclear", f"{argv}: {one.status}, {one.stderr[-1000:]}")
    return recovered(whole, "other commands in the same folder", folder)


def together(seed: int, number: int, folder: Path) -> Outcome:
    """Start several commands at once on one empty cache."""
    chance, scenario = random_of(seed, "together", number), SCENARIOS["index"]
    scenario.prepare(folder)
    children = [start_command(scenario.argv, folder) for _ in range(chance.randint(2, 6))]
    ended = [child.wait(LIMIT_S) for child in children]
    for one in ended:
        if one.status != 0 or one.has_traceback:
            return Outcome(problem_of(one) or "unclear", f"status {one.status}: {one.stderr[-1000:]}")
        for result, detail in differences(scenario, undisturbed("index").digests, one, folder):
            return Outcome(result, detail)
    return Outcome("identical")


def chest() -> Scenario:
    return SCENARIOS["chest"]


def wait_at_random(child: Child, chance: random.Random) -> float:
    wait_for_main(child)
    moment = chance.uniform(0, undisturbed("chest").seconds)
    child.ends_within(moment)
    return moment


def recovered(ended: Ended, fault: str, folder: Path, scenario: Scenario | None = None) -> Outcome:
    """Return the outcome of a disturbed command, and of the same command after the fault is gone."""
    scenario = scenario or chest()
    command = f"{fault}; toolkit {' '.join(scenario.argv)}"
    if problem := problem_of(ended):
        return Outcome(problem, f"status {ended.status}: {ended.stderr[-3000:]}", command)
    if ended.status != 0:
        fault_line = ended.last_line
        ended = run_command(scenario.argv, folder, LIMIT_S)
        if ended.status != 0 or ended.has_traceback:
            result: Result = "traceback" if ended.has_traceback else "rejected"
            return Outcome(result, f"after {fault_line}\nagain: {ended.stderr[-3000:]}", command)
    for result, detail in differences(scenario, undisturbed(scenario.name).digests, ended, folder):
        return Outcome(result, detail, command)
    return Outcome("identical", "", command)


def problem_of(ended: Ended) -> Result | None:
    """Return what is wrong with a command that may fail: it must print one error with its code, and no traceback."""
    if ended.limit:
        return "hang"
    if ended.has_traceback:
        return "traceback"
    if ended.status not in (0, 1, 2):
        return "exit_code"
    return None if ended.status == 0 or is_clear(ended.last_line) else "unclear"


PARTS = (
    *(Part(f"small-{at}", "resources", partial(disk_is_small, at)) for at in ("runs", "cache")),
    *(Part(f"fills-{at}", "resources", partial(disk_fills, at)) for at in ("runs", "cache")),
    *(Part(f"read-only-{at}", "resources", partial(read_only, at)) for at in ("runs", "cache")),
    Part("open-files", "resources", partial(limited, resource.RLIMIT_NOFILE, (16, 24, 32, 48), "open-files")),
    Part(
        "file-size",
        "resources",
        partial(limited, resource.RLIMIT_FSIZE, (20 * KIB, 100 * KIB, 300 * KIB, MIB, 3 * MIB), "file-size"),
    ),
    Part("images-vanish", "resources", images_fail),
    Part("in-use", "resources", in_use),
    Part("together", "resources", together),
)
"""Faults of disks, limits, images, and of other commands."""
