"""Write the model card of an export (README.md in the Hub's format) from the records of the run."""

from pathlib import Path

from huggingface_hub import ModelCard

from toolkit.exporting.card.facts import CardFacts, read_facts
from toolkit.exporting.card.header import header
from toolkit.exporting.card.results import results, subgroups
from toolkit.exporting.card.training import compute, data, training, versions
from toolkit.exporting.card.untested import untested
from toolkit.exporting.card.use import intended_use, usage, verification
from toolkit.exporting.public_names import scrub
from toolkit.runfolder import write_text

__all__ = ["CARD", "CardFacts", "model_card", "read_facts", "write_card"]

CARD = "README.md"


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write the model card of the format in ``folder``. The same run and format give the same bytes."""
    write_text(folder / CARD, scrub(str(model_card(folder, facts)), *facts.places))


def model_card(folder: Path, facts: CardFacts) -> ModelCard:
    """Return the model card with its header. Its commands have the file names of ``folder``."""
    sections = (
        intended_use(facts),
        usage(folder, facts),
        results(facts),
        subgroups(facts),
        untested(facts),
        verification(facts),
        data(facts),
        training(facts),
        compute(facts),
        versions(facts),
    )
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{header(facts).to_yaml()}\n---\n\n{body}\n")
