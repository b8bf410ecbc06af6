"""What the weights were made from and with: rows, recipe, time and energy, versions."""

from toolkit.exporting.card.facts import CardFacts, counted_stages
from toolkit.exporting.card.markdown import bullets, cell, table
from toolkit.exporting.public_names import is_hub_name, public_recipe
from toolkit.models.model_paths import public_name
from toolkit.runfolder import TRAINING_STAGES
from toolkit.runfolder.usage import HOUR, UNKNOWN, energy, figure, total

KINDS = {"group": "groups (patients, lesions or films)", "image": "pictures", "question": "(picture, question) pairs"}
MACHINE = ("platform",)
"""What run.json has beside versions, and a card does not."""


def data(facts: CardFacts) -> str:
    """Sources, rows of each split, what was left out and why, leaks, the fingerprint."""
    rows, found = facts.data.get("rows", {}), facts.data
    parts = ["## Data", _sources(facts)]
    if rows:
        parts.append(table(["split", "rows"], [[name, f"{count:,}"] for name, count in rows.items()]))
    dropped: dict[str, int] = {}
    for one in found.get("dropped", ()):
        dropped[one["reason"]] = dropped.get(one["reason"], 0) + one["count"]
    told = [f"{count:,} rows were left out: {cell(reason)}" for reason, count in dropped.items()]
    told += [
        f"**Leak:** {leak['count']:,} {KINDS[leak['kind']]} of {leak['second']} stand in {leak['first']} too"
        for leak in found.get("leaks", ())
    ]
    told += [] if dropped else ["No row was left out."]
    told += [] if found.get("leaks") else ["No group, picture or question stands in two splits."]
    told += [f"Fingerprint of {cell(name)}: `{digest}`" for name, digest in facts.state["fingerprints"].items()]
    return "\n\n".join([*parts, bullets(told)])


def training(facts: CardFacts) -> str:
    """The base, the stages, and the whole recipe without paths."""
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if is_hub_name(facts.base) else f"`{facts.base}`"
    revision = f", revision `{facts.recipe.model.revision}`" if facts.recipe.model.revision else ""
    stages = " and ".join(name.upper() for name in facts.trained) or "no training in this run"
    text = f"Base model: {base}{revision}. Stages: {stages}. Seed: {facts.recipe.run.seed}. "
    named = [name for name in TRAINING_STAGES if getattr(facts.recipe, name) is not None]
    if open_stages := [name.upper() for name in named if name not in facts.trained]:
        text += f"**The recipe names {' and '.join(open_stages)} too, which these weights did not go through.** "
    text += "The recipe, with file names in place of paths:"
    return f"## Training\n\n{text}\n\n```toml\n{public_recipe(facts.recipe)}\n```"


def compute(facts: CardFacts) -> str:
    """Hours, energy and CO2 of all stages before the export; what was not measured is said."""
    counted = counted_stages(facts.compute)
    if not counted:
        return f"## Compute\n\nTime, energy and CO2: {UNKNOWN}."
    used = total(counted.values())
    co2 = UNKNOWN if used.co2 is None else f"{figure(used.co2)} kg"
    lines = [
        f"GPU hours: {figure(used.gpu / HOUR) if used.gpu else 'none, no GPU was used'}",
        f"CPU hours: {figure(used.cpu / HOUR)}; wall: {figure(used.wall / HOUR)} h",
        f"Energy: {energy(used)}",
        f"CO2: {co2}",
    ]
    return f"## Compute\n\nOf {', '.join(counted)}:\n\n{bullets(lines)}"


def versions(facts: CardFacts) -> str:
    """Python and libraries of the newest start; told where an earlier start had others."""
    sessions = [
        {name: text for name, text in session["versions"].items() if name not in MACHINE}
        for session in facts.state["sessions"]
    ]
    text = ", ".join(f"{name} {version}" for name, version in sessions[-1].items())
    others = sum(session != sessions[-1] for session in sessions)
    note = f"\n\n{others:,} earlier starts of the run had other versions." if others else ""
    return f"## Versions\n\n{text}{note}"


def _sources(facts: CardFacts) -> str:
    section = facts.recipe.dataset
    if section.phantom:
        return f"Generated practice data (`{section.phantom.kind}`), which show nothing of real patients."
    named = {"train": section.train, "validation": section.validation, "test": section.test}
    told = [f"{split} `{public_name(source)}`" for split, source in named.items() if source]
    grouped = f"; groups by column `{section.group}`" if section.group else ""
    return f"Sources: {', '.join(told)}{grouped}. What is not named apart was split off by group."
