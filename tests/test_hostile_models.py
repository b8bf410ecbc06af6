"""Model and adapter folders of others: pickles, damaged files, and settings that would run code, hang or allocate."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tests.helpers.damage import change_one_byte
from tests.helpers.problems import raises, warnings_in
from tests.helpers.training import context_of, only, small_recipe
from toolkit import tiny
from toolkit.errors import ModelError, RunError, TrainingError
from toolkit.models import Backend, adapter_config, lora
from toolkit.models.adapter_config import CONFIG, check_adapter, read_adapter_config
from toolkit.models.loading import load_model
from toolkit.models.model_config import read_configuration
from toolkit.models.processor import open_processor
from toolkit.models.weight_files import (
    ADAPTER,
    INDEX,
    SINGLE,
    check_model_folder,
    model_weights,
    pickled_weights,
    tensor_shapes,
)
from toolkit.planning.model_checks import check_start
from toolkit.planning.model_files import find_base
from toolkit.recipe import Model
from toolkit.runfolder.manifest import write_manifest
from toolkit.training import resume
from toolkit.training.sft import train_sft


class Touch:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.FOLDER, tmp_path / "model"))


@pytest.fixture(scope="module")
def saved(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    backend.save(backend.load(small_recipe(folder), None, trainable=True), folder / "saved")
    return folder / "saved"


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in (ADAPTER, CONFIG):
        shutil.copy(saved / name, folder)
    return folder


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_a_damaged_export_of_a_run_is_no_base_model(model: Path) -> None:
    write_manifest(model)
    assert find_base(Model(name=str(model))).state == "folder"
    change_one_byte(model / "tokenizer.json")
    assert find_base(Model(name=str(model))).code == "run.weights_damaged"
    with raises(RunError, "run.weights_damaged") as caught:
        load_model(str(model), Model(name=str(model)))
    assert caught.problem.place == str(model / "tokenizer.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl"])
def test_pickled_weights_are_rejected_by_name_and_not_opened(model: Path, tmp_path: Path, name: str) -> None:
    (model / SINGLE).unlink()
    (model / name).write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    with raises(ModelError, "model.weights_pickled") as caught:
        load_model(str(model), Model(name=str(model)))
    assert caught.problem.value == [name]
    assert "save_pretrained" in caught.problem.remedy
    assert not (tmp_path / "ran").exists()


def test_safetensors_are_used_beside_a_pickle(model: Path, adapter: Path, tmp_path: Path) -> None:
    for folder, name in ((model, "pytorch_model.bin"), (adapter, "adapter_model.bin")):
        (folder / name).write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    base = load_model(str(model), Model(name=str(model)))
    lora.reload(base, adapter, trainable=False)
    assert not (tmp_path / "ran").exists()
    assert pickled_weights(model) == ["pytorch_model.bin"]


def test_a_pickled_adapter_is_rejected_with_the_command_that_converts_it(adapter: Path) -> None:
    torch.save(load_file(adapter / ADAPTER), adapter / "adapter_model.bin")
    (adapter / ADAPTER).unlink()
    with raises(ModelError, "model.weights_pickled") as caught:
        check_adapter(adapter)
    code = caught.problem.remedy.split('python -c "')[1].rstrip('"')
    exec(code, {})
    check_adapter(adapter)


def test_states_of_a_trainer_are_not_weights(tmp_path: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (tmp_path / name).touch()
    assert pickled_weights(tmp_path) == []


def header(content: dict[str, Any], tail: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"<html>404</html>" * 100,
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        header({}),
        header({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]}}, b"0000"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**50]}}, b"0000"),
        pickle.dumps({"a": 1}),
    ],
)
def test_a_damaged_safetensors_file_is_an_error_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with raises(ModelError, "model.weights_damaged") as caught:
        model_weights(tmp_path)
    assert caught.problem.place == str(tmp_path / SINGLE)


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SINGLE)
    os.mkfifo(tmp_path / "config.json")
    with raises(ModelError, "model.weights_damaged"):
        model_weights(tmp_path)
    with raises(ModelError, "model.config_not_json"):
        read_configuration(tmp_path / "config.json")
    with raises(ModelError, "model.file_not_regular"):
        check_model_folder(tmp_path)
    with raises(ModelError, "model.file_not_regular"):
        open_processor(Model(name=str(tmp_path)))


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/tmp/model.safetensors", "shard.bin", "", 5])
def test_an_index_names_only_safetensors_of_its_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with raises(ModelError, "model.weights_damaged") as caught:
        model_weights(tmp_path)
    assert caught.problem.place == str(tmp_path / INDEX)


def test_missing_tensors_are_an_error_because_they_would_be_random(model: Path) -> None:
    tensors = load_file(model / SINGLE)
    removed = [name for name in sorted(tensors) if ".mlp." in name][:3]
    save_file({name: value for name, value in tensors.items() if name not in removed}, model / SINGLE)
    with raises(ModelError, "model.weights_incomplete") as caught:
        load_model(str(model), Model(name=str(model)))
    assert str(caught.problem.value).startswith("3 missing")


def test_tensors_that_the_model_does_not_use_are_a_warning(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A configuration with fewer layers than the files would otherwise be another model, silently."""
    fields = json.loads((model / "config.json").read_text())
    change(model / "config.json", vision_config={**fields["vision_config"], "num_hidden_layers": 0})
    load_model(str(model), Model(name=str(model)))
    assert [problem.code for problem in warnings_in(caplog)] == ["model.weights_unused"]


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("hidden_size", 10**12, "model.config_value_out_of_range"),
        ("num_hidden_layers", -1, "model.config_value_out_of_range"),
        ("num_hidden_layers", 10**9, "model.config_value_out_of_range"),
        ("vocab_size", 10**9, "model.config_value_out_of_range"),
        ("hidden_size", "x", "model.config_unsupported"),
        ("hidden_size", 64, "model.config_unsupported"),
        ("intermediate_size", 10_000_000, "model.larger_than_its_files"),
        ("num_attention_heads", 0, "model.config_unsupported"),
    ],
)
def test_a_size_that_the_weights_do_not_have_is_an_error(model: Path, key: str, value: object, code: str) -> None:
    fields = json.loads((model / "config.json").read_text())
    change(model / "config.json", text_config={**fields["text_config"], key: value})
    with raises(ModelError, code):
        load_model(str(model), Model(name=str(model)))


def test_an_unknown_model_type_runs_no_code_of_its_authors(model: Path, tmp_path: Path) -> None:
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    classes = {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"}
    change(model / "config.json", model_type="own", auto_map=classes)
    with raises(ModelError, "model.config_unsupported") as caught:
        load_model(str(model), Model(name=str(model)))
    assert "trust_remote_code" in caught.problem.remedy
    assert not (tmp_path / "ran").exists()


def test_a_configuration_cannot_name_a_kernel_of_the_hub(model: Path) -> None:
    change(model / "config.json", attn_implementation="someone/kernel")
    with raises(ModelError, "model.config_names_kernel"):
        read_configuration(model / "config.json")


def test_a_configuration_cannot_name_other_weights(model: Path) -> None:
    change(model / "config.json", transformers_weights="adapter_model.bin")
    with raises(ModelError, "model.weights_renamed"):
        check_model_folder(model)


def test_an_adapter_cannot_take_the_place_of_the_model(model: Path, adapter: Path) -> None:
    """transformers would load the base that its configuration names."""
    shutil.copy(adapter / CONFIG, model)
    with raises(ModelError, "model.name_is_adapter"):
        check_model_folder(model)


def test_a_damaged_generation_config_is_not_ignored(model: Path) -> None:
    (model / "generation_config.json").write_text("{")
    with raises(ModelError, "model.generation_config_not_json"):
        check_model_folder(model)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("tokenizer.json", "", "model.processor_file_not_json"),
        ("tokenizer.json", "[" * 100_000, "model.processor_file_not_json"),
        ("tokenizer.json", "{}", "model.processor_unusable"),
        ("tokenizer.json", json.dumps({"added_tokens": [0] * 20_001}), "model.too_many_added_tokens"),
        ("tokenizer_config.json", "null", "model.processor_file_not_object"),
        ("processor_config.json", "[]", "model.processor_file_not_object"),
    ],
)
def test_a_damaged_processor_is_an_error_that_names_the_file(model: Path, name: str, content: str, code: str) -> None:
    (model / name).write_text(content)
    with raises(ModelError, code) as caught:
        open_processor(Model(name=str(model)))
    if code != "model.processor_unusable":
        assert caught.problem.place == str(model / name)


def test_a_processor_cannot_write_a_billion_placeholders(model: Path) -> None:
    change(model / "processor_config.json", image_seq_length=10**9)
    with raises(ModelError, "model.config_value_out_of_range"):
        open_processor(Model(name=str(model)))


def test_a_tokenizer_is_not_a_processor(model: Path) -> None:
    for name in ("processor_config.json", "tokenizer_config.json"):
        change(model / name, processor_class="Unknown")
    with raises(ModelError, "model.processor_unusable"):
        open_processor(Model(name=str(model)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "EVIL"),
        ("peft_type", "IA3"),
        ("r", 10_000_000),
        ("r", True),
        ("r", "4"),
        ("lora_alpha", float("inf")),
        ("lora_alpha", None),
        ("lora_dropout", 2),
        ("target_modules", []),
        ("target_modules", ["q_proj", 5]),
        ("target_modules", "("),
        ("target_modules", "(" * 5000 + ")" * 5000),
        ("target_modules", "a" * 50_000),
        ("modules_to_save", ["(.*)*x"]),
        ("layers_pattern", "(.*)*x"),
        ("rank_pattern", {"q_proj": 10_000_000}),
        ("megatron_config", {"a": 1}),
        ("megatron_core", "os"),
        ("layer_replication", [[0, 1_000_000]]),
        ("corda_config", {"cache_file": "/etc/passwd"}),
        ("kasa_config", {}),
        ("init_lora_weights", "pissa_niter_99999999"),
        ("use_qalora", True),
        ("runtime_config", {"ephemeral_gpu_offload": True}),
        ("auto_mapping", {"base_model_class": "Own", "parent_library": "os"}),
        ("auto_mapping", 5),
        ("use_dora", "yes"),
        ("base_model_name_or_path", 5),
    ],
)
def test_an_invalid_setting_of_an_adapter_is_an_error_that_names_it(adapter: Path, key: str, value: object) -> None:
    change(adapter / CONFIG, **{key: value})
    with raises(ModelError, "model.adapter_config_invalid") as caught:
        check_adapter(adapter)
    assert caught.problem.place == f"{adapter / CONFIG}: {key}"


@pytest.mark.parametrize(("text", "code"), [("{", "not_json"), ("null", "not_object"), ("[" * 100_000, "not_json")])
def test_an_adapter_configuration_must_be_an_object(adapter: Path, text: str, code: str) -> None:
    (adapter / CONFIG).write_text(text)
    with raises(ModelError, f"model.adapter_config_{code}"):
        read_adapter_config(adapter)


def test_the_rank_must_be_that_of_the_weights(adapter: Path) -> None:
    change(adapter / CONFIG, r=5)
    with raises(ModelError, "model.adapter_rank_differs") as caught:
        check_adapter(adapter)
    assert "'r': 5" in str(caught.problem.value)


def test_an_adapter_that_peft_would_use_in_part_is_an_error(adapter: Path) -> None:
    change(adapter / CONFIG, target_modules=["down_proj"])
    with raises(ModelError, "model.adapter_not_loadable") as caught:
        lora.reload(load_model(str(tiny.FOLDER), Model(name="tiny")), adapter, trainable=False)
    assert "without an adapter" in str(caught.problem.value)


def test_a_regular_expression_without_end_is_stopped(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_config, "MATCH_SECONDS", 1)
    change(adapter / CONFIG, target_modules=r"(\w+\.?)+#")
    with raises(ModelError, "model.adapter_config_invalid"):
        check_adapter(adapter)


@pytest.mark.parametrize("library", ["transformers.models.gemma3.modeling_gemma3", "unsloth_compiled_module_gemma3"])
def test_the_libraries_that_peft_and_unsloth_write_are_accepted(adapter: Path, library: str) -> None:
    mapping = {"base_model_class": "Gemma3ForConditionalGeneration", "parent_library": library, "unsloth_fixed": True}
    change(adapter / CONFIG, auto_mapping=mapping, target_modules=r"(?:.*?(?:language|text).*?\.q_proj)|(?:x\.\d+)")
    found = check_adapter(adapter).auto_mapping
    assert found is not None
    assert found.parent_library == library


def test_the_defaults_of_the_installed_peft_are_accepted(adapter: Path) -> None:
    """A version of peft with other defaults must not make its own adapters invalid."""
    LoraConfig(r=4, target_modules=["q_proj"]).save_pretrained(str(adapter))
    check_adapter(adapter)


def test_a_setting_of_a_newer_peft_is_ignored_with_a_warning(adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(adapter / CONFIG, setting_of_the_future=1)
    lora.warn_ignored(adapter, check_adapter(adapter))
    (warned,) = warnings_in(caplog)
    assert (warned.code, warned.value) == ("model.adapter_settings_ignored", ["setting_of_the_future"])


def test_names_in_a_saved_adapter_are_sorted(backend: Backend, saved: Path, tmp_path: Path) -> None:
    """peft keeps them in sets, whose order differs between processes."""
    backend.save(backend.load(small_recipe(tmp_path), saved, trainable=True), tmp_path / "again")
    first, again = ((folder / CONFIG).read_bytes() for folder in (saved, tmp_path / "again"))
    names = json.loads(first)["target_modules"]
    assert len(names) > 3
    assert names == sorted(names)
    assert first == again


def test_a_plan_checks_the_adapter_that_training_starts_from(adapter: Path, model: Path) -> None:
    found = list(check_start(Model(name="tiny", adapter=adapter)))
    assert found == []
    change(adapter / CONFIG, r=5)
    (rank,) = check_start(Model(name="tiny", adapter=adapter))
    assert (rank.code, rank.certain) == ("model.adapter_rank_differs", True)
    (model / SINGLE).write_bytes(b"")
    (weights,) = check_start(Model(name="tiny", adapter=model))
    assert weights.code == "model.weights_damaged"
    shutil.copy(adapter / CONFIG, model)
    base = find_base(Model(name=str(model)))
    assert (base.state, base.code) == ("missing", "model.name_is_adapter")


def test_the_header_of_a_safetensors_file_has_the_shapes(adapter: Path) -> None:
    shapes = tensor_shapes(adapter / ADAPTER)
    assert shapes == {name: tuple(value.shape) for name, value in load_file(adapter / ADAPTER).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_an_error_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its manifest fits: who can write the state can write the manifest too."""
    monkeypatch.setattr(resume, "skip_reason", lambda checkpoint: None)
    with context_of(only("sft", tmp_path)) as context:
        train_sft(context)
        first, last = resume.checkpoints(context.run.stage_folder("sft"))
        shutil.rmtree(last)
        (first / name).write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
        with raises(TrainingError, "training.checkpoint_not_plain_data") as caught:
            train_sft(context)
    assert caught.problem.place == str(first)
    assert not (tmp_path / "ran").exists()
