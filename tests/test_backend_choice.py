"""The choice of a backend, unsupported settings, and the import of Unsloth before other libraries."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.problems import raises, warnings_in
from tests.helpers.training import small_recipe
from toolkit.errors import ModelError
from toolkit.models import backend as choice
from toolkit.models import backend_name, choose_backend, preload
from toolkit.models.unsloth.preload import check_supported, start, unsupported_reasons
from toolkit.models.vllm import Machine, vllm_unsupported_reasons
from toolkit.recipe import Model, Recipe, dump_recipe

ROOT = Path(__file__).parent.parent
BIG = Machine(24.0, (8, 9), vllm=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the choice find a CUDA device and Unsloth."""
    monkeypatch.setattr(choice, "_has_cuda", lambda: True)
    monkeypatch.setattr(choice, "_is_installed", lambda: True)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Model(name="a/b"), "unsloth"),
        (Model(name="a/b", precision="16bit"), "unsloth"),
        (Model(name="tiny"), "hf"),
        (Model(name="a/b", tuning="full"), "hf"),
        (Model(name="a/b", precision="32bit"), "hf"),
        (Model(name="a/b", backend="hf"), "hf"),
        (Model(name="tiny", backend="unsloth"), "unsloth"),
    ],
)
def test_auto_is_unsloth_for_lora_on_a_gpu(gpu: None, model: Model, expected: str) -> None:
    assert backend_name(model) == expected


@pytest.mark.parametrize("lacking", ["_has_cuda", "_is_installed"])
def test_without_a_gpu_or_the_package_auto_is_hf_and_unsloth_an_error(
    gpu: None, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    monkeypatch.setattr(choice, lacking, lambda: False)
    assert backend_name(Model(name="a/b")) == "hf"
    with raises(ModelError, "model.unsloth_unavailable") as caught:
        choose_backend(Model(name="a/b", backend="unsloth"))
    assert ("a CUDA device" if lacking == "_has_cuda" else "the package unsloth") in caught.problem.rule


def test_a_gguf_always_uses_llama_cpp(gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x-f16.gguf").touch()
    recipe = small_recipe(tmp_path, {"model": {"backend": "unsloth"}})
    for weights in (tmp_path, tmp_path / "x-f16.gguf"):
        assert choose_backend(recipe.model, weights).name == "gguf"
    preload(
        recipe, tmp_path, tmp_path / "x-f16.gguf"
    )  # without the GGUF this would be an error, because transformers is imported
    with raises(ModelError, "model.unsloth_imported_late"):
        preload(recipe, tmp_path, tmp_path / "merged")
    monkeypatch.setattr(choice, "_has_cuda", lambda: False)
    assert choose_backend(recipe.model, tmp_path).name == "gguf"


def test_several_processes_use_hf(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert backend_name(Model(name="a/b")) == "hf"
    assert backend_name(Model(name="a/b", backend="unsloth")) == "unsloth"


def test_auto_is_hf_if_transformers_was_imported_first(gpu: None) -> None:
    import transformers

    assert sys.modules["transformers"] is transformers
    assert choose_backend(Model(name="a/b")).name == "hf"


def test_unsloth_after_transformers_is_an_error(tmp_path: Path) -> None:
    import transformers

    assert sys.modules["transformers"] is transformers
    with raises(ModelError, "model.unsloth_imported_late") as caught:
        start(tmp_path)
    assert isinstance(caught.problem.value, list)
    assert "transformers" in caught.problem.value


RUN = """
import sys
from toolkit.cli import main
main(sys.argv[1:])
"""

SEEN = """
from toolkit.models import backend as choice
choice._has_cuda = lambda: True
choice._is_installed = lambda: True
"""
"""Python imports this module at the start of every process, the plan's process included."""

FAKE = """
import json, os, sys
found = {
    "imported before": sorted(name for name in ("transformers", "trl", "peft") if name in sys.modules),
    "compiled": os.environ["UNSLOTH_COMPILE_LOCATION"],
    "seen": os.environ.get("CUDA_VISIBLE_DEVICES"),
}
open(os.environ["FOUND"], "w").write(json.dumps(found))
raise ImportError("this is not the real one")
"""


def run_with_fake(tmp_path: Path, recipe: Recipe, *command: str, gpus: int = 1) -> tuple[int, str, dict[str, Any]]:
    """Run the command line with a fake GPU, and a fake unsloth that records the imported modules and raises."""
    (tmp_path / "fake").mkdir(exist_ok=True)
    (tmp_path / "fake" / "unsloth.py").write_text(FAKE, encoding="utf-8")
    (tmp_path / "fake" / "sitecustomize.py").write_text(SEEN, encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    program = f"import torch\ntorch.cuda.device_count = lambda: {gpus}\n{RUN}"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "fake"), *sys.path]),
        "FOUND": str(tmp_path / "found.json"),
        "HF_HUB_OFFLINE": "1",
    }
    for name in ("CUDA_VISIBLE_DEVICES", "UNSLOTH_COMPILE_LOCATION"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", program, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    found = tmp_path / "found.json"
    return done.returncode, done.stdout + done.stderr, json.loads(found.read_text()) if found.is_file() else {}


@pytest.mark.slow
def test_the_command_line_imports_unsloth_first(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"model": {"backend": "unsloth"}})
    code, output, found = run_with_fake(tmp_path, recipe, "run", str(tmp_path / "recipe.toml"))
    assert found == {
        "imported before": [],
        "compiled": str(recipe.run_folder.absolute() / "unsloth"),
        "seen": None,
    }
    assert code == 1
    assert "(got 'this is not the real one')" in " ".join(output.split())
    assert "[model.unsloth_not_importable]" in output
    assert str(recipe.run_folder.absolute() / "unsloth") in "".join(output.split("\n"))


@pytest.mark.slow
def test_one_of_two_gpus_is_used_with_a_warning(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"model": {"backend": "unsloth"}})
    _, output, found = run_with_fake(tmp_path, recipe, "run", str(tmp_path / "recipe.toml"), gpus=2)
    assert found["seen"] == "0"
    assert "[model.one_gpu_used]" in output
    assert "number 0 of 2" in " ".join(output.split())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "export", "predict"])
def test_later_commands_import_unsloth_first_too(tmp_path: Path, command: str) -> None:
    from toolkit.pipeline.prepare_data import prepare
    from toolkit.runfolder import StopRequest, no_progress, start_run

    recipe = small_recipe(tmp_path, {"model": {"backend": "unsloth"}})
    with start_run(recipe) as run, StopRequest():
        prepare(recipe, run, no_progress)
    image = next((run.path / "synthetic" / "images").glob("*.png"))
    more = ["--question", "Which?", "--image", str(image), "--option", "A. a", "--option", "B. b"]
    code, _, found = run_with_fake(tmp_path, recipe, command, str(run.path), *(more if command == "predict" else []))
    assert code == 1
    assert found["imported before"] == []
    assert found["compiled"] == str(run.path / "unsloth")


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"model": {"tuning": "full"}}, "full"),
        ({"model": {"precision": "32bit"}}, "bfloat16"),
        ({"sft": {"gradient_checkpointing": True}}, "gradient_checkpointing"),
        ({"grpo": {"loss": "dr_grpo"}}, "scale_rewards"),
        ({"grpo": {"temperature": 10.0}}, "temperature"),
        ({"export": {"allow_dequantized": True}}, "allow_dequantized"),
    ],
)
def test_settings_that_unsloth_would_change_are_rejected(tmp_path: Path, tables: dict[str, Any], reason: str) -> None:
    recipe = small_recipe(tmp_path, tables)
    assert len(unsupported_reasons(recipe)) == 1
    with raises(ModelError, "model.unsloth_cannot_train") as caught:
        check_supported(recipe)
    assert re.search(reason, caught.problem.rule)


def test_settings_that_unsloth_supports_are_accepted(tmp_path: Path) -> None:
    assert unsupported_reasons(small_recipe(tmp_path)) == []
    written = {"loss": "dr_grpo", "scale_rewards": "none"}
    assert unsupported_reasons(small_recipe(tmp_path, {"grpo": written})) == []
    assert unsupported_reasons(small_recipe(tmp_path, {"grpo": {"beta": 0.1}})) == []


def test_auto_is_hf_if_unsloth_would_change_the_recipe(
    gpu: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import transformers

    assert sys.modules["transformers"] is transformers  # importing Unsloth would now be an error
    recipe = small_recipe(tmp_path, {"model": {"name": "a/b"}, "grpo": {"loss": "dr_grpo"}})
    with caplog.at_level(logging.WARNING):
        preload(recipe, tmp_path)
    (warned,) = warnings_in(caplog)
    assert warned.code == "model.backend_hf_chosen"
    assert 'loss = "dr_grpo"' in warned.rule
    named = recipe.model_copy(update={"model": recipe.model.model_copy(update={"backend": "unsloth"})})
    with raises(ModelError, "model.unsloth_cannot_train"):
        preload(named, tmp_path)


def vllm_recipe(tmp_path: Path, tables: dict[str, Any] | None = None) -> Recipe:
    tables = {**(tables or {}), "grpo": {"rollouts": "vllm"}}
    return small_recipe(tmp_path, tables).model_copy(update={"sft": None})


def test_vllm_is_supported_if_all_requirements_hold(tmp_path: Path) -> None:
    assert vllm_unsupported_reasons(vllm_recipe(tmp_path), BIG, "gemma3", 1) == []
    nominal_24_gb = Machine(23.6, (8, 6), True)
    assert vllm_unsupported_reasons(vllm_recipe(tmp_path), nominal_24_gb, "qwen2_5_vl", 1) == []


def test_without_vllm_rollouts_nothing_is_checked(tmp_path: Path) -> None:
    assert vllm_unsupported_reasons(small_recipe(tmp_path), Machine(0.0, (0, 0), False), "no_such", 9) == []


@pytest.mark.parametrize(
    ("machine", "architecture", "images", "tables", "reason"),
    [
        (Machine(24.0, (8, 9), False), "gemma3", 1, {}, "not installed"),
        (Machine(16.0, (8, 9), True), "gemma3", 1, {}, "24 GB, but this one has 16.0"),
        (Machine(24.0, (6, 1), True), "gemma3", 1, {}, "capability"),
        (BIG, "qwen2_vl", 1, {}, "not for qwen2_vl"),
        (BIG, "gemma3", 2, {}, "one image per prompt, but a prompt has 2"),
        (BIG, "gemma3", 1, {"lora": {"vision": True}}, "vision tower"),
        (BIG, "gemma3", 1, {"model": {"name": "a/b", "revision": "v1"}}, "revision"),
        (BIG, "gemma3", 1, {"model": {"backend": "hf"}}, "backend"),
    ],
)
def test_vllm_is_rejected_with_the_reason(
    tmp_path: Path, machine: Machine, architecture: str, images: int, tables: dict[str, Any], reason: str
) -> None:
    found = vllm_unsupported_reasons(vllm_recipe(tmp_path, tables), machine, architecture, images)
    assert len(found) == 1
    assert reason in found[0]


def test_vllm_with_sft_is_rejected(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"grpo": {"rollouts": "vllm"}})
    assert ["SFT" in reason for reason in vllm_unsupported_reasons(recipe, BIG, "gemma3", 1)] == [True]


def test_grpo_rejects_vllm_before_it_loads_a_model(tmp_path: Path) -> None:
    from tests.helpers.training import context_of
    from toolkit.training.grpo import train_grpo

    with context_of(vllm_recipe(tmp_path)) as context, raises(ModelError, "training.vllm_unsupported"):
        train_grpo(context)
