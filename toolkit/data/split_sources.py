"""The source of each split: what the recipe names, and the splits that a source has itself."""

from toolkit.data.formats.hf_datasets import HUB, hub_splits
from toolkit.data.formats.split_names import find_split, split_of
from toolkit.data.sources import source_splits
from toolkit.errors import DataError, Problem
from toolkit.recipe import SPLITS, Recipe


def recipe_sources(recipe: Recipe) -> tuple[dict[str, str], list[Problem]]:
    """Return split -> source, with ``#`` and the split of the source if it has splits, and reports of these choices.

    A source with splits gives each key of [data] the split of that name. Validation and test are taken from the source
    of the training rows if the recipe does not name them and the source has them. Of a Hub dataset, they are named.

    Raises:
        DataError: A source has splits, but not the one that its key needs.
    """
    named = {name: source for name in SPLITS if (source := getattr(recipe.dataset, name)) is not None}
    splits = {name: _splits(source) for name, source in named.items()}
    found = {name: f"{source}{_choose(name, source, splits[name])}" for name, source in named.items()}
    notes, inside = list[Problem](), splits.get("train", ())
    for name in SPLITS:
        if name not in named and find_split(name, inside):
            found[name] = f"{named['train']}{_choose(name, named['train'], inside)}"
            rule = f"the rows are the split {found[name].rpartition('#')[2]} of data.train"
            notes.append(Problem("data.split_of_source", rule, name))
    unused = [one for one in inside or _hub_splits(named.get("train", "")) if split_of(one) not in found]
    if unused:
        rule = f"no key of [data] uses the {'split' if len(unused) == 1 else 'splits'} {', '.join(unused)[:200]}"
        remedy = f'Name one as "{named["train"]}#{unused[0]}" to use it.'
        notes.append(Problem("data.split_not_used", rule, named["train"], remedy=remedy))
    return found, notes


def _splits(source: str) -> tuple[str, ...]:
    try:
        return source_splits(source)
    except DataError:  # Reading the rows raises it again, together with those of the other sources.
        return ()


def _hub_splits(source: str) -> tuple[str, ...]:
    """Return the splits of a Hub dataset whose name has none, so that only its split train is read."""
    try:
        return hub_splits(source) if source.startswith(HUB) and "#" not in source else ()
    except DataError:
        return ()


def _choose(name: str, source: str, splits: tuple[str, ...]) -> str:
    """Return ``#`` and the split of a source for a key of [data], or nothing for a source without splits."""
    chosen = find_split(name, splits)
    if not splits or len(chosen) == 1:
        return f"#{chosen[0]}" if splits else ""
    rule = f"the source has splits, and exactly one of them must be for {name}"
    remedy = f'Name the split after #, as in "{source}#{splits[0]}".'
    raise DataError("data.split_not_certain", rule, place=f"data.{name}: {source}", value=list(splits), remedy=remedy)
