"""The section of the model card on what was not tested, derived from the records of the run."""

from toolkit.exporting.card.facts import CardFacts
from toolkit.exporting.card.markdown import bullets

ALWAYS = (
    "Data of other hospitals, devices, countries and years (external validation): all figures are of the data below.",
    "Languages other than that of the questions in the data, which is not recorded.",
    "Questions that do not belong to the task, without an image, or with an image of something else.",
    "Use by clinicians, and its effect on their decisions.",
)


def untested(facts: CardFacts) -> str:
    """Return the list of what no figure of this card covers."""
    return "## What was not tested\n\n" + bullets(
        [*_of_evaluation(facts), *_of_format(facts), *_of_subgroups(facts), *ALWAYS]
    )


def _of_evaluation(facts: CardFacts) -> list[str]:
    lines = []
    if facts.recipe.dataset.synthetic:
        lines.append("**Real images:** the model was trained and evaluated on synthetic images only.")
    if facts.evaluation is None:
        return [*lines, "**These weights on held-out questions:** they were not evaluated."]
    if facts.evaluation["split"] == "validation":
        lines.append("Data that no choice was based on: the figures are of the validation split.")
    groups = facts.evaluation["value"]["groups"]
    if groups < 100:
        lines.append(f"Many patients: the figures are of {groups:,} patients, lesions or images. See the intervals.")
    return lines


def _of_format(facts: CardFacts) -> list[str]:
    precision = facts.recipe.model.precision
    lines = []
    if not facts.verified:
        lines.append("**These files themselves:** they were not reloaded after the export.")
    elif facts.format_name != "adapter":
        compared = facts.verification["questions"]
        lines.append(
            "These files on the whole held-out split: the figures are of the run's own weights "
            f"(precision {precision}), and these files were compared with them on {compared:,} samples."
        )
    elif precision in ("4bit", "8bit", "auto"):
        lines.append(f"The adapter on a base in another precision than the run's ({precision}).")
    if facts.format_name != "gguf":
        lines.append("Quantizations of these weights.")
    return lines


def _of_subgroups(facts: CardFacts) -> list[str]:
    summary = facts.evaluation["summary"] if facts.evaluation else {"by": {}, "not_found": ()}
    lines = []
    if not summary["by"]:
        lines.append("Subgroups, such as age, sex, skin type or device: the recipe names none in evaluate.by.")
    elif facts.evaluation:
        lines.append(f"Subgroups other than by {', '.join(sorted(summary['by']))}.")
    if summary["not_found"]:
        lines.append(f"Subgroups by {', '.join(summary['not_found'])}: the data has no such column.")
    return lines
