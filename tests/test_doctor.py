"""The doctor, with real processes and libraries that fail like real ones."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.recipes import load_recipe
from toolkit.diagnostics import LIBRARIES, STATES, TINY, DoctorFinding, check_recipes
from toolkit.diagnostics.finding import merge_findings
from toolkit.diagnostics.hub import check_hub, token_location
from toolkit.diagnostics.libraries import (
    TORCHVISION_OF,
    allowed,
    check_extras,
    check_libraries,
    check_load,
    check_version,
    find_cause,
)
from toolkit.diagnostics.machine import (
    Driver,
    check_driver,
    check_folder,
    check_folders,
    check_gpus,
    hub_cache,
    notebook,
    query_driver,
)
from toolkit.diagnostics.probes import Outcome, run_probes
from toolkit.errors import CODE
from toolkit.runfolder import TESTED_VERSIONS
from toolkit.runfolder.cache import cache_folder

ROOT = Path(__file__).parent.parent
TOKEN = "hf_" + "secretsecretsecretsecret"
NMS = 'raise RuntimeError("operator torchvision::nms does not exist")'
LIBGL = 'raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")'
SEGFAULT = "import ctypes\nctypes.string_at(0)"
NO_GPU = 'raise NotImplementedError("Unsloth cannot find any torch accelerator? You need a GPU.")'
SLEEPS = "import time\ntime.sleep(60)"

TORCH = """
__version__ = "2.10.0+cu128"
class version:
    cuda, hip = {cuda!r}, None
class _Device:
    def __init__(self, index): pass
    def __enter__(self): pass
    def __exit__(self, *_): pass
class _One:
    def sum(self): return self
    def item(self):
        {kernel}
class _Properties:
    name, total_memory, (major, minor) = "Tesla T4", 15642329088, {capability}
def ones(*_, **__): return _One()
class cuda:
    device = _Device
    is_available = staticmethod(lambda: bool({count}))
    device_count = staticmethod(lambda: {count})
    get_device_properties = staticmethod(lambda index: _Properties)
    is_bf16_supported = staticmethod(lambda including_emulation: {capability} >= (8, 0))
    mem_get_info = staticmethod(lambda index: ({free}, 15642329088))
"""


def torch_with(count: int = 0, **more: Any) -> str:
    return TORCH.format(
        **{"count": count, "cuda": "12.8", "kernel": "return 2.0", "capability": (7, 5), "free": 15_000_000_000} | more
    )


STUBS: Mapping[str, str] = {
    "torch": torch_with(),
    "torchvision": "",
    "transformers": "AutoModelForImageTextToText = AutoProcessor = object",
    "trl": "SFTTrainer = GRPOTrainer = object",
    "peft": "get_peft_model = len",
    "accelerate": "Accelerator = object",
    "datasets": "Dataset = object",
    "bitsandbytes": "",
    "bitsandbytes.cextension": "class _Cpu:\n    compiled_with_cuda = False\nlib = _Cpu()",
    "unsloth": NO_GPU,
    "xformers": "from xformers import _cpp_lib",
    "xformers._cpp_lib": "_cpp_library_load_exception = None",
    "xformers.ops": "",
    "triton": "",
    "cv2": "imdecode = len",
}
"""A machine without a GPU on which every library can be imported."""


def write_site(folder: Path, **changed: str) -> Path:
    """Return a folder of packages that shadow the real ones."""
    for name, source in {**STUBS, **changed}.items():
        package = folder / name.replace(".", "/")
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(source + "\n")
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "HF_HUB_CACHE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return write_site(folder)


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "toolkit", "doctor", *arguments], cwd=work, capture_output=True, text=True, timeout=200
    )


def findings_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {one["name"]: one for one in json.loads(done.stdout)["findings"]}


def probe(name: str, limit: float = 30) -> Outcome:
    return run_probes([name], limit=limit)[name]


# Versions


def test_the_tested_versions_are_those_of_the_constraints_file() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {name: pinned[name] for name in TESTED_VERSIONS} == dict(TESTED_VERSIONS)


def test_tested_versions_are_allowed_and_torch_has_its_torchvision() -> None:
    ranges = allowed()
    assert ranges is not None
    assert {check_version(name, version, ranges).state for name, version in TESTED_VERSIONS.items()} == {"good"}
    pair = [".".join(TESTED_VERSIONS[name].split(".")[:2]) for name in ("torch", "torchvision")]
    assert TORCHVISION_OF[pair[0]] == pair[1]


def test_every_torch_that_is_allowed_has_a_torchvision() -> None:
    ranges = allowed()
    assert ranges is not None
    minors = {f"2.{minor}" for minor in range(30) if ranges["torch"].contains(f"2.{minor}.0")}
    assert minors == set(TORCHVISION_OF)


@pytest.mark.parametrize(
    ("package", "version", "state", "code"),
    [
        ("peft", "0.21.2", "good", "doctor.version_tested"),
        ("peft", "0.19.0", "warning", "doctor.version_not_tested"),  # >=0.18,<0.22
        ("peft", "0.22.0", "problem", "doctor.version_not_allowed"),
        ("torch", "2.10.0+cpu", "good", "doctor.version_tested"),  # The build is checked by its features.
        ("datasets", "4.4.2", "problem", "doctor.version_not_allowed"),  # !=4.4.*
        ("triton", "3.1.0", "warning", "doctor.version_not_tested"),  # There is no range.
        ("trl", "main", "warning", "doctor.version_unreadable"),
    ],
)
def test_a_version_is_tested_allowed_or_neither(package: str, version: str, state: str, code: str) -> None:
    found = check_version(package, version, allowed())
    assert (found.state, found.code) == (state, code)
    assert version in found.found
    assert state == "good" or TESTED_VERSIONS[package] in found.remedy or "$(toolkit constraints)" in found.remedy


# Imports in a process


@pytest.mark.parametrize(
    ("package", "name", "source", "code"),
    [
        ("torchvision", "torchvision", NMS, "doctor.torchvision_mismatch"),
        ("opencv-python", "cv2", LIBGL, "doctor.system_library_missing"),
        ("peft", "peft", "raise ImportError('x.so: undefined symbol: _ZN3c10')", "doctor.built_for_other_library"),
        ("trl", "trl", "import absent_package", "doctor.dependency_missing"),
        ("datasets", "datasets", "", "doctor.versions_do_not_fit"),  # The module has no Dataset.
        ("peft", "peft", "raise ImportError('never seen before')", "doctor.load_failed"),
    ],
)
def test_an_import_that_raises_is_a_problem_with_its_remedy(
    site: Path, package: str, name: str, source: str, code: str
) -> None:
    write_site(site, **{name: source})
    outcome = probe("opencv" if name == "cv2" else name)
    found = check_load(package, outcome, gpu=False)
    assert (outcome.end, found.state, found.code) == ("failed", "problem", code)
    assert found.remedy


def test_a_broken_torchvision_is_reported_with_matching_pairs(site: Path) -> None:
    write_site(site, torchvision=NMS)
    found = check_load("torchvision", probe("torchvision"), gpu=True)
    assert "operator torchvision::nms does not exist" in found.found
    assert str(site / "torchvision" / "__init__.py") in found.found
    assert "torchvision==0.25.*" in found.remedy
    assert all(version in found.remedy for version in ("2.10", "2.14", "0.25", "0.29"))


@pytest.mark.slow
def test_a_torchvision_for_another_torch_is_found_by_its_version(site: Path, tmp_path: Path) -> None:
    info = site / "torchvision-0.26.0.dist-info"
    info.mkdir()
    text = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.26.0\nRequires-Dist: torch==2.11.0\n"
    (info / "METADATA").write_text(text)
    found = findings_of(call(tmp_path, "--json"))["torchvision"]  # The stub can be imported.
    assert (found["state"], found["code"]) == ("problem", "doctor.torchvision_for_other_torch")
    assert all(version in found["found"] for version in ("0.26.0", "==2.11.0", "2.10.0"))
    assert "torchvision==0.25.*" in found["remedy"]


def test_versions_of_torch_and_torchvision_increase_together() -> None:
    steps = [tuple(int(pair.split(".")[1]) for pair in one) for one in TORCHVISION_OF.items()]
    assert [(torch, vision) for torch, vision in steps] == [(10 + n, 25 + n) for n in range(len(steps))]


def test_failures_caused_by_torchvision_name_it(site: Path) -> None:
    wrapped = (
        "try:\n    import torchvision\nexcept RuntimeError as error:\n    raise ImportError('transformers') from error"
    )
    write_site(site, torchvision=NMS, transformers=wrapped)
    found = check_load("transformers", probe("transformers"), gpu=False)
    assert "operator torchvision::nms does not exist" in found.found
    assert (found.name, found.code) == ("transformers", "doctor.torchvision_mismatch")
    assert "torchvision" in found.remedy
    assert "pip install" not in found.remedy  # The finding of torchvision has the command.


def test_opencv_without_libgl_is_reported_with_the_headless_package(site: Path) -> None:
    write_site(site, cv2=LIBGL)
    found = check_load("opencv-python", probe("opencv"), gpu=False)
    assert "libGL.so.1" in found.found
    assert "opencv-python-headless" in found.remedy
    assert "libgl1" in found.remedy


@pytest.mark.parametrize(
    ("source", "how"),
    [
        (SEGFAULT, "ended by SIGSEGV while being imported"),
        ("import os\nos.abort()", "ended by SIGABRT while being imported"),
        ("import os\nos._exit(3)", "exited with code 3 while being imported"),
        ("raise SystemExit(4)", "exited with code 4 while being imported"),
    ],
)
def test_a_library_that_ends_the_process_is_reported(site: Path, source: str, how: str) -> None:
    write_site(site, xformers=source)
    outcomes = run_probes(["xformers", "triton"])
    assert (outcomes["xformers"].end, outcomes["xformers"].error) == ("died", how)
    assert outcomes["triton"].end == "loaded"
    found = check_load("xformers", outcomes["xformers"], gpu=True)
    assert (found.state, found.code) == ("problem", "doctor.load_died")  # Unsloth would import it.
    assert "uninstall -y xformers" in found.remedy
    assert check_load("xformers", outcomes["xformers"], gpu=False).state == "warning"


def test_a_crash_is_reported_with_its_line(site: Path) -> None:
    write_site(site, triton="\n\nimport os\nos.abort()")
    assert probe("triton").where == f"{site / 'triton' / '__init__.py'}:4"


def test_a_hanging_library_is_stopped_with_its_children(site: Path, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    starts = (
        "import subprocess, pathlib\nchild = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
    )
    write_site(site, datasets=starts + SLEEPS)
    outcome = probe("datasets", limit=2)
    assert (outcome.end, outcome.error) == ("hung", "no result within 2 s")
    assert outcome.where == f"{site / 'datasets' / '__init__.py'}:5"
    assert not _is_alive(int(note.read_text()))
    found = check_load("datasets", outcome, gpu=False)
    assert (found.state, found.code) == ("problem", "doctor.load_hung")
    assert "--time-limit" in found.remedy


def _is_alive(pid: int) -> bool:
    for _ in range(100):  # A killed orphan waits for init.
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


def test_all_probes_together_have_a_time_limit(site: Path) -> None:
    write_site(site, peft=SLEEPS, trl=SLEEPS, triton=SLEEPS, datasets=SLEEPS)
    outcomes = run_probes(["peft", "trl", "triton", "datasets"], limit=30, total=2)
    assert [one.end for one in outcomes.values()].count("hung") == 2
    untried = [one for one in outcomes.values() if one.end == "untried"]
    assert {one.name for one in untried} == {"triton", "datasets"}
    found = check_load("triton", untried[0], gpu=True)
    assert (found.state, found.code) == ("warning", "doctor.load_not_tried")


def test_at_most_two_probes_run_at_once(site: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = (
        "import time\n"
        f"with open({str(log)!r}, 'a') as log: print(1, file=log)\n"
        "time.sleep(0.5)\n"
        f"with open({str(log)!r}, 'a') as log: print(-1, file=log)\n"
        "Accelerator = Dataset = SFTTrainer = GRPOTrainer = get_peft_model = object"
    )
    names = ("accelerate", "datasets", "trl", "peft", "triton")
    write_site(site, **dict.fromkeys(names, source))
    reported: list[tuple[int, int]] = []
    outcomes = run_probes(names, progress=lambda what, done, total, note="": reported.append((done, total)))
    assert {one.end for one in outcomes.values()} == {"loaded"}
    running = [sum(map(int, log.read_text().split()[: n + 1])) for n in range(2 * len(names))]
    assert max(running) == 2
    assert reported == [(done, 5) for done in range(1, 6)]


def test_a_probe_imports_nothing_from_the_working_directory(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "triton.py").write_text("raise ValueError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert probe("triton").end == "loaded"


def test_ctrl_c_leaves_no_process_behind(site: Path, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    write_site(site, torch=f"import os, pathlib\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\n{SLEEPS}")
    doctor = subprocess.Popen(
        [sys.executable, "-m", "toolkit", "doctor"],
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # A background pytest ignores SIGINT.
    )
    try:
        while not (note.exists() and note.read_text()):
            assert doctor.poll() is None
            time.sleep(0.05)
        doctor.send_signal(signal.SIGINT)
        assert doctor.wait(20) == 130
    finally:
        doctor.kill()
        doctor.wait()
    assert not _is_alive(int(note.read_text()))


# Facts that probes find


def test_unsloth_without_a_gpu_is_not_broken(site: Path) -> None:
    outcome = probe("unsloth")
    assert outcome.end == "failed"
    assert check_load("unsloth", outcome, gpu=False).code == "doctor.unsloth_without_gpu"
    assert check_load("unsloth", outcome, gpu=False).state == "good"
    assert check_load("unsloth", outcome, gpu=True).code == "doctor.unsloth_finds_no_gpu"
    assert check_load("unsloth", outcome, gpu=True).state == "problem"


def test_unsloth_that_fails_with_a_gpu_is_a_problem_with_a_workaround(site: Path) -> None:
    write_site(site, unsloth="raise ImportError('cannot import name x from transformers')")
    found = check_load("unsloth", probe("unsloth"), gpu=True)
    assert found.state == "problem"
    assert 'model.backend = "hf"' in found.remedy


def test_xformers_for_another_torch_is_a_warning_that_names_the_alternative(site: Path) -> None:
    broken = "_cpp_library_load_exception = RuntimeError('xFormers was built for PyTorch 2.10.0+cu128')"
    write_site(site, **{"xformers._cpp_lib": broken})
    found = check_load("xformers", probe("xformers"), gpu=True)
    assert (found.state, found.code) == ("warning", "doctor.xformers_extension_unusable")
    assert "2.10.0+cu128" in found.found
    assert "SDPA" in found.found


def test_bitsandbytes_without_its_cuda_library_matters_only_with_a_gpu(site: Path) -> None:
    source = (
        "class _Stub:\n    compiled_with_cuda = False\nlib = _Stub()\n"
        "lib.error_msg = 'libcudart.so.12: cannot open shared object file'"
    )
    write_site(site, **{"bitsandbytes.cextension": source})
    outcome = probe("bitsandbytes")
    found = check_load("bitsandbytes", outcome, gpu=True)
    assert (found.state, found.code) == ("problem", "doctor.bitsandbytes_without_cuda")
    assert "libcudart.so.12" in found.found
    assert check_load("bitsandbytes", outcome, gpu=False).code == "doctor.bitsandbytes_on_cpu"
    assert check_load("bitsandbytes", outcome, gpu=False).state == "good"


def test_a_missing_library_is_reported_once(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.diagnostics.libraries.installed", lambda package: None)
    missing = {name: Outcome(name, "missing", error=f"No module named {name}") for name in [*LIBRARIES, "opencv"]}
    states = {one.name: one.state for one in check_libraries(missing, gpu=False)}
    assert states["torch"] == states["opencv-python"] == "problem"
    assert states["unsloth"] == states["bitsandbytes"] == "warning"
    assert {one.code for one in check_libraries(missing, gpu=False)} == {"doctor.not_installed"}


def test_an_unknown_error_has_a_remedy_too() -> None:
    assert "peft" in find_cause("RuntimeError: never seen before", "peft").remedy


def test_merged_findings_have_the_worse_state() -> None:
    good, bad = DoctorFinding("doctor.a", "a", "good", "1"), DoctorFinding("doctor.b", "b", "warning", "2", "do")
    assert merge_findings(good, bad) == DoctorFinding("doctor.b", "a", "warning", "1; 2", "do")
    assert merge_findings(bad, good) == DoctorFinding("doctor.b", "b", "warning", "2; 1", "do")


def test_a_finding_without_a_remedy_must_be_good() -> None:
    with pytest.raises(ValueError):
        DoctorFinding("doctor.a", "a", "warning", "x")


# GPUs


def gpus_of(driver: Driver | None = None) -> dict[str, DoctorFinding]:
    return {one.name: one for one in check_gpus(probe("torch"), driver or Driver("570.1", ("Tesla T4",)))}


def test_two_t4_of_kaggle(site: Path) -> None:
    write_site(site, torch=torch_with(2))
    found = gpus_of()
    assert list(found) == ["GPU 0", "GPU 1", "several GPUs"]
    assert "Tesla T4, compute capability 7.5, 14.6 GiB" in found["GPU 0"].found
    assert (found["GPU 0"].state, found["GPU 0"].code) == ("warning", "doctor.gpu_no_bfloat16")
    assert found["several GPUs"].code == "doctor.gpus_several"
    assert found["several GPUs"].found.startswith("2 ")


def test_a_gpu_with_bfloat16_and_free_memory_is_good(site: Path) -> None:
    write_site(site, torch=torch_with(1, capability=(8, 9)))
    assert gpus_of()["GPU 0"].state == "good"


def test_a_gpu_that_another_process_uses_is_a_warning(site: Path) -> None:
    write_site(site, torch=torch_with(1, capability=(8, 9), free=4_000_000_000))
    found = gpus_of()["GPU 0"]
    assert (found.state, found.code) == ("warning", "doctor.gpu_memory_in_use")
    assert ("3.7 GiB" in found.found, "nvidia-smi" in found.remedy) == (True, True)


def test_a_gpu_for_which_torch_has_no_kernels_is_a_problem(site: Path) -> None:
    kernel = "raise RuntimeError('CUDA error: no kernel image is available for execution on the device')"
    write_site(site, torch=torch_with(1, capability=(6, 0), kernel=kernel))
    found = gpus_of()["GPU 0"]
    assert (found.state, found.code) == ("problem", "doctor.gpu_computes_nothing")
    assert "no kernel image" in found.found


def test_a_gpu_that_torch_cannot_use(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("470.1", ("Tesla T4",))
    old = "import warnings\n" + torch_with().replace(
        "staticmethod(lambda: bool(0))",
        "staticmethod(lambda: warnings.warn('The NVIDIA driver on your system is too old (found version 11040).'))",
    )
    write_site(site, torch=old)
    found = gpus_of(driver)["GPU"]
    assert (found.state, found.code) == ("problem", "doctor.gpu_unusable")
    assert ("too old" in found.found, "12.8" in found.remedy) == (True, True)
    write_site(site, torch=torch_with(cuda=None))
    assert gpus_of(driver)["GPU"].code == "doctor.torch_without_cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = gpus_of(driver)["GPU"]
    assert (found.state, found.code) == ("warning", "doctor.gpu_hidden")


def test_no_gpu_is_a_warning(site: Path) -> None:
    found = gpus_of(Driver(None))["GPU"]
    assert (found.state, found.code) == ("warning", "doctor.gpu_none")


@pytest.mark.parametrize(
    ("script", "version", "problem", "state", "code"),
    [
        ("echo '570.86.15, Tesla T4'; echo '570.86.15, Tesla T4'", "570.86.15", "", "good", "doctor.driver"),
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9",
            None,
            "could not communicate",
            "warning",
            "doctor.driver_failed",
        ),
    ],
)
def test_the_driver_is_queried(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    version: str | None,
    problem: str,
    state: str,
    code: str,
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("toolkit.diagnostics.machine._kernel_module", lambda: None)
    driver = query_driver()
    assert (driver.version, problem in driver.problem) == (version, True)
    assert len(driver.gpus) == (2 if version else 0)
    assert (check_driver(driver).state, check_driver(driver).code) == (state, code)


# The Hub


def test_a_token_is_found_where_huggingface_hub_looks(tmp_path: Path) -> None:
    empty = {"HF_HOME": str(tmp_path)}
    assert token_location(empty) is None
    (tmp_path / "token").write_text("\n")
    assert token_location(empty) is None
    (tmp_path / "token").write_text(TOKEN)
    assert token_location(empty) == str(tmp_path / "token")
    assert token_location({**empty, "HF_TOKEN": TOKEN}) == "HF_TOKEN"


@pytest.mark.parametrize(
    "environment",
    [{}, {"HF_HOME": "/x/home"}, {"HF_HUB_CACHE": "/x/hub"}, {"XDG_CACHE_HOME": "/x/cache"}],
    ids=lambda environment: next(iter(environment), "none"),
)
def test_the_hub_cache_is_that_of_huggingface_hub(environment: dict[str, str]) -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_", "HUGGINGFACE"))}
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    assert str(hub_cache(environment)) == done.stdout.strip()


class _Hub(BaseHTTPRequestHandler):
    """Respond like the Hub for a model that exists, is gated, or does not exist."""

    seen: list[str | None] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        answers = {"/some/open": (200, None), "/some/gated": (403, "GatedRepo")}
        code, why = answers.get(self.path.partition("/resolve")[0], (404, "RepoNotFound"))
        self.send_response(code)
        for name, value in (("X-Error-Code", why), ("X-Repo-Commit", "0" * 40), ("ETag", '"1"')):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", "2" if code == 200 else "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    _Hub.seen.clear()
    yield _Hub.seen
    server.shutdown()
    server.server_close()


def check_model(model: str) -> DoctorFinding:
    outcome = run_probes(["hub"], model=model)["hub"]
    loaded = load_recipe(ROOT / "recipes" / "medgemma_grpo.toml", [f"model.name={model}"])
    return {one.name: one for one in check_hub(loaded, outcome, os.environ)}["model"]


@pytest.mark.parametrize(
    ("model", "state", "code", "remedy"),
    [
        ("some/open", "good", "doctor.model_reachable", ""),
        ("some/gated", "problem", "doctor.model_gated", "https://huggingface.co/some/gated"),
        ("some/absent", "problem", "doctor.model_not_found", "model.name"),
    ],
)
def test_the_access_to_a_model_is_checked_with_the_token(
    hub: list[str | None], model: str, state: str, code: str, remedy: str
) -> None:
    found = check_model(model)
    assert (found.state, found.code, remedy in found.remedy) == (state, code, True)
    assert model in found.found
    assert hub == [f"Bearer {TOKEN}"]
    assert TOKEN not in found.found + found.remedy


def test_an_unreachable_hub_is_reported(hub: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = check_model("some/open")
    assert (found.state, found.code) == ("problem", "doctor.hub_unreachable")


def test_offline_no_request_is_made(hub: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = check_model("some/open")
    assert (found.state, found.code, hub) == ("problem", "doctor.model_not_cached", [])


def test_a_model_is_cached_if_all_its_weights_are(hub: list[str | None], tmp_path: Path) -> None:
    cache = tmp_path / "hf" / "hub" / "models--some--open"
    files = cache / "snapshots" / ("0" * 40)
    files.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    (files / "config.json").write_text("{}")
    (files / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    (files / "1.safetensors").write_text("")
    assert check_model("some/open").code == "doctor.model_reachable"
    (files / "2.safetensors").write_text("")
    assert check_model("some/open").code == "doctor.model_cached"


# Folders, notebooks and recipes


def test_a_read_only_cache_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = cache_folder({"TOOLKIT_CACHE": str(tmp_path / "file" / "cache")})
    found = check_folder("toolkit cache", cache, 1, "rows", "another folder in TOOLKIT_CACHE")
    assert (found.state, found.code) == ("problem", "doctor.folder_not_writable")
    assert "TOOLKIT_CACHE" in found.remedy


def test_a_missing_home_directory_is_a_finding_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user of a container has no entry, or a variable names an unknown user."""

    def nowhere(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(Path, "expanduser", nowhere)
    found = {one.name: one for one in check_folders({"HF_HOME": "~nobody-of-that-name/hub"})}
    assert (found["toolkit cache"].state, found["toolkit cache"].code) == ("problem", "doctor.cache_unknown")
    assert "~nobody-of-that-name/hub" in found["Hub cache"].found
    assert {one.name for one in check_extras({name: Outcome(name, "missing") for name in ("vllm", "torch")}, {})} == {
        "vLLM",
        "llama.cpp",
    }


def test_a_missing_folder_is_checked_by_its_parent_and_not_created(tmp_path: Path) -> None:
    found = check_folder("x", tmp_path / "a" / "b", 0, "rows", "another")
    assert found.state == "good"
    assert list(tmp_path.iterdir()) == []


def test_low_disk_space_is_a_warning_and_a_full_disk_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state, code in ((30, "good", "folder"), (5, "warning", "disk_low"), (0.5, "problem", "disk_full")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: type("Usage", (), {"free": free * 2**30}))
        found = check_folder("x", tmp_path, 20, "rows", "another")
        assert (found.state, found.code) == (state, f"doctor.{code}")


@pytest.mark.parametrize(
    ("variable", "place"), [("KAGGLE_KERNEL_RUN_TYPE", "Kaggle"), ("COLAB_RELEASE_TAG", "Colab"), ("OTHER", None)]
)
def test_notebooks_are_recognized_by_their_variables(
    monkeypatch: pytest.MonkeyPatch, variable: str, place: str | None
) -> None:
    for name in list(os.environ):
        if name.startswith(("KAGGLE_", "COLAB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv(variable, "Interactive")
    assert notebook() == place


def model_of(table: dict[str, Any]) -> str:
    name: str = table["model"]["name"] if "model" in table else table["imagegen"]["generator"]["model"]
    return name


def test_the_recipes_that_need_no_gpu_are_those_of_the_tiny_model() -> None:
    tables = {path.name: tomllib.loads(path.read_text()) for path in (ROOT / "recipes").glob("*.toml")}
    tiny = {f"recipes/{name}" for name, table in tables.items() if model_of(table) == "tiny"}
    assert tiny == set(TINY)


def test_a_recipe_in_four_bits_needs_a_gpu() -> None:
    loaded = load_recipe(ROOT / "recipes" / "medgemma_grpo.toml")
    assert check_recipes(loaded, [], gpu=False).state == "problem"
    assert check_recipes(loaded, [], gpu=False).code == "doctor.recipe_needs_gpu"
    assert check_recipes(loaded, [], gpu=True).state == "good"
    assert check_recipes(load_recipe(ROOT / TINY[0]), [], gpu=False).state == "good"
    assert check_recipes(None, [], gpu=False).state == "good"


def test_recipes_are_blocked_until_problems_are_solved() -> None:
    gone = DoctorFinding("doctor.not_installed", "torch", "problem", "gone", "install it")
    found = check_recipes(None, [gone], gpu=True)
    assert (found.state, found.code, "torch" in found.found) == ("problem", "doctor.problems_first", True)
    recipe = load_recipe(ROOT / "recipes" / "medgemma_grpo.toml")
    named = check_recipes(recipe, [gone], gpu=False)
    assert named.code == "doctor.recipe_needs_gpu"
    assert found.found in named.found
    assert check_recipes(recipe, [gone], gpu=True).code == "doctor.problems_first"


# The command


@pytest.mark.slow
def test_a_healthy_machine_without_a_gpu_exits_with_0(site: Path, tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^warning  GPU +none \[doctor.gpu_none\]$", done.stdout, re.MULTILINE)
    assert re.search(r"^good +recipes .*recipes/quickstart.toml", done.stdout, re.MULTILINE)
    assert "300 s" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.slow
def test_the_json_is_one_object_as_documented(site: Path, tmp_path: Path) -> None:
    done = call(tmp_path, "--json")
    found = json.loads(done.stdout)
    assert list(found) == ["schema_version", "toolkit", "seconds", "problems", "warnings", "findings"]
    assert all(list(one) == ["code", "name", "state", "found", "remedy"] for one in found["findings"])
    assert all(CODE.fullmatch(one["code"]) and one["code"].startswith("doctor.") for one in found["findings"])
    assert all(isinstance(value, str) for one in found["findings"] for value in one.values())
    assert {one["state"] for one in found["findings"]} <= set(STATES)
    assert all(one["state"] == "good" or one["remedy"] for one in found["findings"])
    for state, key in (("problem", "problems"), ("warning", "warnings")):
        assert found[key] == sum(one["state"] == state for one in found["findings"])
    names = [one["name"] for one in found["findings"]]
    assert len(names) == len(set(names))
    expected = {
        "Python",
        "GPU",
        "driver",
        *LIBRARIES,
        "vLLM",
        "llama.cpp",
        "Hub token",
        "model",
        "toolkit cache",
        "recipes",
    }
    assert expected <= set(names)


@pytest.mark.slow
def test_many_broken_libraries_are_all_reported_and_exit_with_1(site: Path, tmp_path: Path) -> None:
    write_site(site, torchvision=NMS, cv2=LIBGL, xformers=SEGFAULT, datasets=SLEEPS)
    done = call(tmp_path, "--json", "--time-limit", "4")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    found = findings_of(done)
    bad = {
        name: one["state"]
        for name, one in found.items()
        if name in ("torchvision", "opencv-python", "xformers", "datasets")
    }
    assert bad == {"torchvision": "problem", "opencv-python": "problem", "xformers": "warning", "datasets": "problem"}
    assert {name: found[name]["code"] for name in bad} == {
        "torchvision": "doctor.torchvision_mismatch",
        "opencv-python": "doctor.system_library_missing",
        "xformers": "doctor.load_died",
        "datasets": "doctor.load_hung",
    }
    assert "SIGSEGV" in found["xformers"]["found"]
    assert found["recipes"]["state"] == "problem"
    assert found["torch"]["state"] == "good"


@pytest.mark.slow
def test_a_version_that_is_not_allowed_is_found(site: Path, tmp_path: Path) -> None:
    info = site / "peft-0.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.99.0\n")
    done = call(tmp_path, "--json")
    peft = findings_of(done)["peft"]
    assert (done.returncode, peft["state"], peft["code"]) == (1, "problem", "doctor.version_not_allowed")
    assert all(version in peft["found"] for version in ("0.99.0", "<0.22,>=0.19", "0.21.2"))
    assert "pip install 'peft==0.21.2'" in peft["remedy"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_a_token_is_never_printed(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    write_site(
        site, cv2=f"raise ImportError('with {TOKEN}')", trl="import os\nraise ImportError(str(dict(os.environ)))"
    )
    done = call(tmp_path, *options)
    assert done.returncode == 1
    assert re.search(r"^good +Hub token .*HF_TOKEN$", done.stdout, re.MULTILINE) or '"doctor.token"' in done.stdout
    assert "with [hidden]" in done.stdout
    assert "secretsecret" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_recipe_is_left_out_if_a_library_that_reads_data_is_broken(site: Path, tmp_path: Path) -> None:
    done = call(tmp_path, str(ROOT / "recipes" / "quickstart.toml"), "--json")  # the site's cv2 has no functions
    assert "[doctor.recipe_not_checked]" in done.stderr
    assert findings_of(done)["Python"]["state"] == "good"  # the rest of the machine is examined


def test_an_invalid_recipe_exits_with_2(site: Path, tmp_path: Path) -> None:
    shutil.rmtree(site / "cv2")
    (tmp_path / "wrong.toml").write_text("[rum]\n")
    done = call(tmp_path, str(tmp_path / "wrong.toml"))
    assert (done.returncode, "rum" in done.stderr) == (2, True)


@pytest.mark.slow
def test_a_recipe_is_checked_with_its_own_model(site: Path, tmp_path: Path) -> None:
    shutil.rmtree(site / "cv2")
    done = call(tmp_path, str(ROOT / "recipes" / "quickstart.toml"), "--json")
    model = findings_of(done)["model"]
    assert (done.returncode, model["code"], model["found"].split(",")[0]) == (0, "doctor.model_local", "tiny")


def test_a_models_folder_without_weights_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    recipe = load_recipe(ROOT / "recipes" / "quickstart.toml", [f"model.name={tmp_path}"])
    model = next(one for one in check_hub(recipe, Outcome("hub", "loaded"), {}) if one.name == "model")
    assert (model.state, model.code) == ("problem", "doctor.model_weights_missing")
    (tmp_path / "model-00001-of-00001.safetensors").touch()
    model = next(one for one in check_hub(recipe, Outcome("hub", "loaded"), {}) if one.name == "model")
    assert model.state == "good"


@pytest.mark.slow
def test_a_terminal_without_utf8_is_reported_and_usable(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    write_site(site, cv2="raise ImportError('Zeichen: \u00e4')")
    done = call(tmp_path)
    assert "PYTHONUTF8=1" in done.stdout
    assert "Zeichen: \\xe4" in done.stdout


@pytest.mark.slow
def test_the_doctor_itself_loads_no_heavy_library(site: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from toolkit.diagnostics import examine; found = examine();"
        f"print(len(found.findings) > 20, sorted(set({[*STUBS, 'numpy', 'huggingface_hub']!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True []\n", done.stderr


@pytest.mark.slow
def test_this_machine_with_its_real_libraries(tmp_path: Path) -> None:
    done = call(tmp_path, "--json")
    found = findings_of(done)
    loads = [name for name in LIBRARIES if name not in ("unsloth", "unsloth_zoo")]
    assert [name for name in loads if "loads in" not in found[name]["found"]] == []
    if found["GPU"]["code"] == "doctor.gpu_none":
        assert found["unsloth"]["state"] == "good"
        assert "GPU" in found["unsloth"]["found"]
    assert list((tmp_path / "work").iterdir()) == []
    assert done.returncode == (1 if json.loads(done.stdout)["problems"] else 0)


def test_an_outcome_has_its_root_cause_in_one_line() -> None:
    one = Outcome("x", "failed", error="ImportError: above\nRuntimeError: root")
    assert one.cause == "RuntimeError: root"
    assert len(replace(one, error="y" * 999).cause) == 200
