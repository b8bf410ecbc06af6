"""The plan of a recipe: its facts, findings and imports, and the plan at the start of a run."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import AutoProcessor

from tests.helpers.footprint import shape_fields
from tests.helpers.problems import raises, warnings_in
from tests.helpers.real_processors import unpack_processors
from tests.helpers.recipes import load_recipe, make_recipe
from tests.helpers.training import recipe_on_files, small_recipe
from toolkit.cli import main
from toolkit.cli.plan import lines, short_lines
from toolkit.errors import NOTHING, DataError, ModelError, PlanError
from toolkit.models.chat_template import image_tokens
from toolkit.pipeline import run_recipe
from toolkit.pipeline.gpu_peaks import describe_peaks, gpu_peaks
from toolkit.pipeline.plan import plan_language_model as make
from toolkit.pipeline.plan import plan_run
from toolkit.pipeline.stages import STAGES
from toolkit.planning import Finding, Gpu, Plan, described_gpu, make_plan, named_gpu
from toolkit.planning.architecture import Architecture, build_architecture
from toolkit.planning.disk import Disk, check_disk
from toolkit.planning.gpu import COMMON, GIB
from toolkit.planning.model_files import (
    KNOWN,
    UNQUANTISED_MODULES,
    BaseWeights,
    Repository,
    find_base,
    find_configuration,
)
from toolkit.planning.stages import plan_work, planned_backend
from toolkit.planning.tokens import image_token_count
from toolkit.recipe import Model, Recipe, SyntheticData
from toolkit.runfolder import TESTED_VERSIONS, append_line, find_run, read_json, untested_versions
from toolkit.tasks.mcq.synthetic import write_chest

ROOT = Path(__file__).resolve().parent.parent
T4 = Gpu("Tesla T4", int(14.7 * GIB), bf16=False)
A5000 = Gpu("RTX A5000", int(23.6 * GIB), bf16=True)
Tables = Mapping[str, Mapping[str, Any]]
MEDGEMMA: Tables = {"model": {"name": "google/medgemma-4b-it", "precision": "4bit", "max_tokens": 2048}}


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return synthetic X-rays as files: 24 training rows, 8 test rows."""
    folder = tmp_path_factory.mktemp("xrays")
    write_chest(folder, SyntheticData(kind="chest", train=24, test=8, size=128), 3407)
    return folder


def codes(plan: Plan) -> list[str]:
    return [finding.code for finding in plan.findings]


def one_of(plan: Plan, code: str) -> Finding:
    """Return the only finding with this code."""
    (found,) = (finding for finding in plan.findings if finding.code == code)
    return found


def record_of(plan: Plan) -> Any:
    """Return the content of plan.json."""
    return json.loads(json.dumps(plan.to_json()))


def call(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert isinstance(left.value.code, int)
    return left.value.code


def test_a_plan_imports_no_training_library(xrays: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    text = f'[run]\nname = "one"\n[data]\ntask = "mcq"\ntrain = "{xrays}/train.json"\n[model]\nmax_tokens = 300\n'
    file.write_text(f"{text}[images]\nmax_side = 112\n[sft]\n[evaluate]\n")
    code = (
        "import sys, toolkit.cli\n"
        "try:\n    toolkit.cli.main(sys.argv[1:])\n"
        "except SystemExit as left:\n    assert left.code == 0, left.code\n"
        "print(sorted({'trl', 'peft', 'unsloth', 'bitsandbytes', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "plan", str(file), "--json", "--set", f"run.folder={tmp_path}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert json.loads(done.stdout)["ok"] is True


def test_the_json_has_its_documented_keys(xrays: Path, tmp_path: Path) -> None:
    plan = make(recipe_on_files(tmp_path, xrays), A5000)
    found = record_of(plan)
    documented = (ROOT / "toolkit/planning/plan.py").read_text(encoding="utf-8").split("::\n\n")[1].split("\n\n")[0]
    keys = [line.split()[0] for line in documented.splitlines() if line.startswith("    ") and line[4] != " "]
    assert list(found) == keys
    guide = (ROOT / "docs/guides/plan.md").read_text(encoding="utf-8").split("## JSON output")[1].split("\n## ")[0]
    cells = (line.split("|")[1] for line in guide.splitlines() if line.startswith("| `"))
    assert [key for cell in cells for key in re.findall(r"`(\w+)`", cell)] == keys
    assert plan.to_json() == found
    assert found["stages"] == ["evaluate before", "sft", "evaluate", "grpo", "evaluate"]
    assert found["data"]["rows"] == {"train": 24, "validation": 0, "test": 8}
    assert set(found["memory"]) == {"sft", "grpo", "evaluate"}
    assert set(found["memory"]["sft"]["fits"]) == {"8", "12", "16", "24"}
    assert found["model"]["parameters"] == 1_746_816


def test_tokens_are_those_that_the_stage_counts(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays)
    plan = make(recipe, None)
    assert plan.tokens is not None
    assert plan.tokens.exact
    run = run_recipe(recipe.model_copy(update={"grpo": None, "evaluate": None}), STAGES).run
    lengths = run.record("sft")["lengths"]
    total = plan.tokens.percentiles("total")
    assert [total[name] for name in ("median", "p95", "max")] == [lengths[name] for name in ("median", "p95", "max")]
    assert plan.tokens.percentiles("images")["median"] == lengths["images"]


def test_steps_are_those_that_the_trainers_make(xrays: Path, tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "sft": {"max_steps": None, "epochs": 1.5, "batch_size": 5, "accumulation": 2},
        "grpo": {"max_steps": None, "epochs": 1.0, "prompts_per_step": 5, "generations": 2, "micro_batch": 10},
    }
    whole = recipe_on_files(tmp_path, xrays)
    recipe = make_recipe(
        {**whole.model_dump(), **{name: {**whole.model_dump()[name], **tables[name]} for name in tables}}
    )
    work = plan_work(recipe, {"train": 24, "validation": 0, "test": 8})
    run = run_recipe(recipe.model_copy(update={"evaluate": None}), STAGES).run
    assert work["sft"].steps == run.record("sft")["steps"]
    assert work["grpo"].steps == run.record("grpo")["steps"] == 4
    assert (work["grpo"].completions, work["grpo"].answers) == (10, 40)
    assert work["evaluate"].answers == 8 * 3


@pytest.mark.parametrize("processor", ["qwen2_vl", "qwen3_vl"])
def test_image_tokens_by_formula_are_those_of_the_real_processor(
    processor: str, shared_data: Path, tmp_path: Path
) -> None:
    unpack_processors(shared_data, tmp_path)
    real = AutoProcessor.from_pretrained(tmp_path / "processors" / processor)
    model = build_architecture(shape_fields({"qwen2_vl": "qwen2_vl_2b", "qwen3_vl": "qwen3_vl_8b"}[processor]))
    sizes = [(896, 896), (640, 427), (333, 500), (100, 40), (30, 30), (1024, 64)]
    assert [image_token_count(size, model) for size in sizes] == image_tokens(real, sizes)
    # This processor has an upper limit of a million pixels, so the formula may only overestimate.
    assert image_token_count((1280, 800), model) >= image_tokens(real, [(1280, 800)])[0]


def test_a_known_model_is_planned_without_the_hub(xrays: Path, tmp_path: Path) -> None:
    plan = make(recipe_on_files(tmp_path, xrays, MEDGEMMA), described_gpu(24))
    assert plan.model.config is not None
    assert plan.model.config.origin == "shipped"
    assert plan.model.architecture is not None
    assert plan.model.architecture.parameters == 4_300_079_472
    assert plan.tokens is not None
    assert not plan.tokens.exact
    assert plan.tokens.percentiles("images") == {"median": 256, "p95": 256, "max": 256}
    assert plan.memory is not None
    assert "checked against an allocation trace, not against a GPU" in "\n".join(lines(plan))


def test_every_known_name_has_its_shape() -> None:
    for name in KNOWN:
        found = find_configuration(Model(name=name))
        assert found is not None
        assert found.origin in ("shipped", "cache")


def test_the_config_in_a_model_folder_takes_precedence_over_the_shipped_one(tmp_path: Path) -> None:
    folder = tmp_path / "google" / "medgemma-4b-it"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**shape_fields("medgemma_4b"), "mm_tokens_per_image": 64}))
    found = find_configuration(Model(name=str(folder)))
    assert found is not None
    assert (found.origin, found.fields["mm_tokens_per_image"]) == ("folder", 64)


def test_the_config_in_the_hub_cache_takes_precedence_over_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "config.json"
    cached.write_text(json.dumps({"model_type": "gemma3"}))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(cached))
    found = find_configuration(Model(name="google/medgemma-4b-it"))
    assert found is not None
    assert (found.origin, found.fields) == ("cache", {"model_type": "gemma3"})


def test_an_unknown_model_leaves_gaps_and_no_traceback(xrays: Path, tmp_path: Path) -> None:
    plan = make(recipe_on_files(tmp_path, xrays, {"model": {"name": "someone/else"}}), A5000)
    assert (plan.model.architecture, plan.memory, plan.disk) == (None, None, None)
    assert {"model", "tokens"} <= set(plan.unknown)
    assert "not estimated" in "\n".join(lines(plan))
    json.dumps(plan.to_json())


def test_a_configuration_that_transformers_does_not_support_is_reported(xrays: Path, tmp_path: Path) -> None:
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "never_heard_of"}')
    plan = make(recipe_on_files(tmp_path, xrays, {"model": {"name": str(folder)}}), None)
    assert "never_heard_of" in plan.unknown["model"]


def test_four_bits_on_a_cpu_are_a_warning(xrays: Path, tmp_path: Path) -> None:
    tables: Tables = {"model": {"precision": "4bit", "max_tokens": 256}, "sft": {"optimizer": "paged_adamw_8bit"}}
    recipe = recipe_on_files(tmp_path, xrays, tables)
    plan = make(recipe, None)
    assert plan.problems == []
    found = {finding.code: (finding.place, finding.details.value) for finding in plan.warnings}
    assert found["model.quantised_on_cpu"] == ("[model] precision", "4bit")
    assert found["training.optimizer_not_paged"] == ("[sft] optimizer", "paged_adamw_8bit")
    on_gpu = codes(make(recipe, A5000))
    assert not {"model.quantised_on_cpu", "training.optimizer_not_paged"} & set(on_gpu)


def test_rows_over_max_tokens_are_a_problem_that_names_them(xrays: Path, tmp_path: Path) -> None:
    plan = make(recipe_on_files(tmp_path, xrays, {"model": {"max_tokens": 100}}), None)
    found = one_of(plan, "data.row_too_long")
    assert found.problem
    assert found.certain
    assert (found.place, found.details.value) == ("[model] max_tokens", 100)
    assert "24 of 24 rows" in found.details.rule
    first = next(iter(json.loads((xrays / "train.json").read_text(encoding="utf-8"))))
    assert first in found.details.rule


def test_a_prompt_that_leaves_too_few_tokens_for_a_completion_is_a_problem(xrays: Path, tmp_path: Path) -> None:
    tables: Tables = {"model": {"max_tokens": 200}, "grpo": {"max_completion_tokens": 150}}
    found = one_of(make(recipe_on_files(tmp_path, xrays, tables), None), "plan.training_prompt_too_long")
    assert found.problem
    assert (found.place, found.details.value) == ("[model] max_tokens", 200)


def test_unreadable_rows_are_a_problem_and_the_rest_is_planned(tmp_path: Path, xrays: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays, {"data": {"columns": {"question": "nothing"}}})
    plan = make(recipe, None)
    assert plan.model.architecture is not None
    (problem,) = plan.problems
    with pytest.raises(DataError) as raised:
        run_recipe(recipe, STAGES)
    assert problem.details == replace(raised.value.problem, place=raised.value.place or "[data]")


def test_too_few_rows_for_a_step_are_a_problem(xrays: Path, tmp_path: Path) -> None:
    tables: Tables = {"grpo": {"prompts_per_step": 100, "micro_batch": 4}}
    found = one_of(make(recipe_on_files(tmp_path, xrays, tables), None), "training.too_few_prompts")
    assert found.problem
    assert (found.place, found.details.value) == ("[grpo] prompts_per_step", 100)
    assert "24" in found.details.rule


def test_a_peak_above_the_gpu_memory_is_a_problem_with_settings_that_help(xrays: Path, tmp_path: Path) -> None:
    tables: Tables = {**MEDGEMMA, "sft": {"batch_size": 32, "gradient_checkpointing": False}}
    plan = make(recipe_on_files(tmp_path, xrays, tables), described_gpu(16))
    (found,) = (problem for problem in plan.problems if problem.place == "memory of sft")
    assert found.code == "plan.gpu_memory_too_small"
    assert not found.certain
    assert plan.memory is not None
    assert found.details.value == pytest.approx(plan.memory["sft"].estimate.peak.total / GIB, abs=0.06)
    assert "sft.batch_size" in found.details.remedy


def test_missing_weights_are_a_certain_problem_offline(xrays: Path, tmp_path: Path) -> None:
    plan = make(recipe_on_files(tmp_path, xrays, {**MEDGEMMA, "export": {"to": ["merged"]}}), A5000)
    found = one_of(plan, "plan.weights_not_cached")
    assert found.problem
    assert found.certain
    assert (found.place, found.details.value) == ("[model] name", "google/medgemma-4b-it")
    alone = one_of(make(recipe_on_files(tmp_path, xrays, MEDGEMMA), A5000), "plan.weights_not_cached")
    assert found.details.rule != alone.details.rule  # The rule also mentions merging.


def test_the_hub_is_queried_once_and_never_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    queried = []

    def query(model: Model) -> BaseWeights:
        queried.append(model.name)
        return BaseWeights("reachable")

    model = Model(name="google/medgemma-4b-it")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert (find_base(model, query).state, queried) == ("offline", [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert (find_base(model, query).state, queried) == ("reachable", ["google/medgemma-4b-it"])


def test_a_gated_model_without_a_token_is_reported_with_a_remedy(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    from huggingface_hub.errors import GatedRepoError

    request = httpx.Request("HEAD", "https://hub/config.json")

    def fail(*_: Any, **__: Any) -> None:
        raise GatedRepoError("401", response=httpx.Response(401, request=request))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    plan = make(recipe_on_files(tmp_path, xrays, MEDGEMMA), A5000)
    assert plan.model.base is not None
    assert plan.model.base.state == "gated"
    assert "hf auth login" in one_of(plan, "plan.model_gated").details.rule


def test_an_unreachable_hub_is_not_a_certain_problem(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    def fail(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    plan = make(recipe_on_files(tmp_path, xrays, MEDGEMMA), A5000)
    assert [(problem.code, problem.certain) for problem in plan.problems] == [("plan.hub_unreachable", False)]


def test_a_folder_with_missing_shards_has_no_weights(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": np.zeros(2)}, tmp_path / "model-1.safetensors")
    assert find_base(Model(name=str(tmp_path))).state == "missing"
    save_file({"b": np.zeros(2)}, tmp_path / "model-2.safetensors")
    assert find_base(Model(name=str(tmp_path))).state == "folder"


@pytest.fixture
def quantised(tmp_path: Path) -> Mapping[str, Any]:
    """Return the section [model] of a model folder whose weights are stored quantized."""
    folder = tmp_path / "quantised"
    folder.mkdir()
    fields = {**shape_fields("qwen2_vl_2b"), "quantization_config": {"quant_method": "bitsandbytes"}}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "model.safetensors").touch()
    return {"name": str(folder), "max_tokens": 2048}


@pytest.mark.parametrize(
    ("export", "rejected"),
    [
        ({"to": ["merged"]}, True),
        ({"to": ["gguf"], "verify": 0}, True),
        ({"to": ["merged"], "allow_dequantised": True}, False),
    ],
)
def test_an_adapter_cannot_be_merged_into_a_quantized_base_model(
    export: Mapping[str, Any], rejected: bool, quantised: Mapping[str, Any], xrays: Path, tmp_path: Path
) -> None:
    plan = make(recipe_on_files(tmp_path, xrays, {"model": quantised, "export": export}), A5000)
    assert ("model.base_stored_quantised" in codes(plan)) is rejected


def test_an_optional_gguf_of_a_quantized_base_model_is_dropped(
    quantised: Mapping[str, Any], xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The extra seems to be installed.
    monkeypatch.setattr("toolkit.models.llamacpp.require_for", lambda quant, verify: None)
    tables: Tables = {"model": quantised, "export": {"to": ["adapter"], "optional": ["gguf"]}}
    plan = make(recipe_on_files(tmp_path, xrays, tables), A5000)
    assert one_of(plan, "export.gguf_left_out").place == "[export] optional"
    assert "model.base_stored_quantised" not in codes(plan)
    assert plan.disk is not None
    assert not {"export merged", "export gguf"} & set(plan.disk.parts)


def test_a_full_disk_is_a_problem_and_a_nearly_full_one_a_warning(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays)
    checked = [list(check_disk(recipe, Disk({"merged": 10**10}, free))) for free in (9 * 10**9, 10**10, 2 * 10**10)]
    found = [[(one.code, one.details.value, one.problem, one.certain) for one in findings] for findings in checked]
    assert found == [
        [("plan.disk_too_small", 9.0, True, True)],
        [("plan.disk_nearly_full", 10.0, False, True)],
        [],
    ]


def test_merged_weights_are_counted_on_the_disk(xrays: Path, tmp_path: Path) -> None:
    plan = make(recipe_on_files(tmp_path, xrays, {**MEDGEMMA, "export": {"to": ["adapter", "merged"]}}), A5000)
    assert plan.disk is not None
    assert plan.disk.parts["export merged"] == pytest.approx(2 * 4_300_079_472, rel=0.01)
    assert plan.model.architecture is not None
    adapter = 4 * plan.model.architecture.adapter_parameters(4, plan_targets(), False)
    assert plan.disk.parts["export adapter"] == pytest.approx(adapter, abs=50e6)


def test_gguf_disk_space_includes_every_quantization_and_the_merged_weights(xrays: Path, tmp_path: Path) -> None:
    export = {"to": ["gguf"], "quant": ["q8_0", "q4_k_m"], "verify": 0}
    plan = make(recipe_on_files(tmp_path, xrays, {**MEDGEMMA, "export": export}), A5000)
    assert plan.disk is not None
    assert plan.disk.parts["export merged"] == pytest.approx(2 * 4_300_079_472, rel=0.01)
    # 8.5 and 4.9 bits per parameter, and 16 for the file that is quantized.
    bits = 8.5 + 4.9 + 16
    assert plan.disk.parts["export gguf"] == pytest.approx(bits / 8 * 4_300_079_472, rel=0.01)


def test_a_gguf_export_without_its_packages_is_a_problem(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_on_files(tmp_path, xrays, {"export": {"to": ["gguf"], "quant": ["f16"]}})
    monkeypatch.setattr("toolkit.models.llamacpp.convert.is_installed", lambda: True)
    monkeypatch.setattr("toolkit.models.llamacpp.child.is_installed", lambda: True)
    assert "install.extra_missing" not in codes(make(recipe, None))
    monkeypatch.setattr("toolkit.models.llamacpp.child.is_installed", lambda: False)
    found = one_of(make(recipe, None), "install.extra_missing")
    assert found.problem
    assert found.place == "[export] to"
    unverified = recipe_on_files(tmp_path, xrays, {"export": {"to": ["gguf"], "quant": ["f16"], "verify": 0}})
    assert "install.extra_missing" not in codes(make(unverified, None))


def plan_targets() -> tuple[str, ...]:
    return ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("tables", "gpu", "code", "place", "value"),
    [
        (MEDGEMMA, T4, "plan.no_bfloat16", "Tesla T4", NOTHING),
        (
            {**MEDGEMMA, "sft": {"gradient_checkpointing": False}},
            A5000,
            "plan.no_gradient_checkpointing",
            "[sft] gradient_checkpointing",
            False,
        ),
        (
            {**MEDGEMMA, "lora": {"vision": True}, "export": {"to": ["adapter"]}},
            A5000,
            "plan.vision_adapter_not_servable",
            "[lora] vision",
            NOTHING,
        ),
        ({"grpo": {"beta": 0.04}}, None, "plan.kl_reference_is_adapter", "[grpo] beta", NOTHING),
        (
            {"rewards": {"explanation": 0, "evidence": 0, "format": 0, "brevity": 0}},
            None,
            "plan.rewards_all_or_nothing",
            "[rewards]",
            ["letter"],
        ),
        (
            {"evaluate": {"max_completion_tokens": 8}},
            None,
            "plan.answers_cut_off",
            "[evaluate] max_completion_tokens",
            8,
        ),
        ({}, Gpu("T4", 15 * GIB, bf16=False, count=2), "model.one_gpu_used", "GPU", 2),
        (
            {"model": {"tuning": "full", "precision": "16bit"}},
            A5000,
            "plan.small_updates_lost",
            "[model] precision",
            "16bit",
        ),
        ({"model": {"trust_remote_code": True}}, None, "plan.remote_code", "[model] trust_remote_code", NOTHING),
    ],
)
def test_known_issues_are_warned_about_if_they_apply(
    tables: Mapping[str, Any], gpu: Gpu | None, code: str, place: str, value: object, xrays: Path, tmp_path: Path
) -> None:
    expected = (code, place, value)
    plain = make(recipe_on_files(tmp_path / "plain", xrays), A5000 if gpu is not None else None)
    plan = make(recipe_on_files(tmp_path, xrays, tables), gpu)
    assert expected in [(one.code, one.place, one.details.value) for one in plan.warnings]
    assert expected not in [(one.code, one.place, one.details.value) for one in plain.warnings]


def test_installed_versions_are_compared_with_tested_versions() -> None:
    found = untested_versions(
        {**TESTED_VERSIONS, "torch": "0.0.1", "trl": f"{TESTED_VERSIONS['trl']}+local", "python": "2"}
    )
    assert found == {"torch": {"installed": "0.0.1", "tested": TESTED_VERSIONS["torch"]}}


def test_synthetic_data_are_planned_before_they_are_generated(tmp_path: Path) -> None:
    plan = make(small_recipe(tmp_path), None)
    assert plan.data is not None
    assert (plan.data.synthetic, plan.data.rows["train"]) == (True, 24)
    assert plan.tokens is not None
    assert not list(tmp_path.glob("runs"))


def loaded(recipe: Recipe) -> Architecture:
    """Return the recipe's model as its backend quantizes it while loading."""
    found = find_configuration(recipe.model)
    assert found is not None
    return build_architecture(found.fields, UNQUANTISED_MODULES if planned_backend(recipe) == "unsloth" else ())


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda file: file.stem)
@pytest.mark.parametrize("backend", ["auto", "hf"])
def test_every_shipped_recipe_for_a_gpu_fits_the_gpu_that_the_readme_names(file: Path, backend: Any) -> None:
    """The rows have model.max_tokens, and 5 % of the GPU memory must stay free on the planned backend."""
    from toolkit.planning.memory import estimate
    from toolkit.planning.stages import memory_settings
    from toolkit.planning.tokens import longest_possible_row

    recipe = load_recipe(file)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"backend": backend})})
    gpu = described_gpu(24 if file.stem.startswith("steps_") else 16)
    model = loaded(recipe)
    spare = 0.95 if backend == "auto" else 1.0
    for setting in memory_settings(recipe, model, longest_possible_row(recipe, model), bf16=True).values():
        assert estimate(model, setting, gpu.memory).peak.total < spare * gpu.memory


def test_the_docs_table_of_memory_has_the_plans_figures_of_every_recipe() -> None:
    """The traced figures in the table are those of tests/benchmarks/bench_memory.py."""
    from toolkit.planning.memory import estimate
    from toolkit.planning.stages import memory_settings
    from toolkit.planning.tokens import longest_possible_row

    text = (ROOT / "docs" / "concepts" / "plan_estimates.md").read_text(encoding="utf-8")
    block = text.split("<!-- memory:begin -->")[1].split("<!-- memory:end -->")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in block.strip().splitlines()[2:]]
    documented = {(row[0], row[1]): float(row[6]) for row in rows}
    planned = {}
    for file in (ROOT / "recipes").glob("*.toml"):
        recipe = load_recipe(file)
        if recipe.model.name == "tiny":
            continue
        model = loaded(recipe)
        gpu = described_gpu(24 if file.stem.startswith("steps_") else 16)
        for stage, setting in memory_settings(recipe, model, longest_possible_row(recipe, model), bf16=True).items():
            if setting.trains:
                reserved = max(one.reserved for one in estimate(model, setting, gpu.memory).moments)
                planned[(file.stem, stage)] = round(reserved / GIB, 2)
    assert documented == planned


def test_the_command_prints_the_plan_and_its_exit_code_has_the_result(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.toml"
    head = f'[run]\nname = "one"\nfolder = "{tmp_path}/runs"\n[data]\ntask = "mcq"\ntrain = "{xrays}/train.json"\n'
    file.write_text(f"{head}[images]\nmax_side = 112\n[grpo]\n[evaluate]\n")
    assert call(["plan", str(file), "--set", "model.max_tokens=300"]) == 0
    assert "[plan.training_prompt_too_long]" not in capsys.readouterr().out
    assert call(["plan", str(file), "--set", "model.max_tokens=150"]) == 1
    assert "[plan.training_prompt_too_long]" in capsys.readouterr().out
    in_four_bits = ["plan", str(file), "--set", "model.max_tokens=300", "--set", "model.precision=4bit"]
    assert call(in_four_bits) == 0
    assert "[model.quantised_on_cpu]" in capsys.readouterr().out
    assert call([*in_four_bits, "--json"]) == 0
    (warned,) = json.loads(capsys.readouterr().out)["warnings"]
    assert list(warned) == ["code", "place", "value", "rule", "remedy"]
    assert (warned["code"], warned["value"]) == ("model.quantised_on_cpu", "'4bit'")
    assert call([*in_four_bits, "--gpu", "16"]) == 0
    assert "[model.quantised_on_cpu]" not in capsys.readouterr().out
    assert call(["plan", str(file), "--set", "grpo.generations=1"]) == 2


def test_a_run_that_cannot_work_ends_before_anything_is_written(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.toml"
    head = f'[run]\nname = "one"\nfolder = "{tmp_path}/runs"\n[data]\ntask = "mcq"\ntrain = "{xrays}/train.json"\n'
    file.write_text(f"{head}[model]\nmax_tokens = 100\n[images]\nmax_side = 112\n[sft]\n")
    assert call(["run", str(file)]) == 1
    error = capsys.readouterr().err
    assert "[data.row_too_long]" in error
    assert error.endswith("[plan.run_cannot_work]\n")
    assert not (tmp_path / "runs").exists()


def test_a_plan_error_has_every_certain_problem_with_its_code(xrays: Path, tmp_path: Path) -> None:
    tables: Tables = {"model": {"max_tokens": 100}, "grpo": {"prompts_per_step": 100, "max_completion_tokens": 16}}
    recipe = recipe_on_files(tmp_path, xrays, tables)
    expected = ["training.too_few_prompts", "data.row_too_long", "plan.training_prompt_too_long"]
    with raises(PlanError, *expected, "plan.evaluation_prompt_too_long") as caught:
        plan_run(recipe, fresh=False)
    assert (caught.problem.place, caught.problem.value) == ("[grpo] prompts_per_step", 100)
    assert caught.error.code == "plan.run_cannot_work"


def test_an_estimate_above_the_gpu_memory_only_warns(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("toolkit.planning.find_gpu", lambda: Gpu("a small one", GIB // 2, bf16=True))
    with caplog.at_level(logging.INFO, "toolkit"):
        found = plan_run(recipe_on_files(tmp_path, xrays), fresh=False)
    assert found is not None
    assert not found["ok"]
    assert ("plan.gpu_memory_too_small", "memory of sft") in [(one.code, one.place) for one in warnings_in(caplog)]


def test_unreadable_rows_do_not_stop_the_plan_of_a_run(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays, {"data": {"columns": {"question": "nothing"}}})
    assert plan_run(recipe, fresh=False) is not None
    with raises(DataError, "data.column_missing", "data.column_missing"):
        run_recipe(recipe, STAGES)


def test_the_plan_is_stored_and_compared_with_measured_peaks(
    xrays: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_on_files(tmp_path, xrays).model_copy(update={"grpo": None, "evaluate": None})
    plan = record_of(make(recipe, A5000))
    run = run_recipe(recipe, STAGES, plan=plan).run
    assert read_json(run.plan_file) == plan
    expected = plan["memory"]["sft"]["reserved_gb"]
    peaks = read_json(run.results_file)["gpu_memory"]
    assert peaks == {"sft": {"estimated_gb": expected, "measured_gb": None}}  # torch reserved none here.
    assert describe_peaks(peaks) == "no GPU was used"
    with caplog.at_level(logging.INFO, "toolkit"):
        assert plan_run(recipe, fresh=False) is None
    assert "plan.json" in caplog.text


def test_a_measured_peak_is_reported_with_its_estimate(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays).model_copy(update={"grpo": None, "evaluate": None})
    run = run_recipe(recipe, STAGES, plan=record_of(make(recipe, A5000))).run
    lines = [json.loads(line) for line in run.compute_file.read_text(encoding="utf-8").splitlines()]
    (last,) = (line for line in lines if line.get("event") == "stage" and line["stage"]["name"] == "sft")
    last["stage"]["used"]["gpu_memory"] = 7_500_000_000
    append_line(run.compute_file, last)
    estimated = read_json(run.plan_file)["memory"]["sft"]["reserved_gb"]
    assert gpu_peaks(find_run(run.path)) == {"sft": {"estimated_gb": estimated, "measured_gb": 7.5}}
    assert describe_peaks(gpu_peaks(run)) == f"sft 7.5 GB (plan: {estimated:.1f} GB)"


def test_without_a_gpu_there_is_no_estimate(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays).model_copy(update={"grpo": None, "evaluate": None})
    run = run_recipe(recipe, STAGES, plan=record_of(make(recipe, None))).run
    assert gpu_peaks(run) == {"sft": {"estimated_gb": None, "measured_gb": None}}


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("ham10000_grpo", 16),
        ("ham10000_sft", 16),
        ("medgemma_grpo", 16),
        ("medgemma_sft_grpo", 16),
        ("skin_stage1_sft", 16),
        ("skin_stage2_grpo", 16),
        ("steps_grpo", 24),
        ("steps_sft", 24),
        ("vqa_rad", 16),
    ],
)
def test_rows_of_max_tokens_fit_the_gpu_of_each_shipped_recipe(name: str, memory: int) -> None:
    lost = DataError("data.file_missing", "the file of rows must exist")
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    elsewhere = named_gpu("Tesla T4")  # Unsloth counts as installed on another machine.
    assert elsewhere is not None
    for gpu in (described_gpu(memory), *([T4, elsewhere] if memory == 16 else [])):
        plan = make_plan(recipe, lost, gpu, query=lambda _: BaseWeights("cache"))
        assert plan.memory is not None
        assert "plan.gpu_memory_too_small" not in codes(plan), gpu.name


def test_without_rows_memory_is_estimated_for_the_longest_possible_row(tmp_path: Path) -> None:
    lost = DataError("data.file_missing", "the file of rows must exist")
    steps = make_plan(
        load_recipe(ROOT / "recipes" / "steps_grpo.toml"), lost, A5000, query=lambda _: BaseWeights("cache")
    )
    assert steps.memory is not None
    assert not any("max_side" in str(one.changes) for one in steps.memory.values())
    recipe = load_recipe(ROOT / "recipes" / "medgemma_sft_grpo.toml")
    plan = make_plan(recipe, lost, A5000, query=lambda model: BaseWeights("reachable"))
    assert plan.data is None
    assert plan.tokens is not None
    assert (plan.tokens.rows, plan.tokens.longest.total) == (0, recipe.model.max_tokens)
    assert plan.tokens.longest.images == 256  # Gemma's
    assert plan.memory is not None
    assert {"sft", "grpo"} <= set(plan.memory)
    assert one_of(plan, "data.file_missing").place == "[data]"


@pytest.mark.parametrize(("text", "code"), [("{half", "model.config_not_json"), ("[]", "model.config_not_object")])
def test_a_corrupt_configuration_is_an_error_that_names_its_file(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with raises(ModelError, code) as caught:
        find_configuration(Model(name=str(tmp_path)))
    assert caught.problem.place == str(tmp_path / "config.json")


def test_the_time_of_each_stage_is_that_of_common_gpus_or_of_the_named_one(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays, MEDGEMMA)
    without = record_of(make(recipe, None))["time"]
    assert list(without["gpus"]) == list(COMMON)
    assert without["here"] is None
    t4 = named_gpu("Tesla T4")
    assert t4 is not None
    named = record_of(make(recipe, t4))["time"]
    assert (list(named["gpus"]), named["here"]) == (["T4"], "T4")
    sized = record_of(make(recipe, described_gpu(24)))["time"]
    assert {"L4", "RTX 3090", "RTX 4090"} <= set(sized["gpus"])
    assert sized["here"] is None
    plan = make(recipe, t4)
    assert any("time on T4" in line for line in short_lines(plan))
    assert not any("time on" in line for line in short_lines(make(recipe, described_gpu(24))))
    work = plan.work
    assert work is not None
    for stage in ("sft", "grpo", "evaluate"):
        one = named["gpus"]["T4"][stage]
        assert one["steps"] == (work[stage].steps or work[stage].evaluations)
        for seconds, hours in zip(one["seconds_per_step"], one["hours"], strict=True):
            assert hours == pytest.approx(seconds * one["steps"] / 3600, rel=0.01)


def test_a_gpu_without_figures_and_rollouts_by_vllm_have_no_time_and_a_reason(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays, {**MEDGEMMA, "grpo": {"rollouts": "vllm"}})
    unknown = make(recipe, A5000)
    assert unknown.time is None
    assert "RTX A5000" in unknown.unknown["time"]  # The GPU has no data-sheet figures.
    plan = make(recipe, named_gpu("L4"))
    assert plan.time is not None
    assert set(plan.time["L4"]) == {"sft", "evaluate"}
    assert "time of grpo" in plan.unknown


def test_gpu_memory_is_that_of_the_repository_that_unsloth_loads(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays, MEDGEMMA)
    listed = Repository("unsloth/medgemma-4b-it-unsloth-bnb-4bit", ("lm_head",), 4_000_000_000)

    def loaded(backend: str, **model: str) -> int:
        """Return the bytes of all parameters."""
        changed = recipe.model.model_copy(update={"backend": backend, **model})
        memory = make(recipe.model_copy(update={"model": changed}), named_gpu("L4")).memory
        assert memory is not None
        parts = memory["evaluate"].estimate.peak.parts
        return parts["weights"] + parts["vision_tower"]

    assert loaded("hf") < loaded("auto", revision="main") < loaded("auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.planning.plan.find_repository", lambda model, query: listed)
        assert record_of(make(recipe, named_gpu("L4")))["model"]["loaded"] == listed.name
        assert loaded("auto") == loaded("hf")
