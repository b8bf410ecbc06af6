"""The measurements on a GPU as far as a CPU can try them: their command lines, deadlines and files."""

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.benchmarks import bench_gpu
from tests.gpu import pack_wheels, session
from tests.helpers.grpo_steps import difference
from tests.helpers.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
ITEMS = [item for items in session.PARTS.values() for item in items]
MAX_FILES = 8
"""Some machines give back no more files than that."""


def options(tmp_path: Path, *words: str) -> argparse.Namespace:
    return session.parse([*words, "--out", str(tmp_path / "out"), "--models", str(tmp_path / "models")])


def python(code: str) -> tuple[str, ...]:
    return ("-c", code)


@pytest.mark.parametrize("part", session.PARTS)
def test_a_session_stays_within_its_seconds(part: str) -> None:
    assert sum(item.seconds for item in session.PARTS[part]) <= session.LIMIT - session.SPARE
    assert len({item.name for item in session.PARTS[part]}) == len(session.PARTS[part])


def test_both_sessions_leave_few_files() -> None:
    assert len({item.name for item in ITEMS if item.measures} | {"session.json", "session.log"}) <= MAX_FILES


@pytest.mark.parametrize("item", [item for item in ITEMS if item.measures], ids=lambda item: item.name)
def test_a_measurement_has_a_command_line_that_its_program_takes(tmp_path: Path, item: session.Item) -> None:
    words = session.command(item, item.seconds, tmp_path, options(tmp_path, item.name))
    assert words[1] == session.BENCH
    found = bench_gpu.parse(words[2:])
    recipe = load_recipe(ROOT / found.recipe)
    assert [stage for stage in found.stages if stage != "evaluate" and getattr(recipe, stage) is None] == []
    assert found.out.parent == tmp_path / "out"
    assert 0 < found.seconds < item.seconds
    assert found.steps >= 2, "the first step of a stage is not measured"


def test_the_pipeline_runs_a_recipe_through_unsloth(tmp_path: Path) -> None:
    (item,) = (item for item in ITEMS if item.name == "pipeline")
    words = session.command(item, item.seconds, tmp_path, options(tmp_path, item.name))
    assert words[1:4] == ["-m", "toolkit", "run"]
    settings = [words[number + 1] for number, word in enumerate(words) if word == "--set"]
    recipe = load_recipe(ROOT / words[4], settings)
    assert recipe.model.backend == "unsloth"
    assert recipe.run_folder.is_relative_to(tmp_path)
    assert recipe.sft is not None
    assert recipe.grpo is not None
    assert recipe.evaluate is not None
    assert recipe.export is not None


def test_every_item_can_be_named_alone_and_an_unknown_one_is_rejected() -> None:
    assert [item.name for item in session.chosen(["hf-16gb"])] == ["hf-16gb"]
    assert session.chosen(["1", "2"]) == ITEMS
    with pytest.raises(SystemExit, match="3"):
        session.chosen(["3"])


def test_a_failing_or_slow_item_stops_no_other_and_each_state_is_written_at_once(tmp_path: Path) -> None:
    record = tmp_path / "out/session.json"
    items = [
        session.Item("broken", 20, python("print('why'); raise SystemExit(3)")),
        session.Item("slow", 1, python("import time; time.sleep(60)")),
        session.Item("last", 20, python(f"print(open({str(record)!r}).read())")),
    ]
    chosen = options(tmp_path, "1")
    begun = time.monotonic()
    found = session.run([items[0]], chosen)
    assert found["broken"] | {"seconds": 0} == {"state": "failed", "seconds": 0, "exit": 3, "tail": ["why"]}
    found = session.run(items[1:], chosen)
    assert time.monotonic() - begun < 60
    assert [found[name]["state"] for name in ("slow", "last")] == ["out of time", "done"]
    seen = json.loads((tmp_path / "out/session.log").read_text().rpartition("read())\n")[2])
    assert {name: one["state"] for name, one in seen.items()} == {
        "broken": "failed",
        "slow": "out of time",
        "last": "running",
    }
    assert json.loads(record.read_text())["last"]["state"] == "done"


def test_time_that_an_item_leaves_goes_to_the_next(tmp_path: Path) -> None:
    items = [session.Item("quick", 20, python("pass")), session.Item("longer", 1, python("import time; time.sleep(2)"))]
    found = session.run(items, options(tmp_path, "1"))
    assert found["longer"]["state"] == "done"


def test_a_session_that_is_stopped_takes_its_item_along(tmp_path: Path) -> None:
    """The item would hold the GPU."""
    mark = tmp_path / "alive"
    code = f"import os, pathlib, time; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(60)"
    start = f"import session; session.PARTS = {{'1': (session.Item('long', 60, ('-c', {code!r})),)}}; session.main()"
    words = [sys.executable, "-c", start, "1", "--out", str(tmp_path / "out"), "--models", str(tmp_path / "models")]
    running = subprocess.Popen(words, cwd=ROOT / "tests/gpu")
    while not mark.is_file() or not mark.read_text():
        assert running.poll() is None
        time.sleep(0.05)
    running.terminate()
    assert running.wait(20) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert json.loads((tmp_path / "out/session.json").read_text())["long"]["state"] == "running"


def test_items_import_from_the_unpacked_wheels(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wheels.zip", "w") as archive:
        archive.writestr("only_there.py", "WHERE = 'in the zip'\n")
    item = session.Item("import", 20, python("import only_there, toolkit; print(only_there.WHERE, toolkit.__file__)"))
    found = session.run([item], options(tmp_path, "1", "--wheels", str(tmp_path / "wheels.zip")))
    assert found["import"]["tail"] == [f"in the zip {ROOT / 'toolkit/__init__.py'}"]


@pytest.mark.slow
def test_a_stage_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(context: object) -> None:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setitem(bench_gpu.RUN, ("grpo", False), fail)
    out = tmp_path / "out.json"
    words = ["--smoke", "--stages", "grpo", "evaluate", "--out", str(out), "--model", str(tmp_path / "model")]
    bench_gpu.measure(bench_gpu.parse(words))
    stages = json.loads(out.read_text())["stages"]
    assert stages["grpo"]["state"] == "failed"
    assert "injected" in stages["grpo"]["error"]
    assert stages["evaluate"]["state"] == "done"
    assert stages["evaluate"]["steps"] == 2
    assert stages["evaluate"]["planned"]["reserved_gib"] >= stages["evaluate"]["planned"]["allocated_gib"] > 0


@pytest.mark.slow
def test_grpo_without_a_saving_records_its_work_completions_and_gradients(tmp_path: Path) -> None:
    found = {}
    for name, without in {"all": [], "none": ["vision_cache", "shared_prefill", "packing", "skipping"]}.items():
        places = ["--out", tmp_path / f"{name}.json", "--gradients", tmp_path / name, "--model", tmp_path / "model"]
        words = [
            "--smoke",
            "--stages",
            "grpo",
            "--steps",
            "2",
            "--no-dropout",
            *map(str, places),
            "--without",
            *without,
        ]
        bench_gpu.measure(bench_gpu.parse(words))
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())["stages"]["grpo"]
    whole, part = found["none"], found["all"]
    assert whole["state"] == part["state"] == "done"
    assert part["record"]["gpu_memory"]["micro_batch"] == 4
    assert part["completions"] == whole["completions"]
    assert 4 * part["work"]["read_tokens"] == whole["work"]["read_tokens"]
    for name in ("trained_tokens", "images", "gflop_rollout", "gflop_update"):
        assert part["work"][name] < whole["work"][name]
    gradients = [load_file(tmp_path / name) for name in found]
    assert max(difference(*gradients)) < 1e-5


def test_a_stage_stops_after_two_steps_when_its_time_is_over(tmp_path: Path) -> None:
    measurement = bench_gpu.Measurement(tmp_path / "out.json", {})
    steps = bench_gpu.Steps("sft", measurement, until=0.0)
    steps("sft", 1, 4)
    assert json.loads((tmp_path / "out.json").read_text())["stages"]["sft"]["steps"] == 1
    steps("sft", 1, 4)  # a summary, not a step
    with pytest.raises(bench_gpu.Enough):
        steps("sft", 2, 4)
    assert len(measurement.stages["sft"]["step_seconds"]) == 1


def test_the_shell_script_lists_every_item() -> None:
    done = subprocess.run([ROOT / "tests/gpu/run_all.sh", "--list"], capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines()] == [item.name for item in ITEMS]


def test_packed_are_the_dependencies_that_a_machine_lacks() -> None:
    roots = ["trl>=1.9", "numpy>=1.26", "pillow>=10", "opencv-python>=4.9", "tomli-w; sys_platform == 'win32'"]
    there = {"numpy": "1.0", "pillow": "10.5", "opencv-python-headless": "", "torch": ""}
    found = pack_wheels.missing(roots, there, {}, "3.12")
    assert {"trl", "numpy", "datasets", "dill", "transformers"} <= set(found)
    assert not {"pillow", "opencv-python", "tomli-w", "torch"} & set(found)


def test_a_library_that_unsloth_rewrites_is_packed_unless_it_is_there_in_the_tested_version() -> None:
    tested = {"transformers": "5.15.0", "numpy": "2.4.6"}
    needs = ["transformers>=5.2", "numpy>=1.26"]

    def packed(version: str) -> bool:
        return "transformers" in pack_wheels.missing(needs, {"numpy": "2.5.2", "transformers": version}, tested, "3.12")

    assert [packed(version) for version in ("5.15.0", "5.17.0", "")] == [False, True, True]


def test_a_packed_wheel_keeps_its_metadata_and_loses_other_cudas() -> None:
    needed = [
        "bitsandbytes/libbitsandbytes_cuda130.so",
        "bitsandbytes/libbitsandbytes_cpu.so",
        "trl-1.dist-info/METADATA",
    ]
    left_out = ["bitsandbytes/libbitsandbytes_cuda128.so", "studio/a.js", "trl/"]
    assert [name for name in [*needed, *left_out] if pack_wheels.is_needed(name, "130")] == needed
