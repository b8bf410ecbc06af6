"""The training sections of the model card: data, recipe, compute and versions."""

from toolkit.exporting.card.facts import CardFacts, counted_stages
from toolkit.exporting.card.markdown import bullets, cell, table
from toolkit.exporting.public_names import is_hub_name, public_recipe
from toolkit.models.model_paths import public_name
from toolkit.runfolder import TRAINING_STAGES
from toolkit.runfolder.usage import HOUR, UNKNOWN, energy, figure, total

KINDS = {"group": "groups (patients, lesions or images)", "image": "images", "question": "(image, question) pairs"}
MACHINE = ("platform",)
"""Entries of the versions in run.json that describe the machine."""


def data(facts: CardFacts) -> str:
    """Return sources, rows of each split, dropped rows by reason, leaks and fingerprints."""
    rows, found = facts.data.get("rows", {}), facts.data
    parts = ["## Data", _sources(facts)]
    if rows:
        parts.append(table(["split", "rows"], [[name, f"{count:,}"] for name, count in rows.items()]))
    dropped: dict[str, int] = {}
    for one in found.get("dropped", ()):
        dropped[one["reason"]] = dropped.get(one["reason"], 0) + one["count"]
    lines = [f"{count:,} rows were dropped: {cell(reason)}" for reason, count in dropped.items()]
    lines += [
        f"**Leak:** {leak['count']:,} {KINDS[leak['kind']]} of {leak['second']} are in {leak['first']} too"
        for leak in found.get("leaks", ())
    ]
    lines += [] if dropped else ["No row was dropped."]
    lines += [] if found.get("leaks") else ["No group, image or question is in two splits."]
    lines += [f"Fingerprint of {cell(name)}: `{digest}`" for name, digest in facts.state.fingerprints.items()]
    return "\n\n".join([*parts, bullets(lines)])


def training(facts: CardFacts) -> str:
    """Return the base model, the stages, and the recipe without paths."""
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if is_hub_name(facts.base) else f"`{facts.base}`"
    revision = f", revision `{facts.recipe.model.revision}`" if facts.recipe.model.revision else ""
    stages = " and ".join(name.upper() for name in facts.trained) or "no training in this run"
    text = f"Base model: {base}{revision}. Stages: {stages}. Seed: {facts.recipe.run.seed}. "
    named = [name for name in TRAINING_STAGES if getattr(facts.recipe, name) is not None]
    if open_stages := [name.upper() for name in named if name not in facts.trained]:
        text += f"**The recipe names {' and '.join(open_stages)} too, which these weights did not go through.** "
    text += "The recipe, with file names instead of paths:"
    return f"## Training\n\n{text}\n\n```toml\n{public_recipe(facts.recipe)}\n```"


def compute(facts: CardFacts) -> str:
    """Return hours, energy and CO2 of all stages before the export, and what was not measured."""
    counted = counted_stages(facts.compute)
    if not counted:
        return f"## Compute\n\nTime, energy and CO2: {UNKNOWN}."
    used = total(counted.values())
    co2 = UNKNOWN if used.co2 is None else f"{figure(used.co2)} kg"
    lines = [
        f"GPU hours: {figure(used.gpu / HOUR) if used.gpu else 'none, no GPU was used'}",
        f"CPU hours: {figure(used.cpu / HOUR)}, wall-clock hours: {figure(used.wall / HOUR)}",
        f"Energy: {energy(used)}",
        f"CO2: {co2}",
    ]
    return f"## Compute\n\nOf {', '.join(counted)}:\n\n{bullets(lines)}"


def versions(facts: CardFacts) -> str:
    """Return the versions of Python and libraries at the last start, and whether earlier starts differed."""
    sessions = [
        {name: text for name, text in session.versions.items() if name not in MACHINE}
        for session in facts.state.sessions
    ]
    text = ", ".join(f"{name} {version}" for name, version in sessions[-1].items())
    others = sum(session != sessions[-1] for session in sessions)
    note = f"\n\n{others:,} earlier starts of the run had other versions." if others else ""
    return f"## Versions\n\n{text}{note}"


def _sources(facts: CardFacts) -> str:
    section = facts.recipe.dataset
    if section.synthetic:
        return f"Synthetic data (`{section.synthetic.kind}`), which shows nothing about real patients."
    named = {"train": section.train, "validation": section.validation, "test": section.test}
    sources = [f"{split} `{public_name(source)}`" for split, source in named.items() if source]
    grouped = f", groups by column `{section.group}`" if section.group else ""
    return f"Sources: {', '.join(sources)}{grouped}. The other splits are held out by group."
