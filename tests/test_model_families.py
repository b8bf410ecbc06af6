"""Model families: adapted layers, prompts that close their reasoning, token counts, chat templates and packages."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
import trl
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from tests.helpers.plans import codes, one_of, write_xrays
from tests.helpers.problems import raises
from tests.helpers.tiny_families import TINY, build_tiny
from tests.helpers.training import recipe_on_files
from toolkit import tiny
from toolkit.data.sample import Turn
from toolkit.errors import ModelError
from toolkit.models import lora
from toolkit.models.chat_template import adds_bos, encode_answer, find_turn_end, open_block, render_prompt, set_thinking
from toolkit.models.earlier_turns import earlier_turns
from toolkit.models.families import FAMILIES, LAYERS, family_of
from toolkit.models.image_tokens import check_image_token, count_tokens
from toolkit.models.messages import conversation, messages_of
from toolkit.models.processor import open_processor
from toolkit.pipeline.plan import plan_language_model
from toolkit.planning.architecture import build_linears
from toolkit.planning.gpu import described_gpu
from toolkit.recipe import Lora, Model, load_recipe
from toolkit.runfolder import read_json, write_json
from toolkit.scoring.regions.coordinates import MODEL_TYPES
from toolkit.tasks import TASKS

TEXT: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
VISION: Mapping[str, Any] = {"hidden_size": 32, "intermediate_size": 48}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "qwen3_5": {
        "model_type": "qwen3_5",
        "text_config": {
            **TEXT,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        "vision_config": {**VISION, "depth": 2, "num_heads": 2, "out_hidden_size": 32},
    },
    "gemma4": {
        "model_type": "gemma4",
        "text_config": {
            **TEXT,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 128,
            "num_kv_shared_layers": 0,
        },
        "vision_config": {
            **VISION,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
        "audio_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
}
GATED_DELTA = {"in_proj_qkv": 3, "in_proj_z": 3, "in_proj_a": 3, "in_proj_b": 3, "out_proj": 3}
"""Three of four layers of Qwen3.5."""
GATES = {"per_layer_input_gate": 4, "per_layer_projection": 4, "per_layer_model_projection": 1}
EXPECTED: Mapping[str, Mapping[str, int]] = {
    "qwen3_5": {**dict.fromkeys(LAYERS[:4], 1), **dict.fromkeys(LAYERS[4:], 4), **GATED_DELTA},
    "gemma4": {**dict.fromkeys(LAYERS, 4), **GATES},
}
"""Last part of a layer's name -> number of adapted layers."""


def meta_model(family: str) -> Any:
    fields = dict(CONFIGS[family])
    config = T.CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def count_names(names: Sequence[str]) -> dict[str, int]:
    last = [name.rpartition(".")[2] for name in names]
    return {name: last.count(name) for name in last}


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_all_linear_reaches_every_layer_of_the_language_model_and_no_tower(family: str) -> None:
    model = meta_model(family)
    found = lora.layers(model, Lora())
    assert count_names(found) == EXPECTED[family]
    assert not [name for name in found if re.search("vision|visual|audio|lm_head", name)]
    listed = lora.layers(model, Lora(targets=LAYERS))
    assert count_names(listed) == {name: EXPECTED[family][name] for name in LAYERS}
    with_vision = lora.layers(model, Lora(vision=True))
    assert with_vision[: len(found)] == found
    assert len(with_vision) > len(found)
    # The plan counts the same layers.
    counted = [one for one in build_linears(CONFIGS[family]) if one.decoder]
    assert {name: sum(one.count for one in counted if one.name == name) for name in EXPECTED[family]} == EXPECTED[
        family
    ]


def test_all_linear_is_the_former_list_for_gemma_3() -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny.FOLDER)
    assert lora.layers(model, Lora()) == lora.layers(model, Lora(targets=LAYERS))


def test_every_family_of_coordinates_is_in_the_table() -> None:
    assert {name for name in MODEL_TYPES if family_of(name) == family_of("unknown")} == set()
    assert family_of("gemma3_text") is FAMILIES["gemma3"]
    assert family_of("gemma3n") is not FAMILIES["gemma3"]


def with_template(name: str) -> Any:
    """Return the tiny processor with a chat template of TRL, which are those of the models on the Hub."""
    processor = AutoProcessor.from_pretrained(tiny.FOLDER)
    processor.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    return processor


THINKING = ("qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "gemma4")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*THINKING, "qwen2_5_vl", "qwen3_vl", "idefics3", "llava_next"])
def test_without_thinking_a_prompt_of_each_family_ends_closed(name: str) -> None:
    processor = with_template(name)
    before = render_prompt(processor, conversation("Is there a mass?", 1))
    set_thinking(processor, False)
    prompt = render_prompt(processor, conversation("Is there a mass?", 1))
    assert open_block(processor) == ""
    assert prompt.count("<think>") == prompt.count("</think>")
    if name in ("qwen3_5_think", "qwen3_6"):
        assert before.endswith("<think>\n")
        assert prompt.endswith("<think>\n\n</think>\n\n")
    else:
        assert prompt == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6"])
def test_with_thinking_an_answer_continues_the_block_that_the_prompt_opens(name: str) -> None:
    processor = with_template(name)
    set_thinking(processor, True)
    end = find_turn_end(processor)
    assert end.opened == "<think>"
    ids = encode_answer(processor, "<think>\nA shadow.</think>Yes", end)
    assert processor.tokenizer.decode(ids[:-1]) == "A shadow.</think>Yes"
    assert end.completed("A shadow.") == "<think>A shadow."


def tokenizer() -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = AutoProcessor.from_pretrained(tiny.FOLDER).tokenizer
    plain = PreTrainedTokenizerFast(
        tokenizer_object=found.backend_tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    plain.add_special_tokens({"additional_special_tokens": ["<image>", "<IMG_ATOM>", "<|image|>"]})
    return plain


TEMPLATE = """{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE
{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
"""A template that ends no turn, like that of LLaVA 1.5."""


def small_processor(name: str) -> Any:
    size = {"height": 56, "width": 56}
    template = TEMPLATE.replace("IMAGE", "<image>")
    if name == "llava":
        image: Any = T.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=size)
        more: dict[str, Any] = {"patch_size": 14, "vision_feature_select_strategy": "full"}
        return T.LlavaProcessor(image, tokenizer(), num_additional_image_tokens=1, chat_template=template, **more)
    if name == "llava_onevision":
        image = T.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[56, 56], [56, 112], [112, 56]])
        video = T.LlavaOnevisionVideoProcessor(size=size)
        more = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "video_token": "<IMG_ATOM>"}
        return T.LlavaOnevisionProcessor(image, tokenizer(), video, chat_template=template, **more)
    if name == "paligemma":
        image = T.SiglipImageProcessor(size=size)
        image.image_seq_length = 16
        return T.PaliGemmaProcessor(image, tokenizer(), chat_template=template)
    if name == "ovis2":
        image = T.Ovis2ImageProcessor(size=size, crop_to_patches=True, max_patches=4)
        return T.Ovis2Processor(image, tokenizer(), image_seq_length=4, chat_template=template)
    image = T.MllamaImageProcessor(size=size, max_image_tiles=2)
    return T.MllamaProcessor(image, tokenizer(), chat_template=TEMPLATE.replace("IMAGE", "<|image|>"))


ROWS: tuple[tuple[tuple[int, int], ...], ...] = (((64, 64),), ((300, 200),), ((40, 120),), ((300, 200), (64, 90)))
"""(width, height) of the images of a row."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "llava_onevision", "paligemma", "ovis2", "mllama"])
def test_counted_tokens_are_those_of_the_models_input(name: str) -> None:
    processor = small_processor(name)
    for sizes in ROWS:
        prompt = render_prompt(processor, conversation("What is shown in this X-ray?", len(sizes)))
        images = [[Image.new("RGB", size) for size in sizes]]
        special = adds_bos(processor, prompt)
        ids = processor(text=[prompt], images=images, add_special_tokens=special, return_tensors="pt")["input_ids"]
        assert count_tokens(processor, prompt, sizes, []).total == ids.shape[1], sizes


@pytest.mark.slow
def test_a_template_without_a_turn_end_uses_the_eos_but_not_for_a_conversation() -> None:
    processor = small_processor("llava")
    end = find_turn_end(processor)
    assert (end.text, end.id) == ("<eos>", processor.tokenizer.eos_token_id)
    assert encode_answer(processor, "Yes", end)[-1] == processor.tokenizer.eos_token_id
    turns = messages_of((Turn("user", "A?"), Turn("assistant", "B"), Turn("user", "C?")), 0)
    with raises(ModelError, "model.chat_template_without_turn_end"):
        earlier_turns(processor, turns, end)


def changed_tiny(folder: Path, template: str | None) -> Path:
    """Return a copy of the tiny model with another chat template, or none."""
    shutil.copytree(tiny.FOLDER, folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def plan(folder: Path, model: Path, *settings: str, gpu: Any = None) -> Any:
    xrays = write_xrays(folder / "xrays") if not (folder / "xrays").exists() else folder / "xrays"
    recipe = folder / "r.toml"
    recipe.write_text(
        f'[run]\nname = "r"\n[model]\nname = "{model}"\n[data]\ntask = "mcq"\ntrain = "{xrays}/train.json"\n[sft]\n'
    )
    return plan_language_model(load_recipe(recipe, settings, tasks=TASKS), gpu)


@pytest.mark.slow
def test_the_plan_reports_a_missing_template_and_takes_that_of_the_recipe(tmp_path: Path) -> None:
    own = (tiny.FOLDER / "chat_template.jinja").read_text()
    model = changed_tiny(tmp_path / "model", None)
    assert "model.chat_template_missing" in codes(plan(tmp_path, model))
    (tmp_path / "own.jinja").write_text(own)
    (tmp_path / "loops.jinja").write_text("{{ 'a' * 9999999999 }}")
    found = plan(tmp_path, model, f"prompt.chat_template={tmp_path}/own.jinja")
    assert not found.certain
    assert found.tokens.exact
    loops = plan(tmp_path, model, f"prompt.chat_template={tmp_path}/loops.jinja")
    assert "model.chat_template_fails" in codes(loops)
    missing = plan(tmp_path, model, f"prompt.chat_template={tmp_path}/none.jinja")
    assert one_of(missing, "recipe.file_missing").place == "[prompt] chat_template"


def test_a_missing_package_of_a_processor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("Package `num2words` is required. Install it with `pip install num2words`.")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", fail)
    with raises(ModelError, "model.library_missing") as caught:
        open_processor(Model(name=str(tiny.FOLDER)))
    assert caught.problem.remedy == "Install it: pip install num2words."


@pytest.mark.slow
def test_the_plan_warns_about_4_bits_for_a_family_that_loses_too_much(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny.FOLDER, model)
    (model / "config.json").write_text(json.dumps(CONFIGS["qwen3_5"]))
    gpu = described_gpu(24)
    assert one_of(plan(tmp_path, model, gpu=gpu), "plan.4bit_discouraged").place == "[model] precision"
    assert "plan.4bit_discouraged" not in codes(plan(tmp_path, model, 'model.precision="16bit"', gpu=gpu))
    assert "plan.4bit_discouraged" not in codes(plan(tmp_path, tiny.FOLDER, gpu=gpu))


@pytest.mark.slow
def test_the_plan_rejects_a_gguf_of_a_family_that_cannot_be_converted(tmp_path: Path) -> None:
    family = next(name for name, one in FAMILIES.items() if one.gguf is False)
    model = tmp_path / "model"
    shutil.copytree(tiny.FOLDER, model)
    fields = json.loads((model / "config.json").read_text())
    export = ('export.to=["gguf"]', 'export.quant=["f16"]')
    assert "export.gguf_family_unsupported" not in codes(plan(tmp_path, model, *export))
    (model / "config.json").write_text(json.dumps({**fields, "model_type": family}))
    assert one_of(plan(tmp_path, model, *export), "export.gguf_family_unsupported").place == "[export] to"


@pytest.mark.slow
def test_the_plan_rejects_training_of_a_family_that_stops(tmp_path: Path) -> None:
    family = next(name for name, one in FAMILIES.items() if one.untrainable)
    model = tmp_path / "model"
    shutil.copytree(tiny.FOLDER, model)
    (model / "config.json").write_text(json.dumps({"model_type": family}))
    assert one_of(plan(tmp_path, model), "model.family_not_trainable").place == "[model] name"


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_a_configuration_with_another_image_token_than_the_processor_is_found(family: str) -> None:
    if not TINY[family].installed:
        pytest.skip(f"the processor needs {TINY[family].package}")
    parts = TINY[family].parts()
    token, other = parts.config.image_token_id, parts.processor.tokenizer.pad_token_id
    check_image_token(parts.processor, token)
    with raises(ModelError, "model.image_token_mismatch") as caught:
        check_image_token(parts.processor, other)
    assert caught.problem.value == other
    if family != "mllama":  # its processor leaves the token as it is
        assert f"{token} ({parts.processor.tokenizer.convert_ids_to_tokens(token)})" in caught.problem.rule


@pytest.mark.slow
def test_a_plan_rejects_a_configuration_with_another_image_token(tmp_path: Path) -> None:
    model = build_tiny("ovis2", tmp_path)
    recipe = recipe_on_files(tmp_path, write_xrays(tmp_path / "xrays", size=64), {"model": {"name": str(model)}})
    assert "model.image_token_mismatch" not in codes(plan_language_model(recipe, None))
    file = model / "config.json"
    fields = read_json(file)
    placeholder = AutoProcessor.from_pretrained(model).image_token_id  # the processor replaces it by another token
    write_json(file, {**fields, "image_token_id": placeholder})
    problem = one_of(plan_language_model(recipe, None), "model.image_token_mismatch")
    assert problem.details.value == placeholder
    assert f"{fields['image_token_id']} (<IMG_ATOM>)" in problem.details.rule
