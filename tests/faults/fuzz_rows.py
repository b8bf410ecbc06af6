"""Invalid data files: mutated bytes of every format, and odd values in each column of every task.

An odd value that is accepted must leave the reading of all other rows as it was.
"""

import json
import re
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.fuzz_data import BASES, DATASETS, TABLES, Row, copy_images, recipe_text, rows_of
from tests.faults.fuzz_mutations import TEXTS, misspelled, mutate_bytes, mutate_json, odd_value
from tests.faults.fuzz_outcomes import Attempt, Case, batch_trial
from tests.faults.part import Outcome, Part

IMAGES = frozenset({".png", ".jpg"})
OF_ALL_ROWS = frozenset({"settings", "labels", "multi", "lenient"})
"""Fields of a sample that come from all rows, such as the names of classes."""


def read_samples(place: Path) -> None:
    """Write down how the rows of the recipe of ``place`` are read. Called in the child."""
    from tests.helpers.recipes import load_data, load_recipe

    recipe = load_recipe(place / "in" / "recipe.toml")
    data = load_data(recipe)
    found = {
        sample.id: [
            {
                key: repr(value).replace(str(place), "")
                for key, value in sample.fields.items()
                if key not in OF_ALL_ROWS
            },
            repr(sample.reference).replace(str(place), ""),
            [ref.path.name for ref in sample.images],
        ]
        for sample in data.train
    }
    (place / "samples.json").write_text(json.dumps(found), encoding="utf-8")


def make_bytes(random: Random, place: Path) -> Case:
    """Mutate the bytes, or a JSON value, of one file of a dataset."""
    folder = place / "in"
    if random.random() < 0.5:
        task, name = random.choice(sorted(BASES)), random.choice(sorted(TABLES))
        copy_images(task, folder)
        (folder / name).write_bytes(TABLES[name](rows_of(task)))
        data: Row = {"train": str(folder / name)}
    else:
        data = random.choice(DATASETS)(folder)
        task = data.pop("task")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in IMAGES]
    if files:
        _mutate_file(random, random.choice(files))
    else:
        _mutate_tree(random, folder)
    return _inspect(random, place, task, data)


def _mutate_file(random: Random, file: Path) -> None:
    content = file.read_bytes()
    if file.suffix == ".json" and random.random() < 0.6:
        file.write_bytes(json.dumps(mutate_json(random, json.loads(content))).encode())
    elif random.random() < 0.05:
        file.write_bytes(
            random.choice((b"", b"\0", b"null", b"[]", b"{}", b"[[]]", b"\xff\xfe", b"PK\x03\x04", b"PAR1"))
        )
    elif random.random() < 0.05:
        encoding = random.choice(("utf-16", "utf-8-sig", "utf-32", "latin-1"))
        file.write_bytes(f"{content.decode('utf-8', 'replace')}ü".encode(encoding, "replace"))
    else:
        file.write_bytes(mutate_bytes(random, content))


def _mutate_tree(random: Random, folder: Path) -> None:
    """Change a folder of images: an odd name, an empty file, a link, a folder in the place of a file."""
    path = random.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    kind = random.randrange(5)
    if kind == 0:
        path.rename(path.with_name(random.choice(("\udcff.png", "a b.png", "." + path.name, path.name * 20, "é.png"))))
    elif kind == 1:
        path.write_bytes(b"")
    elif kind == 2:
        path.unlink()
        path.symlink_to(random.choice(("/etc/passwd", "/dev/zero", "nowhere", path.name)))
    elif kind == 3:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(mutate_bytes(random, path.read_bytes()))


def make_cells(random: Random, place: Path) -> Case:
    """Put odd values into cells of one row."""
    folder = place / "in"
    task, name = random.choice(sorted(BASES)), random.choice(sorted(TABLES))
    copy_images(task, folder)
    rows = rows_of(task)
    at = random.randrange(len(rows))
    changed = {}
    for _ in range(random.choice((1, 1, 1, 2))):
        column = random.choice(sorted(rows[at]) or ["x"])
        kind = random.randrange(12)
        if kind == 0:
            rows[at].pop(column, None)
        elif kind == 1:
            rows[at][misspelled(random, column)] = rows[at].pop(column, None)
        elif kind < 5 and isinstance(rows[at].get(column), list | dict):
            changed[column] = rows[at][column] = mutate_json(random, rows[at][column])
        elif kind < 7:
            changed[column] = rows[at][column] = random.choice(TEXTS)
        else:
            changed[column] = rows[at][column] = odd_value(random)
    (folder / name).write_bytes(TABLES[name](rows))
    (place / "mutated.json").write_text(json.dumps({"task": task, "name": name, "row": at, "changed": changed}))
    return _inspect(random, place, task, {"train": str(folder / name)})


def _inspect(random: Random, place: Path, task: str, data: Row) -> Case:
    dropped = random.choice((0.05, 1.0))
    text = recipe_text(task, {**data, "max_dropped": dropped, "split": {"test": 0.0}})
    (place / "in" / "recipe.toml").write_text(text, encoding="utf-8")
    command = random.choice((("data", "inspect"), ("data", "inspect"), ("plan",), ("data", "inspect", "--show", "3")))
    return Case((*command[:2], str(place / "in" / "recipe.toml"), *command[2:]), place, read_samples)


@cache
def _undisturbed(task: str, name: str) -> dict[str, Any]:
    """Return how the unchanged rows are read."""
    import tempfile

    from tests.faults.fuzz_outcomes import attempt

    with tempfile.TemporaryDirectory(prefix="toolkit-fuzz-") as top:
        place = Path(top)
        (place / "in").mkdir()
        copy_images(task, place / "in")
        (place / "in" / name).write_bytes(TABLES[name](rows_of(task)))
        case = _inspect(Random(0), place, task, {"train": str(place / "in" / name)})
        found = attempt(case)
        assert found.ended.status == 0, (task, name, found.ended.stderr[-2000:], found.ended.stdout[-2000:])
        return dict(json.loads((place / "samples.json").read_text(encoding="utf-8")))


def check_cells(case: Case, found: Attempt) -> Outcome | None:
    """Return an outcome if another row is read otherwise, or a list is trained on as its text."""
    file = case.place / "samples.json"
    if found.ended.status != 0 or not file.exists():
        return None
    mutated = json.loads((case.place / "mutated.json").read_text())
    expected = _undisturbed(mutated["task"], mutated["name"])
    read = json.loads(file.read_text(encoding="utf-8"))
    ids = list(expected)
    own = ids[mutated["row"]] if mutated["row"] < len(ids) else ""
    for name in read.keys() & expected.keys() - {own}:
        if _own(read[name]) != _own(expected[name]):
            detail = f"row {name} of {mutated['task']} {mutated['name']} is read otherwise after {_short(mutated)}"
            detail += f": {expected[name]} became {read[name]}"[:600]
            return Outcome("different", detail, " ".join(found.argv))
    for value in mutated["changed"].values():
        printed = repr(value)
        if isinstance(value, list | dict) and len(printed) > 6 and isinstance(_first(value), str) and own in read:
            texts = [text for text in read[own][0].values() if text[:1] in "'\""]
            if any(printed in text for text in texts):
                return Outcome("different", f"a list is used as its text: {_short(mutated)}", " ".join(found.argv))
    return None


def _own(sample: list[Any]) -> list[Any]:
    """Return what a sample has of its own row.

    Its prompt has the classes of all rows, which the command prints, and its reference may have the previous step.
    """
    fields, reference, *rest = sample
    own = {name: value for name, value in fields.items() if name != "classes"}
    return [own, re.sub(r"'previous': (\{.*?\}|None)", "", reference), *rest]


def _first(value: Any) -> Any:
    items = list(value.values()) if isinstance(value, dict) else value
    return items[0] if items else None


def _short(mutated: Row) -> str:
    return f"row {mutated['row']}: {json.dumps(mutated['changed'])[:100]}"


PARTS = (
    Part("rows", "inputs", batch_trial("rows", make_bytes, 10)),
    Part("cells", "inputs", batch_trial("cells", make_cells, 10, check_cells)),
)
ROWS, CELLS = PARTS
