"""Pack what a GPU machine lacks into one zip, for a machine that can install nothing.

    python -m pip list --format=freeze > there.txt          # on the GPU machine
    python tests/gpu/pack_wheels.py wheels.zip --installed there.txt
    tests/gpu/run_all.sh 1 --wheels wheels.zip              # on the GPU machine again

The list follows from pyproject.toml: the toolkit's dependencies and theirs, as far as they are not installed there in a
version that is allowed. Versions are those of constraints.txt. The libraries that Unsloth rewrites are packed unless
they are there in exactly that version, because Unsloth silently rewrites less of another one.

Run it in an environment with the toolkit's dependencies, whose metadata say what each package needs. The wheels are for
x86-64 Linux. Left out: Unsloth's web studio, and bitsandbytes' libraries for other CUDA versions than ``--cuda``.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTES = 50
"""The largest zip that is accepted."""
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)), "manylinux2014_x86_64", "linux_x86_64")
INSTEAD = {"opencv-python": "opencv-python-headless"}
"""Package -> another one that provides the same modules."""
WITHOUT = ("xformers",)
"""Built for one version of torch. Unsloth uses torch's own attention if it is not there."""
EXACT = ("transformers", "tokenizers", "trl", "peft", "accelerate", "unsloth", "unsloth-zoo")
"""With transformers 5.17, Unsloth 2026.10.7 leaves Gemma 3 its own loss, which holds the logits of all tokens."""
DEAD_WEIGHT = ("studio/", "unsloth_cli/", "unsloth_studio/")


def missing(roots: Sequence[str], there: Mapping[str, str], tested: Mapping[str, str], python: str) -> list[str]:
    """Return the names of the packages to pack.

    Args:
        roots: requirements as in pyproject.toml.
        there: canonical name -> version of what the GPU machine has. An empty version counts as allowed.
        tested: canonical name -> version of constraints.txt.
        python: the GPU machine's, such as 3.12.
    """
    machine = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "extra": ""}
    machine |= {"platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}
    found: list[str] = []
    waiting = list(roots)
    while waiting:
        need = Requirement(waiting.pop())
        name = canonicalize_name(need.name)
        if name in found or name in WITHOUT or (need.marker is not None and not need.marker.evaluate(machine)):
            continue
        version = there.get(name, there.get(INSTEAD.get(name, "")))
        if name in EXACT:
            is_there = version is not None and version == tested.get(name)
        else:
            is_there = version is not None and (not version or need.specifier.contains(version, prereleases=True))
        if is_there:
            continue
        found.append(name)
        waiting += requires(name) or []
    return sorted(found)


def versions(lines: Iterator[str]) -> dict[str, str]:
    """Canonical name -> version, from lines such as ``name==1.0`` or ``name``; comments are left out."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, version = line.partition("#")[0].strip().partition("==")
        if name:
            found[canonicalize_name(name)] = version.partition("+")[0]
    return found


def download(name: str, version: str, python: str, folder: Path) -> None:
    """Fetch the wheel of one package."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    how = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    wanted = f"{name}=={version}" if version else name
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *how, "-d", str(folder), wanted], check=True)


def pack(folder: Path, out: Path, cuda: str) -> None:
    """Merge the wheels of a folder into one zip that can be unpacked and imported from."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as site:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if is_needed(name, cuda) and name not in site.NameToInfo:
                        site.writestr(name, archive.read(name))


def is_needed(name: str, cuda: str) -> bool:
    """Whether a wheel's file is of use on the GPU machine."""
    library = re.search(r"libbitsandbytes_(\w+)\.so", name)
    wanted = library is None or library[1] in (f"cuda{cuda}", "cpu")
    return wanted and not name.startswith(DEAD_WEIGHT) and not name.endswith("/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--installed", type=Path, required=True, help="what the GPU machine has: NAME or NAME==VERSION")
    parser.add_argument("--python", default="3.12", help="the GPU machine's; default: 3.12")
    parser.add_argument("--cuda", default="130", help="of its torch, without the dot; default: 130")
    parser.add_argument("--list", action="store_true", help="print what would be packed, and pack nothing")
    options = parser.parse_args()
    roots = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    with options.installed.open(encoding="utf-8") as lines, (ROOT / "constraints.txt").open(encoding="utf-8") as pinned:
        there, tested = versions(lines), versions(pinned)
    names = missing(roots, there, tested, options.python)
    if options.list:
        print("\n".join(f"{name}=={tested.get(name, '')}" for name in names))
        return 0
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            download(name, tested.get(name, ""), options.python, Path(place))
        pack(Path(place), options.out, options.cuda)
    size = options.out.stat().st_size / 2**20
    print(f"{options.out}: {len(names)} packages, {size:.1f} MiB (at most {MEBIBYTES})")
    return int(size > MEBIBYTES)


if __name__ == "__main__":
    sys.exit(main())
