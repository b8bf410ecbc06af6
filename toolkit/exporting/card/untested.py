"""What was not tested, derived from what the run did: a reader must not take silence for a good sign."""

from toolkit.exporting.card.facts import CardFacts
from toolkit.exporting.card.markdown import bullets

ALWAYS = (
    "Data of other hospitals, devices, countries and years (external validation): all figures are of the data below.",
    "Languages other than that of the questions in the data, which is not recorded.",
    "Questions that are not of the task, without a picture, or with a picture of something else.",
    "Use by clinicians, and what it does to their decisions.",
)


def untested(facts: CardFacts) -> str:
    """The list of what no figure of this card speaks about."""
    return "## What was not tested\n\n" + bullets(
        [*_of_evaluation(facts), *_of_form(facts), *_of_subgroups(facts), *ALWAYS]
    )


def _of_evaluation(facts: CardFacts) -> list[str]:
    lines = []
    if facts.recipe.dataset.phantom:
        lines.append("**Real pictures:** the model was trained and asked on generated practice pictures alone.")
    if facts.evaluation is None:
        return [*lines, "**These weights on held-out questions:** they were not evaluated."]
    if facts.evaluation["split"] == "validation":
        lines.append("Questions that no choice was made with: the figures are of the validation split.")
    groups = facts.evaluation["value"]["groups"]
    if groups < 100:
        lines.append(f"Many patients: the figures are of {groups:,} patients, lesions or films; see the intervals.")
    return lines


def _of_form(facts: CardFacts) -> list[str]:
    precision = facts.recipe.model.precision
    lines = []
    if not facts.verified:
        lines.append("**These files themselves:** nothing was asked of them after they were written.")
    elif facts.form != "adapter":
        asked = facts.proof["questions"]
        lines.append(
            f"These files on all held-out questions: the figures are of the run's own weights (precision {precision}), "
            f"and these files were compared with them on {asked:,}."
        )
    elif precision in ("4bit", "8bit", "auto"):
        lines.append(f"The adapter on a base in another precision than the run's ({precision}).")
    if facts.form != "gguf":
        lines.append("Quantisations of these weights.")
    return lines


def _of_subgroups(facts: CardFacts) -> list[str]:
    summary = facts.evaluation["summary"] if facts.evaluation else {"by": {}, "not_found": ()}
    lines = []
    if not summary["by"]:
        lines.append("Subgroups, such as age, sex, skin type or device: the recipe names none in evaluate.by.")
    elif facts.evaluation:
        lines.append(f"Subgroups other than by {', '.join(sorted(summary['by']))}.")
    if summary["not_found"]:
        lines.append(f"Subgroups by {', '.join(summary['not_found'])}: the data have no such column.")
    return lines
