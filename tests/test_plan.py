"""The plan of a recipe: its facts, findings and imports."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from tests.helpers.footprint import shape_fields
from tests.helpers.plans import codes, one_of, record_of, write_xrays
from tests.helpers.real_processors import unpack_processors
from tests.helpers.recipes import make_recipe
from tests.helpers.training import Tables, recipe_on_files, small_recipe
from toolkit.cli.plan import lines, short_lines
from toolkit.errors import NOTHING, DataError
from toolkit.models.image_tokens import image_tokens
from toolkit.pipeline import run_recipe
from toolkit.pipeline.plan import plan_language_model as make
from toolkit.pipeline.stages import STAGES
from toolkit.planning import Gpu, described_gpu, named_gpu
from toolkit.planning.architecture import build_architecture
from toolkit.planning.disk import Disk, check_disk
from toolkit.planning.gpu import COMMON, GIB
from toolkit.planning.model_files import (
    Repository,
)
from toolkit.planning.stages import plan_work
from toolkit.planning.tokens import image_token_count
from toolkit.recipe import Validation
from toolkit.runfolder import TESTED_VERSIONS, untested_versions
from toolkit.training.results import GrpoResult, SftResult

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROOT = Path(__file__).resolve().parent.parent
T4 = Gpu("Tesla T4", int(14.7 * GIB), bf16=False)
A5000 = Gpu("RTX A5000", int(23.6 * GIB), bf16=True)
MEDGEMMA: Tables = {"model": {"name": "google/medgemma-4b-it", "precision": "4bit", "max_tokens": 2048}}


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xrays(tmp_path_factory.mktemp("xrays"))


@pytest.mark.slow
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
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
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


@pytest.mark.slow
def test_tokens_are_those_that_the_stage_counts(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays)
    plan = make(recipe, None)
    assert plan.tokens is not None
    assert plan.tokens.exact
    run = run_recipe(recipe.model_copy(update={"grpo": None, "evaluate": None}), STAGES).run
    lengths = run.result("sft", SftResult).lengths
    total = plan.tokens.percentiles("total")
    assert [total[name] for name in ("median", "p95", "max")] == [lengths.median, lengths.p95, lengths.max]
    assert plan.tokens.percentiles("images")["median"] == lengths.images


@pytest.mark.slow
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
    assert work["sft"].steps == run.result("sft", SftResult).training.steps
    assert work["grpo"].steps == run.result("grpo", GrpoResult).training.steps == 4
    assert (work["grpo"].completions, work["grpo"].answers) == (10, 40)
    assert work["evaluate"].answers == 8 * 3


@pytest.mark.slow
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
    assert found["model.quantized_on_cpu"] == ("[model] precision", "4bit")
    assert found["training.optimizer_not_paged"] == ("[sft] optimizer", "paged_adamw_8bit")
    on_gpu = codes(make(recipe, A5000))
    assert not {"model.quantized_on_cpu", "training.optimizer_not_paged"} & set(on_gpu)


def test_rows_over_max_tokens_are_a_problem_that_names_them(xrays: Path, tmp_path: Path) -> None:
    plan = make(recipe_on_files(tmp_path, xrays, {"model": {"max_tokens": 100}}), None)
    found = one_of(plan, "data.row_too_long")
    assert found.problem
    assert found.certain
    assert (found.place, found.details.value) == ("[model] max_tokens", 100)
    assert "24 of 24 rows" in found.details.rule
    assert "train.json, row 0: " in found.details.rule


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


@pytest.fixture
def quantized(tmp_path: Path) -> Mapping[str, Any]:
    """Return the section [model] of a model folder whose weights are stored quantized."""
    folder = tmp_path / "quantized"
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
        ({"to": ["merged"], "allow_dequantized": True}, False),
    ],
)
def test_an_adapter_cannot_be_merged_into_a_quantized_base_model(
    export: Mapping[str, Any], rejected: bool, quantized: Mapping[str, Any], xrays: Path, tmp_path: Path
) -> None:
    plan = make(recipe_on_files(tmp_path, xrays, {"model": quantized, "export": export}), A5000)
    assert ("model.base_stored_quantized" in codes(plan)) is rejected


def test_an_optional_gguf_of_a_quantized_base_model_is_dropped(
    quantized: Mapping[str, Any], xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The extra seems to be installed.
    monkeypatch.setattr("toolkit.models.llamacpp.require_for", lambda quant, verify: None)
    tables: Tables = {"model": quantized, "export": {"to": ["adapter"], "optional": ["gguf"]}}
    plan = make(recipe_on_files(tmp_path, xrays, tables), A5000)
    assert one_of(plan, "export.gguf_left_out").place == "[export] optional"
    assert "model.base_stored_quantized" not in codes(plan)
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
    adapter = 4 * plan.model.architecture.adapter_parameters(4, TARGETS, False)
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
        ({"lora": {"dora": True}}, None, "plan.dora_not_estimated", "[lora] dora", NOTHING),
        (
            {"lora": {"dora": True}, "export": {"to": ["adapter"]}},
            None,
            "plan.dora_not_servable",
            "[lora] dora",
            NOTHING,
        ),
        ({"grpo": {"beta": 0.04}}, None, "plan.kl_reference_is_adapter", "[grpo] beta", NOTHING),
        ({"sft": {"max_steps": 2, "warmup_steps": 3}}, None, "plan.warmup_too_long", "[sft] warmup_steps", 3),
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


def test_a_validation_split_without_rows_is_a_problem(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays)
    plain, plan = make(recipe, None), make(recipe.model_copy(update={"validation": Validation()}), None)
    code = "data.validation_split_empty"
    assert [(one.code, one.place) for one in plan.problems if one.code == code] == [(code, "[validation]")]
    assert code not in {one.code for one in plain.problems}


def test_the_plan_counts_validations_and_their_rows(tmp_path: Path) -> None:
    rows = {"kind": "chest", "train": 24, "validation": 10, "test": 4, "size": 64}
    tables: Tables = {
        "data": {"synthetic": rows},
        "sft": {"max_steps": 5},
        "validation": {"every_steps": 2, "limit": 6},
    }
    work = make(small_recipe(tmp_path, tables), None).work
    assert work is not None
    assert (work["sft"].validations, work["sft"].validated) == (3, 6)  # after steps 2, 4 and 5
    assert (work["grpo"].validations, work["grpo"].validated) == (2, 6)


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


@pytest.mark.slow
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
