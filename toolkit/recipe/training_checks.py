"""Rules between keys about training stages, adapters, validation and export. A problem's place is a dotted key."""

from collections.abc import Iterator

from toolkit.errors import Problem
from toolkit.recipe.schema import Recipe


def loss_fits(recipe: Recipe) -> Iterator[Problem]:
    """Check the settings of CISPO, which caps a ratio that is 1 on policy, and of GSPO, which uses the GRPO loss."""
    grpo = recipe.grpo
    if grpo is None:
        return
    if grpo.loss == "cispo" and (grpo.epsilon_high is None or grpo.epsilon_high < 1):
        rule = 'must be at least 1 with loss = "cispo", which caps the ratio at epsilon_high'
        remedy = "Set it to 5, as in arXiv 2506.13585."
        yield Problem("recipe.cispo_cap_too_low", rule, "grpo.epsilon_high", grpo.epsilon_high, remedy)
    if grpo.importance == "sequence" and grpo.loss != "grpo":
        rule, remedy = 'must be "grpo" with importance = "sequence" (GSPO)', 'Set loss = "grpo".'
        yield Problem("recipe.gspo_loss_mismatch", rule, "grpo.loss", grpo.loss, remedy)


def resampling_fits(recipe: Recipe) -> Iterator[Problem]:
    """Check that groups of several rollouts can form one step: their advantages must not depend on other groups."""
    grpo = recipe.grpo
    if grpo is None or not grpo.resample:
        return
    if grpo.scale_rewards == "batch":
        rule = 'must not be "batch" with grpo.resample, because each rollout would have a deviation of its own'
        yield Problem("recipe.resample_scale", rule, "grpo.scale_rewards", "batch", 'Set scale_rewards = "group".')
    if grpo.rollouts == "vllm":
        rule, remedy = 'must be 0 with rollouts = "vllm"', 'Set rollouts = "transformers", or resample = 0.'
        yield Problem("recipe.resample_vllm", rule, "grpo.resample", grpo.resample, remedy)


def checkpoints_are_logged(recipe: Recipe) -> Iterator[Problem]:
    """Check that every checkpoint has a log line. Otherwise a checkpoint could have a loss that is not finite."""
    run = recipe.run
    if run.checkpoint_steps % run.log_steps:
        rule, remedy = f"must divide run.checkpoint_steps (={run.checkpoint_steps})", "Change one of them."
        yield Problem("recipe.log_steps_not_divisor", rule, "run.log_steps", run.log_steps, remedy)


def validation_fits(recipe: Recipe) -> Iterator[Problem]:
    """Check that [validation] has a stage, a split, a metric of that stage, and a log line for each checkpoint."""
    section, run, data = recipe.validation, recipe.run, recipe.dataset
    if section is None:
        return
    stages = {"loss": ("grpo", recipe.grpo), "reward": ("sft", recipe.sft)}
    if not (recipe.sft or recipe.grpo):
        rule, remedy = "must not be set without [sft] or [grpo], which it validates", "Remove [validation]."
        yield Problem("recipe.validation_without_training", rule, "validation", remedy=remedy)
    if data.synthetic is not None and not data.synthetic.validation:
        rule, remedy = "must be at least 1 with [validation]", "Set it to the number of validation rows, such as 64."
        yield Problem("recipe.validation_split_missing", rule, "data.synthetic.validation", 0, remedy)
    without, present = stages.get(section.metric, ("", None))
    if present is not None:
        rule = f"must be one that [{without}] has, and {section.metric} belongs to the other stage"
        yield Problem("recipe.validation_metric", rule, "validation.metric", section.metric, 'Set "auto" or "score".')
    if section.min_improvement and section.patience is None:
        rule, remedy = "has no effect without validation.patience", "Set patience, or remove min_improvement."
        yield Problem("recipe.min_improvement_unused", rule, "validation.min_improvement", remedy=remedy)
    if section.every_steps % run.log_steps:
        rule = f"must be a multiple of run.log_steps (={run.log_steps}), so that each saved step has a log line"
        value = section.every_steps
        yield Problem("recipe.validation_not_logged", rule, "validation.every_steps", value, "Change one of them.")


def learning_rates_fit(recipe: Recipe) -> Iterator[Problem]:
    """Check that only one warmup is set, and that the parts with learning rates of their own are trained."""
    trained = recipe.model.tuning == "full" or recipe.lora.vision
    for name, section in recipe.training.items():
        if section.warmup_steps and section.warmup_fraction:
            rule, remedy = f"must not be set together with {name}.warmup_steps", "Remove one of them."
            yield Problem("recipe.two_warmups", rule, f"{name}.warmup_fraction", section.warmup_fraction, remedy)
        for key in ("vision_learning_rate", "projector_learning_rate"):
            if (rate := getattr(section, key)) is not None and not trained:
                rule = "must not be set, because the vision tower and its projector are not trained"
                remedy = f'Set lora.vision = true or model.tuning = "full", or remove {key}.'
                yield Problem("recipe.learning_rate_unused", rule, f"{name}.{key}", rate, remedy)


def adapter_is_supported(recipe: Recipe) -> Iterator[Problem]:
    """Check that the variants of LoRA suit the tuning and the rollouts."""
    lora = recipe.lora
    for key in ("rslora", "dora"):
        if getattr(lora, key) and recipe.model.tuning == "full":
            rule, remedy = 'must be false with model.tuning = "full", which has no adapter', f"Remove lora.{key}."
            yield Problem("recipe.lora_variant_unused", rule, f"lora.{key}", True, remedy)
    if lora.dora and recipe.grpo is not None and recipe.grpo.rollouts == "vllm":
        rule = 'must be false with grpo.rollouts = "vllm", because vLLM does not load DoRA adapters'
        remedy = 'Set lora.dora = false, or rollouts = "transformers".'
        yield Problem("recipe.dora_with_vllm", rule, "lora.dora", True, remedy)


def grpo_has_a_reward(recipe: Recipe) -> Iterator[Problem]:
    """Check that GRPO has a reward with a weight above 0."""
    if recipe.grpo and not any(weight > 0 for weight in recipe.reward_weights.values()):
        rule = "must have a weight above 0 for [grpo]"
        yield Problem("recipe.rewards_all_zero", rule, "rewards", remedy="Raise at least one weight.")


def parameters_are_trainable(recipe: Recipe) -> Iterator[Problem]:
    """Check that precision, adapter and layers suit the kind of tuning."""
    model, lora = recipe.model, recipe.lora
    if model.tuning == "full" and model.precision in ("4bit", "8bit"):
        rule, remedy = 'must be "16bit" or "32bit" with tuning = "full"', 'Change it, or set tuning = "lora".'
        yield Problem("recipe.full_tuning_of_quantized", rule, "model.precision", model.precision, remedy)
    if model.tuning == "full" and model.adapter is not None:
        rule = 'must not be set with tuning = "full"'
        remedy = 'Set model.name to the merged weights, or tuning = "lora".'
        yield Problem("recipe.full_tuning_with_adapter", rule, "model.adapter", str(model.adapter), remedy)
    if model.tuning == "lora" and not lora.targets and not lora.vision:
        rule = "must name at least one layer if lora.vision is false"
        remedy = "Name layers, or set lora.vision = true."
        yield Problem("recipe.no_layer_to_train", rule, "lora.targets", list(lora.targets), remedy)


def preferences_can_be_trained(recipe: Recipe) -> Iterator[Problem]:
    """Check that DPO has rows with two different answers, and an adapter whose start is the reference."""
    dpo = recipe.dpo
    if dpo is None:
        return
    if recipe.model.tuning == "full":
        rule = 'must be "lora" with [dpo], because the reference of full fine-tuning is a second model in GPU memory'
        yield Problem("recipe.dpo_of_full_tuning", rule, "model.tuning", "full", 'Set tuning = "lora".')
    if dpo.chosen == dpo.rejected:
        rule, remedy = "must be another column than dpo.rejected", "Name the column of the other answer."
        yield Problem("recipe.dpo_columns_equal", rule, "dpo.chosen", dpo.chosen, remedy)
    for name in (dpo.chosen, dpo.rejected):
        if name in recipe.prompt.context:
            rule, remedy = "must not be in prompt.context, because it is an answer", "Remove it from prompt.context."
            yield Problem("recipe.dpo_column_in_prompt", rule, "prompt.context", name, remedy)


def export_has_weights(recipe: Recipe) -> Iterator[Problem]:
    """Check that exported weights come from a training stage or an adapter."""
    if recipe.export is None:
        return
    if not (recipe.training or recipe.model.adapter):
        rule = "must have weights to export"
        remedy = "Add [sft], [dpo] or [grpo], or set model.adapter to an earlier run."
        yield Problem("recipe.nothing_to_export", rule, "export", remedy=remedy)
    for name, remedy in (("to", 'Name "adapter", "merged" or "gguf".'), ("quant", 'Name one, such as "q8_0".')):
        if not getattr(recipe.export, name):
            yield Problem("recipe.list_empty", "must have at least one entry", f"export.{name}", [], remedy)


def completions_leave_tokens_for_the_prompt(recipe: Recipe) -> Iterator[Problem]:
    """Check that the longest completion leaves tokens for its prompt."""
    validated = recipe.evaluation if recipe.evaluate or recipe.validation else None
    for name, section in (("grpo", recipe.grpo), ("evaluate", validated)):
        if section and section.max_completion_tokens >= recipe.model.max_tokens:
            rule = f"must be less than model.max_tokens (={recipe.model.max_tokens}), which includes the prompt"
            key, value = f"{name}.max_completion_tokens", section.max_completion_tokens
            yield Problem("recipe.no_tokens_for_prompt", rule, key, value, "Change one of them.")
