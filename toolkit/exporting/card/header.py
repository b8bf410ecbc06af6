"""The YAML header of the model card."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from toolkit.exporting.card.facts import CardFacts
from toolkit.exporting.card.licence import licence_of
from toolkit.exporting.public_names import is_hub_name
from toolkit.recipe import Recipe

LIBRARIES: Mapping[str, str] = {"adapter": "peft", "merged": "transformers", "gguf": "llama.cpp"}
RELATIONS: Mapping[str, str] = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}
"""Format -> its relation to the base model on the Hub."""
TASK = "image-text-to-text"


def header(facts: CardFacts) -> ModelCardData:
    """Return base model, licence, library, tags and results. Unknown fields are left out.

    The results are those of the run's weights. The card states their precision.
    """
    licence = licence_of(facts.recipe.model.name)
    on_hub = is_hub_name(facts.base)
    results = _results(facts)
    more: dict[str, Any] = (
        {"base_model_relation": RELATIONS[facts.format_name]} if on_hub and facts.format_name in RELATIONS else {}
    )
    return ModelCardData(
        base_model=facts.base if on_hub else None,
        library_name=LIBRARIES.get(facts.format_name),
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        pipeline_tag=TASK,
        tags=_tags(facts),
        datasets=_hub_data(facts.recipe) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=facts.name if results else None,
        eval_results=results or None,
        **more,
    )


def _tags(facts: CardFacts) -> list[str]:
    tuning = "lora" if facts.recipe.model.tuning == "lora" else "full-fine-tuning"
    synthetic = ["generated-data"] if facts.recipe.dataset.synthetic else []
    return ["medical", "vision-language", facts.recipe.task.name, *facts.trained, tuning, facts.format_name, *synthetic]


def _results(facts: CardFacts) -> list[EvalResult]:
    found = facts.evaluation
    if found is None:
        return []
    scores = {found["score"]: found, **found["also"]}
    values = {score: record["value"] for score, record in scores.items() if record["value"]["value"] is not None}
    return [_result(facts, found["split"], score, value) for score, value in values.items()]


def _result(facts: CardFacts, split: str, score: str, value: Mapping[str, Any]) -> EvalResult:
    hub = _hub_data(facts.recipe)
    return EvalResult(
        task_type=TASK,
        task_name=facts.recipe.task.name,
        dataset_type=hub[-1] if hub else "custom",
        dataset_name=f"held-out questions ({split})",
        dataset_split=split,
        metric_type=score.partition(" ")[0],
        metric_name=score,
        metric_value=round(value["value"], 4),
        metric_args={"n": value["n"], "low": _rounded(value["low"]), "high": _rounded(value["high"])},
    )


def _hub_data(recipe: Recipe) -> list[str]:
    """Return the datasets on the Hub that the recipe reads."""
    sources = [recipe.dataset.train, recipe.dataset.validation, recipe.dataset.test]
    hub = [text.removeprefix("hub:").partition("#")[0] for text in sources if text and text.startswith("hub:")]
    return list(dict.fromkeys(hub))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
