"""Rules that involve several keys or sections: the table of them, and those of the whole recipe."""

from collections.abc import Callable, Iterator

from toolkit.errors import Problem
from toolkit.recipe.data_checks import (
    custom_metrics_are_well_formed,
    custom_rewards_are_well_formed,
    evaluated_split_exists,
    fractions_leave_training_rows,
    has_one_source_of_rows,
    probabilities_have_no_reasoning,
    rewards_are_known,
    skipped_images_are_scanned,
    task_settings_fit,
    whole_tasks_are_evaluated,
    window_is_known,
)
from toolkit.recipe.model_kind import model_name_is_valid
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training_checks import (
    adapter_is_supported,
    checkpoints_are_logged,
    completions_leave_tokens_for_the_prompt,
    export_has_weights,
    grpo_has_a_reward,
    learning_rates_fit,
    loss_fits,
    parameters_are_trainable,
    preferences_can_be_trained,
    resampling_fits,
    validation_fits,
)

Check = Callable[[Recipe], Iterator[Problem]]
"""Yields problems. Their place is a dotted key of the recipe."""


def has_a_stage(recipe: Recipe) -> Iterator[Problem]:
    """Check that the recipe has at least one stage."""
    if not (recipe.training or recipe.evaluate or recipe.export):
        rule = "must have at least one of [sft], [dpo], [grpo], [evaluate] and [export]"
        yield Problem("recipe.nothing_to_do", rule, remedy="Add one of these sections.")


def pairs_are_ordered(recipe: Recipe) -> Iterator[Problem]:
    """Check that lower bounds are below upper bounds."""
    low, high = recipe.images.percentiles
    if not 0 <= low < high <= 100:
        rule, remedy = "must be two numbers, 0 <= lower < upper <= 100", "Correct the numbers."
        yield Problem("recipe.percentiles_not_rising", rule, "images.percentiles", [low, high], remedy)
    grpo = recipe.grpo
    if grpo and grpo.epsilon_high is not None and grpo.epsilon_high < grpo.epsilon:
        rule = f"must be at least grpo.epsilon (={grpo.epsilon:g})"
        yield Problem("recipe.epsilons_reversed", rule, "grpo.epsilon_high", grpo.epsilon_high, "Raise it.")


def tracker_examples_fit(recipe: Recipe) -> Iterator[Problem]:
    """Check that examples have a tracker that receives them, and come from an evaluation."""
    run = recipe.run
    if run.tracker_examples and not (run.report_to and recipe.evaluate):
        rule = "must be 0 without run.report_to and [evaluate]"
        yield Problem(
            "recipe.tracker_examples_unused", rule, "run.tracker_examples", run.tracker_examples, "Remove it."
        )


CHECKS: tuple[tuple[frozenset[str], Check], ...] = (
    (frozenset({"sft", "dpo", "grpo", "evaluate", "export"}), has_a_stage),
    (frozenset({"data"}), has_one_source_of_rows),
    (frozenset({"grpo"}), loss_fits),
    (frozenset({"grpo"}), resampling_fits),
    (frozenset({"run"}), checkpoints_are_logged),
    (frozenset({"run", "evaluate"}), tracker_examples_fit),
    (frozenset({"run", "data", "sft", "grpo", "validation"}), validation_fits),
    (frozenset({"model", "lora", "sft", "dpo", "grpo"}), learning_rates_fit),
    (frozenset({"model", "lora", "grpo"}), adapter_is_supported),
    (frozenset({"images"}), window_is_known),
    (frozenset({"images"}), skipped_images_are_scanned),
    (frozenset({"data"}), fractions_leave_training_rows),
    (frozenset({"data"}), task_settings_fit),
    (frozenset({"data", "evaluate"}), evaluated_split_exists),
    (frozenset({"data", "evaluate"}), whole_tasks_are_evaluated),
    (frozenset({"data", "rewards"}), rewards_are_known),
    (frozenset({"data", "rewards"}), custom_rewards_are_well_formed),
    (frozenset({"evaluate"}), custom_metrics_are_well_formed),
    (frozenset({"data", "rewards", "grpo"}), grpo_has_a_reward),
    (frozenset({"model", "lora"}), parameters_are_trainable),
    (frozenset({"model", "data", "dpo"}), preferences_can_be_trained),
    (frozenset({"model"}), model_name_is_valid),
    (frozenset({"model", "sft", "dpo", "grpo", "export"}), export_has_weights),
    (frozenset({"prompt", "evaluate", "data"}), probabilities_have_no_reasoning),
    (frozenset({"model", "grpo", "evaluate", "validation"}), completions_leave_tokens_for_the_prompt),
    (frozenset({"images", "grpo"}), pairs_are_ordered),
)
"""Sections that a check reads, and the check. It is skipped if one of these sections has errors."""
