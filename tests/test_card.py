"""Model cards: written from the results of the run, read by the Hub's own parser, without patients and paths."""

import json
import re
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData, constants
from jinja2 import UndefinedError

from tests.helpers.exports import export_of, make_gguf, merged_of, verified
from tests.helpers.recipes import load_recipe
from tests.helpers.training import small_recipe
from toolkit import tiny
from toolkit.data.result import DataResult
from toolkit.evaluation.results import EvaluationResult
from toolkit.exporting.card_template import code, fenced, render_card, table
from toolkit.exporting.licence import licence_of
from toolkit.exporting.model_card import CardFacts, model_card, read_facts
from toolkit.exporting.public_names import public_recipe, scrub
from toolkit.exporting.results import AdapterExport, GgufFile, MergedExport
from toolkit.exporting.serving import Serving
from toolkit.models.image_limits import PixelLimit
from toolkit.models.model_paths import public_name
from toolkit.pipeline import run_recipe
from toolkit.pipeline.existing_run import export_again
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe, SyntheticData
from toolkit.runfolder import RunFolder, find_run, read_json
from toolkit.tasks.mcq.synthetic import write_chest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PATIENT = "MRN-4815162342"
TOKEN = "hf_" + "PlantedPlantedPlanted"
USER = "anna_kowalski"
REWARD = "def short(sample, answer):\n    return 1.0\n"


SERVING = Serving("planted", "basis", 256, 16, 1, 4, False, ("<end_of_turn>",), None)


@dataclass(frozen=True)
class Planted:
    """A run in a home folder, about patients whose numbers are in rows, file names and columns."""

    recipe: Recipe
    run: RunFolder
    home: Path

    def folder(self, name: str) -> Path:
        return self.run.path / "stages/export" / name

    def card(self, name: str = "merged") -> str:
        return (self.folder(name) / "README.md").read_text(encoding="utf-8")

    def evaluation(self) -> EvaluationResult:
        return self.run.result("evaluate-sft", EvaluationResult)

    def merged(self) -> MergedExport:
        return merged_of(export_of(self.run))

    def facts(self) -> CardFacts:
        weights = self.run.path / export_of(self.run).weights
        return read_facts(self.run, self.recipe, weights, self.merged(), SERVING)


def write_wards(folder: Path) -> dict[str, Path]:
    """Write synthetic X-rays whose patients have numbers, one of them in both splits, and one unusable row."""
    files = write_chest(folder, SyntheticData(kind="chest", train=24, test=40, size=64), 1)
    images = sorted((folder / "images").iterdir())
    prefix = images[0].stem.rstrip("0123456789")
    for image in images:
        image.rename(image.with_name(image.name.replace(prefix, PATIENT)))
    for file in files.values():
        text = file.read_text(encoding="utf-8").replace(prefix, PATIENT)
        rows = json.loads(text)
        patients = {
            name: number for number, name in enumerate(dict.fromkeys(row["PatientID"] for row in rows.values()))
        }
        for row in rows.values():
            row["Floor"] = f"floor {patients[row['PatientID']]}"
        if file.stem == "train":
            first = next(iter(rows.values()))
            first["PatientID"] = f"{PATIENT}000012"  # the first patient of the test rows
            next(row for row in rows.values() if row is not first)["correct_answer"] = "Z"
        file.write_text(json.dumps(rows), encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    home = tmp_path_factory.mktemp("home") / USER
    (home / "models").mkdir(parents=True)
    for file in tiny.FOLDER.iterdir():
        (home / "models" / "basis").mkdir(exist_ok=True)
        (home / "models" / "basis" / file.name).write_bytes(file.read_bytes())
    files = write_wards(home / "wards")
    (home / "own.py").write_text(REWARD, encoding="utf-8")
    tables: dict[str, dict[str, Any]] = {
        "model": {"name": str(home / "models/basis")},
        "data": {
            "synthetic": None,
            "train": str(files["train"]),
            "test": str(files["test"]),
            "image_root": str(home / "wards"),
            "group": "PatientID",
            "on_leak": "report",
            "max_dropped": 0.1,
        },
        "prompt": {"system": f"My key is {TOKEN}, my notes are in {home}/notes.txt."},
        "rewards": {"custom": (f"{home / 'own.py'}:short",)},
        "sft": {"max_steps": 2},
        "evaluate": {"before": False, "by": ("PatientSex", "Floor")},
        "export": {"to": ("adapter", "merged"), "verify": 2},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("USER", USER)
        patch.setenv("HF_TOKEN", TOKEN)
        recipe = small_recipe(home, tables, "planted").model_copy(update={"grpo": None})
        run_recipe(recipe, STAGES)
        yield Planted(recipe, find_run(recipe.run_folder), home)


def test_the_hubs_own_parser_reads_the_header_and_gives_the_scores_of_these_weights(planted: Planted) -> None:
    card = ModelCard.load(planted.folder("merged") / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert {"mcq", "sft", "lora", "merged", "medical"} <= set(card.data.tags or ())
    assert card.data.eval_results is not None
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        name: round(score.value.value or 0.0, 4) for name, score in planted.evaluation().scores.items()
    }
    assert card.data.eval_results[0].metric_args["n"] == 40
    # The name of a folder is no repository, and the licence of its files is unknown.
    assert (card.data.base_model, card.data.license) == (None, None)
    assert "unknown to the program that wrote this card" in planted.card()


def test_nothing_of_patients_places_users_or_tokens_is_in_any_file(planted: Planted) -> None:
    words = [PATIENT, TOKEN, USER, str(planted.home), str(planted.run.path), socket.gethostname(), str(Path.cwd())]
    predictions = planted.run.path / "stages/evaluate-sft/predictions.jsonl"
    assert PATIENT in predictions.read_text(encoding="utf-8")  # so the card could have had them too
    assert PATIENT not in (planted.run.path / "stages/data/done.json").read_text(encoding="utf-8")
    for name in ("adapter", "merged"):
        for file in planted.folder(name).rglob("*"):
            content = file.read_bytes()
            found = [word for word in words if len(word) > 3 and word.encode() in content]
            assert found == [], file
    assert read_json(planted.folder("adapter") / "adapter_config.json")["base_model_name_or_path"] == "basis"


def test_the_cards_own_code_loads_the_adapter_and_the_merged_weights_alike(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test runs the code of the card, with the folder of the base instead of its name."""
    logits = []
    for name in ("adapter", "merged"):
        (snippet,) = re.findall(r"```python\n(.*?)```", planted.card(name), re.DOTALL)
        monkeypatch.chdir(planted.folder(name))
        names: dict[str, Any] = {}
        exec(snippet.replace("'basis'", repr(str(planted.home / "models/basis"))), names)
        text = "<start_of_turn>user\nWhich side?<end_of_turn>\n<start_of_turn>model\n"
        inputs = names["processor"](text=text, return_tensors="pt")
        with torch.inference_mode():
            logits.append(names["model"].float()(**inputs).logits)
    # The base is stored in 16 bits. With the adapter it is loaded in 16 bits, and merged weights have 32.
    assert torch.allclose(logits[0], logits[1], atol=0.05)
    assert logits[0].std() > 0.1


def test_dropped_rows_and_leaks_are_counted(planted: Planted) -> None:
    card = planted.card()
    result = planted.run.result("data", DataResult)
    assert f"| train | {result.rows['train']} |" in card
    assert [one.count for one in result.dropped] == [1]
    assert f"1 rows were dropped: {result.dropped[0].reason}" in card
    assert "**Leak:** 1 groups (patients, lesions or images) of test are in train too" in card
    assert result.leaks[0].kind == "group"
    fingerprints = read_json(planted.run.run_file)["fingerprints"]
    assert all(f"`{digest}`" in card for digest in fingerprints.values())


def test_every_row_of_the_results_is_in_the_card_with_its_interval(planted: Planted) -> None:
    card, rows = planted.card(), read_json(planted.run.results_file)["rows"]
    assert [row["label"] for row in rows] == ["majority baseline", "after SFT"]
    for row in rows:
        (line,) = re.findall(rf"^\| {row['label']} \| 40 \| ([\d.]+) % \[([\d.]+) to ([\d.]+)\]", card, re.MULTILINE)
        expected = [100 * row["estimate"][name] for name in ("value", "low", "high")]
        assert [float(number) for number in line] == pytest.approx(expected, abs=0.05)
    assert "**These weights were not shown to be better than the majority baseline**" in card


def test_subgroups_are_shown_and_single_patients_are_not(planted: Planted) -> None:
    card = planted.card()
    summary = planted.evaluation().summary
    assert len(summary.by["Floor"]) == 20
    for value, found in summary.by["PatientSex"].items():
        assert f"| {value} | {found.n} |" in card
    assert "Floor: 20 values with fewer than 5 patients, lesions or images are hidden." in card
    evaluation = replace(planted.evaluation(), summary=replace(summary, not_found=("Scanner",)))
    other = str(model_card(replace(planted.facts(), evaluation=evaluation)))
    assert "Subgroups by Scanner: the data has no such column." in other


def test_the_recipe_in_the_card_is_the_runs_with_names_for_paths(planted: Planted) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", planted.card(), re.DOTALL)
    shown = tomllib.loads(text)
    own = planted.recipe.model_dump(mode="json", exclude_none=True)
    assert shown["sft"] == own["sft"]
    assert (shown["model"]["name"], shown["data"]["train"]) == ("basis", "train.json")
    assert shown["rewards"]["custom"] == ["own.py:short"]
    assert "image_root" not in shown["data"]
    assert "My key is [hidden]" in shown["prompt"]["system"]


def test_the_card_of_a_run_is_the_same_every_time(planted: Planted) -> None:
    before = planted.card()
    assert str(model_card(planted.facts())) == str(model_card(planted.facts()))
    again = export_again(planted.run.path, STAGES, ['export.to=["merged"]'])
    assert verified(merged_of(again)).samples == 2
    assert planted.card() == before


def test_the_card_says_what_was_not_verified(planted: Planted) -> None:
    facts = planted.facts()
    unverified = str(model_card(replace(facts, export=replace(planted.merged(), verification=None))))
    assert "**It is not verified.** These files were not reloaded" in unverified
    assert "**These files themselves:** they were not reloaded" in unverified
    not_evaluated = str(model_card(replace(facts, evaluation=None)))
    assert "**These weights on held-out questions:** they were not evaluated." in not_evaluated
    assert "model-index" not in not_evaluated
    assert "No row is that of these weights" in not_evaluated
    assert "model-index" in str(model_card(facts))


def test_each_quantization_is_a_row_with_its_verification(planted: Planted) -> None:
    verification = verified(planted.merged())
    files = {
        "f16": GgufFile("a-f16.gguf", 12.5, 16, verification),
        "q8_0": GgufFile("a-Q8_0.gguf", 6.25, 8.5, replace(verification, differing=1, gap=0.0123)),
    }
    card = str(model_card(replace(planted.facts(), export=make_gguf(files))))
    assert "2 held-out samples with their images: 1 greedy completions were those of the merged weights." in card
    assert re.search(r"^\| f16 \| a-f16.gguf \| 12.5 \| 16 \| 2 \| 0 \|", card, re.MULTILINE)
    assert re.search(r"^\| q8_0 \| a-Q8_0.gguf \| 6.25 \| 8.5 \| 2 \| 1 \| 0.0123 \|", card, re.MULTILINE)


def test_an_adapter_of_the_vision_tower_is_served_as_merged_weights(planted: Planted) -> None:
    export = AdapterExport("stages/export/adapter", 1.0, "", (), 32, planted.merged().verification)
    facts = replace(planted.facts(), export=export, serving=replace(SERVING, vision=True))
    card = str(model_card(facts))
    assert "Serve the merged weights." in card
    assert "```bash" not in card


def test_the_card_describes_the_images_of_training_and_the_limit_of_the_processor(planted: Planted) -> None:
    facts = planted.facts()
    side = facts.recipe.images.max_side
    assert f"at most {side:,} pixels" in str(model_card(facts))
    assert "DICOM" in facts.windowing
    limited = replace(facts, serving=replace(SERVING, limit=PixelLimit(657_667, 4, 3, 28)))
    text = str(model_card(limited))
    assert "657,667 pixels" in text
    assert "3 of 4 sizes" in text
    assert "657,667" not in str(model_card(facts))
    served = replace(limited, export=make_gguf({}))
    assert f"--image-max-tokens {657_667 // 28**2}" in str(model_card(served))


def test_the_card_names_synthetic_data(planted: Planted, tmp_path: Path) -> None:
    facts = replace(planted.facts(), recipe=small_recipe(tmp_path))
    card = str(model_card(facts))
    assert "**Real images:** the model was trained and evaluated on synthetic images only." in card
    assert "generated-data" in ModelCard(card).data["tags"]
    assert "**Real images:**" not in planted.card()


def test_time_and_energy_are_those_of_the_run_or_said_to_be_unknown(planted: Planted) -> None:
    assert "Of data, sft, evaluate-sft:" in planted.card()
    assert re.search(r"^- GPU hours: ", planted.card(), re.MULTILINE)
    unknown = replace(planted.facts(), compute=type(planted.facts().compute)())
    assert "Time, energy and CO2: not measured." in str(model_card(unknown))


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda file: file.stem)
def test_the_licence_of_every_shipped_recipes_model_is_known(file: Path) -> None:
    licence = licence_of(load_recipe(file).model.name)
    assert licence is not None
    assert (licence.id == "other") == (licence.link is not None) == (licence.name is not None)


def test_gated_terms_are_named_with_their_link_and_an_unknown_model_gets_none() -> None:
    medgemma = licence_of("unsloth/medgemma-4b-it-bnb-4bit")
    assert medgemma is not None
    assert medgemma.name == "health-ai-developer-foundations"
    assert licence_of("Qwen/Qwen2.5-VL-7B-Instruct") != licence_of("Qwen/Qwen2.5-VL-3B-Instruct")
    assert licence_of("somebody/else") is None
    assert licence_of("/models/medgemma-4b-it") == licence_of("google/medgemma-4b-it")
    assert licence_of("tiny") is not None
    assert licence_of("/models/tiny") is None


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("google/medgemma-4b-it", "google/medgemma-4b-it"),
        ("tiny", "tiny"),
        (str(tiny.FOLDER), "tiny"),
        ("/home/anna/models/basis", "basis"),
        ("~/models/basis/", "basis"),
        ("../earlier", "earlier"),
        (r"C:\Users\anna\basis", "basis"),
        ("/home/anna/runs/first/stages/sft/weights", "first"),
        ("../first/stages/export/adapter", "first"),
        ("/home/anna/stages/rows.json", "rows.json"),  # a folder of this name alone is no run
    ],
)
def test_the_public_name_of_a_model_is_not_a_path(source: str, name: str) -> None:
    assert public_name(source) == name


def test_a_recipe_from_the_hub_keeps_its_names(tmp_path: Path) -> None:
    data = {"synthetic": None, "train": "hub:flaviagiammarino/vqa-rad#train", "task": "vqa"}
    shown = tomllib.loads(public_recipe(small_recipe(tmp_path, {"data": data})))
    assert shown["data"]["train"] == "hub:flaviagiammarino/vqa-rad#train"
    assert str(tmp_path) not in json.dumps(shown)


def test_a_path_is_hidden_only_where_it_ends() -> None:
    assert scrub("in /data/one/x, not /data/one-more", Path("/data/one")) == "in [path]/x, not /data/one-more"


def test_a_cell_cannot_break_its_table() -> None:
    assert table(["a", "b"], [["x|y\n<b>", "1"]]).splitlines()[2] == r"| x\|y \<b\> | 1 |"


def test_backticks_end_neither_inline_code_nor_a_code_block() -> None:
    assert code("model") == "`model`"
    assert code("a`b\n``c") == "``` a`b ``c ```"
    assert fenced("```\nx\n```", "toml") == "````toml\n```\nx\n```\n````"


def test_a_template_escapes_its_values_and_rejects_missing_ones(tmp_path: Path) -> None:
    template = tmp_path / "card.md.jinja"
    template.write_text("# {{ name }}\n\n{% macro bold(text) %}**{{ text }}**{% endmacro %}{{ bold(name) }}\n")
    card = render_card(template, ModelCardData(model_name="a: 'b'\n---"), name="<b>*x*\n# y & [z](http://a)")
    escaped = r"\<b\>\*x\* # y & \[z\](http://a)"
    assert str(card).endswith(f"\n---\n\n# {escaped}\n\n**{escaped}**\n")
    with pytest.raises(UndefinedError):
        render_card(template, ModelCardData())


def test_the_card_needs_no_network() -> None:
    assert constants.is_offline_mode()
