"""Results of our calls with the installed Unsloth and TRL, for tests/test_unsloth_contract.py in a separate process.

Unsloth is imported first, on the simulated GPU of ``unsloth_cpu``: a T4, so that float32 training stays in float32.
Prints one JSON object, from the name of a check to its result.
"""

import dataclasses
import functools
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

from tests.unsloth_cpu.gpu import GPUS
from tests.unsloth_cpu.substitutes import install

install(GPUS["T4"])
os.environ["UNSLOTH_COMPILE_LOCATION"] = str(Path(sys.argv[1]) / "compiled")

import unsloth  # noqa: F401

# isort: split

import torch
import trl
from unsloth import FastVisionModel
from unsloth.models._utils import apply_accepts_loss_kwargs_fix
from unsloth.models.loader_utils import get_model_name
from unsloth.models.vision import VLLM_SUPPORTED_VLM, FastBaseModel

from tests.helpers.training import FEW_STEPS, context_of, length_reward, small_recipe
from toolkit.errors import ToolkitError
from toolkit.evaluation.stage_context import Context
from toolkit.models import families
from toolkit.models.backend import Policy, Row, TrainerTraits, TrainingJob
from toolkit.models.hf import HfBackend
from toolkit.models.oom import Sizes, recipe_sizes
from toolkit.models.prompts import Prompts
from toolkit.models.unsloth import options
from toolkit.models.unsloth.preload import unsupported_reasons
from toolkit.recipe import Recipe
from toolkit.training.grpo import build_grpo, grpo_settings, make_reward_scorer
from toolkit.training.grpo_trainer import RolloutTrainer
from toolkit.training.preflight import check_images_used
from toolkit.training.rewards import recipe_rewards
from toolkit.training.sft import build_sft, sft_settings

FOLDER = Path(sys.argv[1])
IN_FLOAT32 = {"model": {"precision": "32bit"}}


def unbound(function: Any, *args: Any, **keywords: Any) -> str | None:
    """Return the reason why a call does not match the signature, or None."""
    try:
        inspect.signature(function).bind(*args, **keywords)
    except TypeError as error:
        return str(error)
    named = {name for name, kind in inspect.signature(function).parameters.items() if kind.kind != kind.VAR_KEYWORD}
    swallowed = set(keywords) - named  # **kwargs accepts any name, even an unknown one
    return f"not named: {sorted(swallowed)}" if swallowed - {"attn_implementation"} else None


def loading() -> dict[str, Any]:
    found = {}
    for precision in ("auto", "4bit", "8bit", "16bit"):
        recipe = small_recipe(FOLDER, {"model": {"name": "a/b", "precision": precision, "revision": "main"}}, "load")
        for loaded in (options.Loading(True), options.Loading(False)):
            keywords = options.load_options(recipe, "a/b", loaded)
            flags = [keywords[f"load_in_{bits}bit"] for bits in (4, 8, 16)]
            found[f"{precision} {loaded}"] = unbound(FastVisionModel.from_pretrained, **keywords), sum(map(bool, flags))
    by_vllm = small_recipe(FOLDER, {"model": {"attention": "sdpa"}, "grpo": {"rollouts": "vllm"}}, "vllm")
    keywords = options.load_options(by_vllm, "a/b", options.Loading(True))
    found["vllm"] = unbound(FastVisionModel.from_pretrained, **keywords), 1
    return found


def adapters() -> dict[str, Any]:
    assert "FastBaseModel.get_peft_model(model, *args, **kwargs)" in inspect.getsource(FastVisionModel.get_peft_model)
    from peft import LoraConfig

    # ``use_dora`` is not one of its parameters, so it must reach LoraConfig with the other keywords.
    assert "inspect.signature(LoraConfig).parameters" in inspect.getsource(FastBaseModel.get_peft_model)
    assert "use_dora" in inspect.signature(LoraConfig).parameters
    found = {}
    for vision in (False, True):
        recipe = small_recipe(FOLDER, {"lora": {"vision": vision}}, f"lora-{vision}")
        keywords = dict(options.lora_options(recipe, ["model.layers.0.self_attn.q_proj"]))
        assert keywords.pop("use_dora") is False
        # FastVisionModel passes all of them on to this function.
        found[f"vision {vision}"] = unbound(FastBaseModel.get_peft_model, object(), **keywords)
    return found


def layers() -> dict[str, Any]:
    """Compare Unsloth's choice of layers by the last part of their names with that of the hf backend."""
    import re

    from transformers import AutoModelForImageTextToText
    from unsloth_zoo.peft_utils import get_peft_regex

    from toolkit import tiny
    from toolkit.models import lora as adapter

    model = AutoModelForImageTextToText.from_pretrained(tiny.FOLDER)
    recipe = small_recipe(FOLDER, name="layers")
    keywords = options.lora_options(recipe, adapter.layers(model, recipe.lora))
    pattern = get_peft_regex(
        model,
        **{name: value for name, value in keywords.items() if name.startswith("finetune_")},
        target_modules=keywords["target_modules"],
    )
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    theirs = {name for name in linear if re.fullmatch(pattern, name)}
    return {"theirs": len(theirs), "differing": sorted(theirs ^ set(adapter.layers(model, recipe.lora)))[:5]}


def settings() -> dict[str, Any]:
    """Return our settings that the configurations do not have, and values that they rewrite."""
    found = {}
    sections: dict[str, dict[str, Any]] = {
        "as it is": {},
        "dapo, nothing masked": {"loss": "dapo", "mask_truncated": False},
        "one by one": {"micro_batch": 1, "prompts_per_step": 2, "generations": 4},
        "dr_grpo": {"loss": "dr_grpo", "scale_rewards": "none"},
        "bnpo with a KL term": {"loss": "bnpo", "beta": 0.04, "scale_rewards": "batch"},
        "cispo": {"loss": "cispo", "epsilon_high": 5.0},
        "gspo": {"loss": "grpo", "importance": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        "checkpointed": {"gradient_checkpointing": True},
    }
    for name, section in sections.items():
        checkpointed = {"gradient_checkpointing": section.get("gradient_checkpointing", False)}
        recipe = small_recipe(FOLDER, {"grpo": section, "sft": checkpointed}, "settings")
        policy = HfBackend().load_without_model(recipe)
        job = TrainingJob(recipe, no_row, 4, FOLDER)
        sft = {**sft_settings(job), **options.sft_changes(policy, recipe)}
        grpo = {**grpo_settings(policy, job), **options.grpo_changes(policy, recipe)}
        found[name] = {"sft": rewritten(trl.SFTConfig, sft), "grpo": rewritten(trl.GRPOConfig, grpo)}
    return found


def no_row(number: int) -> Row:
    raise AssertionError(f"row {number} is not read")


def rewritten(config: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(config)}
    built = config(**wanted)
    changed = {
        name: [repr(value), repr(getattr(built, name))]
        for name, value in wanted.items()
        if name not in ("output_dir", "report_to") and getattr(built, name) != value
    }
    return {"unknown": sorted(set(wanted) - known), "changed": changed}


def rejected() -> dict[str, Any]:
    """Return the rejected settings, and the values to which Unsloth would rewrite them."""
    recipe = small_recipe(FOLDER, {"grpo": {"loss": "dr_grpo"}}, "rejected")
    policy, job = HfBackend().load_without_model(recipe), TrainingJob(recipe, no_row, 4, FOLDER)
    grpo = {**grpo_settings(policy, job), **options.grpo_changes(policy, recipe)}
    return {"reasons": unsupported_reasons(recipe), **rewritten(trl.GRPOConfig, grpo)}


def trainers() -> dict[str, Any]:
    """Check the methods of the generated trainer that ``RolloutTrainer`` overrides and calls."""
    generated = RolloutTrainer.__mro__[1]
    log_probs = generated._get_per_token_logps_and_entropies
    source = inspect.getsource(sys.modules[generated.__module__])
    return {
        "generated": generated.__name__,
        "lacking": [
            name
            for name in (
                "_get_train_sampler",
                "_generate_and_score_completions",
                "_get_per_token_logps_and_entropies",
                "_generate_single_turn",
            )
            if not hasattr(generated, name)
        ],
        "log-probabilities": unbound(log_probs, object(), None, None, None, 1, 1),
        "called": [
            call
            for call in ("self._generate_and_score_completions(", "self._get_per_token_logps_and_entropies(")
            if call not in source
        ],
        "inference": [hasattr(FastVisionModel, "for_inference"), hasattr(FastVisionModel, "for_training")],
        "modes": [unbound(FastBaseModel.for_inference, object()), unbound(FastBaseModel.for_training, object())],
    }


def as_on_a_gpu(recipe: Recipe, weights: Path | None = None) -> Policy:
    policy = HfBackend().load(recipe, weights, trainable=True)
    policy.model._unsloth_forced_float32 = True  # so that its trainers keep float32
    apply_accepts_loss_kwargs_fix(policy.model)
    for name in ("for_training", "for_inference"):  # as after loading with Unsloth
        setattr(policy.model, name, functools.partial(getattr(FastBaseModel, name), policy.model))
    return policy


class GeneratedTrainers(HfBackend):
    """The hf backend with Unsloth's trainers, as the Unsloth backend requests them."""

    def prepare_training(self, policy: Policy, recipe: Recipe, stage: Literal["sft", "dpo", "grpo"]) -> TrainerTraits:
        changes = options.sft_changes if stage == "sft" else options.grpo_changes
        return TrainerTraits(changes(policy, recipe), replaces_trl=True, count_flops=False, loss_by_tokens=None)


def trained(context: Context) -> dict[str, Any]:
    """Train the tiny model with both generated trainers, with our labels, rewards and images."""
    recipe, prompts, samples = context.recipe, Prompts.of(context.recipe, context.images), context.data.train
    policy = as_on_a_gpu(recipe)
    check_images_used(HfBackend(), policy, prompts, samples)
    sft = TrainingJob(recipe, prompts.rows(samples, answer=True), len(samples), FOLDER / "sft")
    trainer = build_sft(GeneratedTrainers(), policy, sft)
    trainer.train()
    by_tokens = bool(trainer.model_accepts_loss_kwargs)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    scorer = make_reward_scorer(prompts.task, recipe_rewards(recipe), samples, 4)
    grpo = TrainingJob(recipe, prompts.rows(samples), len(samples), FOLDER / "grpo", scorer=scorer)
    aligned = watch_token_types(policy)
    before = {name: value.clone() for name, value in policy.model.named_parameters() if value.requires_grad}
    trainer = build_grpo(GeneratedTrainers(), policy, grpo)
    trainer.train()
    moved = [not torch.equal(value, dict(policy.model.named_parameters())[name]) for name, value in before.items()]
    lines = [line for line in trainer.state.log_history if "reward" in line]
    return {
        "sft": losses,
        "by tokens": by_tokens,
        "grpo": [line["reward"] for line in lines],
        "moved": any(moved),
        "image tokens": len(aligned) > 0 and all(aligned),
        "side": policy.processor.tokenizer.padding_side,
    }


def watch_token_types(policy: Policy) -> list[bool]:
    """Record for each rollout whether Gemma's mask of image tokens is aligned with the image tokens."""
    aligned: list[bool] = []
    generate = RolloutTrainer._generate_and_score_completions

    def look(self: Any, inputs: Any) -> Any:
        batch = generate(self, inputs)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        aligned.append(torch.equal((ids == policy.processor.tokenizer.image_token_id).long(), batch["token_type_ids"]))
        return batch

    RolloutTrainer._generate_and_score_completions = look  # type: ignore[method-assign]
    return aligned


def blind(context: Context) -> str:
    """Return the error for a model whose pixels are lost, as in unsloth#11031."""
    recipe, prompts, samples = context.recipe, Prompts.of(context.recipe, context.images), context.data.train
    policy = as_on_a_gpu(recipe)
    whole = policy.model.get_base_model()
    seeing = whole.model.get_image_features
    whole.model.get_image_features = lambda pixels, **rest: seeing(torch.zeros_like(pixels), **rest)
    scorer = make_reward_scorer(prompts.task, recipe_rewards(recipe), samples, 4)
    grpo = TrainingJob(recipe, prompts.rows(samples), len(samples), FOLDER / "blind", scorer=scorer)
    try:
        build_grpo(GeneratedTrainers(), policy, grpo).train()
    except ToolkitError as error:
        return error.code
    return "trained without its images"


def small_sizes() -> dict[str, Any]:
    """Make a step of both generated trainers with the recipe's sizes and with those of OOM recovery."""
    found = {}
    for stage, loss in (
        ("sft", "dapo"),
        ("grpo", "grpo"),
        ("grpo", "bnpo"),
    ):  # normalised by the step's tokens, by rows, by the micro-batch's tokens
        section = {"max_steps": 1, "micro_batch": 4, "loss": loss, "scale_rewards": "none"}
        tables = {**FEW_STEPS, **IN_FLOAT32, "grpo": section, "rewards": length_reward(FOLDER)}
        with context_of(small_recipe(FOLDER, tables, f"sizes-{stage}-{loss}")) as context:
            sizes = recipe_sizes(context.recipe, stage)
            plain, small = (step_with(context, stage, one) for one in (sizes, sizes.smaller()))
        found[f"{stage}, {loss}"] = {"plain": plain, "small": small}
    return found


def step_with(context: Context, stage: str, sizes: Sizes | None) -> dict[str, float]:
    """Make one step with a new policy. ``by pass``: each pass has equal weight, whatever its number of tokens."""
    recipe, prompts, samples = context.recipe, Prompts.of(context.recipe, context.images), context.data.train
    policy = as_on_a_gpu(recipe)
    scorer = make_reward_scorer(prompts.task, recipe_rewards(recipe), samples, 4)
    rows = prompts.rows(samples, answer=stage == "sft")
    job = TrainingJob(recipe, rows, len(samples), FOLDER / f"{stage}-{sizes}", scorer=scorer, sizes=sizes)
    trainer = (build_sft if stage == "sft" else build_grpo)(GeneratedTrainers(), policy, job)
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    return {
        "loss": line["loss"],
        "gradient": line["grad_norm"],
        "passes": trainer.args.gradient_accumulation_steps,
        "by pass": stage == "sft" and not trainer.model_accepts_loss_kwargs,
    }


def main() -> None:
    found: dict[str, Any] = {
        "loading": loading(),
        "adapters": adapters(),
        "layers": layers(),
        "settings": settings(),
        "rejected": rejected(),
        "trainers": trainers(),
        "vllm": sorted(families.VLLM - set(VLLM_SUPPORTED_VLM)),
        "names": [get_model_name("google/medgemma-4b-it", load_in_4bit=bits) for bits in (True, False)],
    }
    with context_of(
        small_recipe(FOLDER, {**FEW_STEPS, **IN_FLOAT32, "rewards": length_reward(FOLDER)}, "trained")
    ) as context:
        found["trained"] = trained(context)
        found["blind"] = blind(context)
    found["sizes"] = small_sizes()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
