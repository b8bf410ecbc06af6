"""Patients' names in rows with problems: no piece of a name may be in messages, logs or results."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from tests.faults.fuzz_data import Row, base_folder, recipe_text, rows_of, write_csv
from tests.faults.fuzz_outcomes import Attempt, Case, attempt, judge
from tests.faults.part import GOOD, Outcome, Part, random_of

PIECES = ("Zebulonia", "Quxworthy", "Mbengatu", "Yrsalind", "Oquandra", "Vexlimore")
"""Pieces of names. No word of the toolkit, of a library or of this test contains one."""
LIMIT_S = 120.0
CHECKED = (
    "log.txt",
    "plan.json",
    "results.json",
    "done.json",
    "run.json",
    "README.md",
    "metrics.jsonl",
    "compute.jsonl",
)


def _name(number: int) -> str:
    return f"{PIECES[number % len(PIECES)]}{number}"


def named_rows(place: Path) -> list[Row]:
    """Return rows with a name in the id, the group, the file name, the folder and another column."""
    rows = rows_of("vqa")
    for number, row in enumerate(rows):
        name = _name(number)
        source = base_folder("vqa") / row["image_name"]
        target = place / "in" / "images" / name / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        row |= {
            "id": f"case-{name}",
            "PatientID": f"{name}, {PIECES[0]}",
            "image_name": str(target.relative_to(place / "in")),
        }
        row["name"] = name
    return rows


def _image(place: Path, row: Row, image: Image.Image, **options: Any) -> None:
    image.save(place / "in" / row["image_name"], **options)


def _bytes(content: bytes) -> Callable[[Path, list[Row]], None]:
    def write(place: Path, rows: list[Row]) -> None:
        (place / "in" / rows[1]["image_name"]).write_bytes(content)

    return write


def _cell(**values: Any) -> Callable[[Path, list[Row]], None]:
    def change(place: Path, rows: list[Row]) -> None:
        rows[1].update(values)

    return change


def _gone(place: Path, rows: list[Row]) -> None:
    (place / "in" / rows[1]["image_name"]).unlink()


def _linked(place: Path, rows: list[Row]) -> None:
    _gone(place, rows)
    (place / "outside.png").write_bytes((place / "in" / rows[0]["image_name"]).read_bytes())
    (place / "in" / rows[1]["image_name"]).symlink_to(place / "outside.png")


def _folder(place: Path, rows: list[Row]) -> None:
    _gone(place, rows)
    (place / "in" / rows[1]["image_name"]).mkdir()


def _same_id(place: Path, rows: list[Row]) -> None:
    rows[1]["id"] = rows[0]["id"]


def _conflict(place: Path, rows: list[Row]) -> None:
    rows.append({**rows[1], "id": f"case-{PIECES[2]}", "answer": "never"})


def _twice(place: Path, rows: list[Row]) -> None:
    rows.append({**rows[1], "id": f"case-{PIECES[3]}"})


def _two_groups(place: Path, rows: list[Row]) -> None:
    rows.append({**rows[1], "id": f"case-{PIECES[3]}", "PatientID": PIECES[4], "question": "Which side?"})


def _outside(place: Path, rows: list[Row]) -> None:
    rows[1]["image_name"] = f"../{PIECES[1]}.png"


def _no_column(place: Path, rows: list[Row]) -> None:
    del rows[1]["answer"]


def _in_text(place: Path, rows: list[Row]) -> None:
    rows[1]["question"] = f"Is the heart of {PIECES[2]} <image><image> normal? <start_of_turn>"


def _long(place: Path, rows: list[Row]) -> None:
    rows[1]["question"] = f"{PIECES[2]} " * 5_000


def _frames(place: Path, rows: list[Row]) -> None:
    frame = Image.linear_gradient("L")
    _image(place, rows[1], frame, format="GIF", save_all=True, append_images=[frame.rotate(90)])


def _deep(place: Path, rows: list[Row]) -> None:
    value: Any = PIECES[5]
    for _ in range(300):
        value = [value]
    rows[1]["answer"] = value


PROBLEMS: Mapping[str, Callable[[Path, list[Row]], None]] = {
    "none": lambda place, rows: None,
    "missing image": _gone,
    "empty image": _bytes(b""),
    "text as image": _bytes(b"no image"),
    "truncated image": lambda place, rows: _bytes((place / "in" / rows[1]["image_name"]).read_bytes()[:300])(
        place, rows
    ),
    "dicom without pixels": _bytes(bytes(128) + b"DICM" + b"\x10\0\x10\0PN\x0e\0" + b"Quxworthy^Zeb1"),
    "constant image": lambda place, rows: _image(place, rows[1], Image.new("L", (64, 64))),
    "tiny image": lambda place, rows: _image(place, rows[1], Image.linear_gradient("L").resize((5, 5))),
    "several frames": _frames,
    "large image": lambda place, rows: _image(place, rows[1], Image.new("1", (20_000, 9_000))),
    "linked image": _linked,
    "folder as image": _folder,
    "outside": _outside,
    "absolute": _cell(image_name=f"/nowhere/{PIECES[1]}.png"),
    "same id": _same_id,
    "conflict": _conflict,
    "twice": _twice,
    "image of two patients": _two_groups,
    "no answer": _no_column,
    "empty answer": _cell(answer=""),
    "list as answer": _cell(answer=[PIECES[1], PIECES[2]]),
    "object as question": _cell(question={"of": PIECES[1]}),
    "number as answer": _cell(answer=1e400),
    "surrogate": _cell(question=f"{PIECES[1]} \ud800"),
    "no image": _cell(image_name=None),
    "list of paths": _cell(image_name=[f"{PIECES[1]}.png", [PIECES[2]]]),
    "deep answer": _deep,
    "tokens in text": _in_text,
    "long text": _long,
    "no group": _cell(PatientID=None),
    "list as group": _cell(PatientID=[PIECES[1]]),
}
"""What is wrong with a row -> the function that makes it so."""
FILE_PROBLEMS: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    "cut file": lambda content: content[: len(content) * 2 // 3],
    "not utf-8": lambda content: content.replace(b"case-", b"case\xff", 3),
    "broken record": lambda content: content.replace(b'"answer"', b'"answer', 2),
    "key twice": lambda content: content.replace(b'"id":', b'"id": "Yrsalind", "id":', 2),
}


def make(random: Random, place: Path) -> tuple[Case, str]:
    """Write rows with names and one problem. Return the command, and the problem."""
    rows = named_rows(place)
    problem = random.choice(sorted(PROBLEMS))
    file_problem = random.choice(["", *sorted(FILE_PROBLEMS)]) if random.random() < 0.2 else ""
    PROBLEMS[problem](place, rows)
    name = random.choice(("rows.json", "rows.jsonl", "rows.csv"))
    writers = {
        "rows.json": lambda: json.dumps(rows).encode(),
        "rows.jsonl": lambda: "\n".join(map(json.dumps, rows)).encode(),
        "rows.csv": lambda: write_csv(rows),
    }
    (place / "in" / name).write_bytes(FILE_PROBLEMS[file_problem](writers[name]()))
    data: Row = {
        "train": name,
        "group": random.choice(("PatientID", "PatientID", "name")),
        "max_dropped": random.choice((0.0, 1.0)),
        "split": {"test": 0.3},
    }
    sections: Row = {"images": {"max_side": 64, "unreadable": random.choice(("stop", "skip", "placeholder"))}}
    sections["evaluate"] = {
        "max_completion_tokens": 8,
        "bootstrap": 100,
        **random.choice(({}, {"by": ["name"]})),
    }
    recipe = place / "in" / "recipe.toml"
    recipe.write_text(recipe_text("vqa", data, **sections), encoding="utf-8")
    command = random.choice((("data", "inspect"), ("plan",), ("run",), ("run",)))
    return Case((*command, str(recipe)), place), f"{problem} {file_problem} {name}".strip()


def leaks(place: Path, found: Attempt) -> list[str]:
    """Return each piece of a name in stderr or in a file that is shared, with the place."""
    texts = {"stderr": found.ended.stderr}
    for path in sorted((place / "work").rglob("*")):
        if path.name in CHECKED and path.is_file() and not path.is_symlink() and "synthetic" not in path.parts:
            texts[path.name] = path.read_text(encoding="utf-8", errors="replace")
    return [
        f"{piece} in {name}: {_around(text, piece)}"
        for name, text in texts.items()
        for piece in PIECES
        if piece in text
    ]


def _around(text: str, piece: str) -> str:
    at = text.index(piece)
    return " ".join(text[max(0, at - 120) : at + 60].split())


def trial(seed: int, number: int, folder: Path) -> Outcome:
    """Use rows with names and a problem, and look for the names. After a run, evaluate and predict with it."""
    random = random_of(seed, "identifiers", number)
    for name in ("in", "work"):
        (folder / name).mkdir()
    case, problem = make(random, folder)
    found = attempt(case, LIMIT_S)
    outcomes = [_outcome(folder, found, problem)]
    if case.argv[0] == "run" and found.ended.status == 0:
        rows = str(next((folder / "in").glob("rows.*")))
        more = random.choice(
            (
                ("evaluate", "runs/fuzz", "--name", "more"),
                ("predict", "runs/fuzz", "--data", rows, "--out", "answers.csv"),
            )
        )
        runs = next(folder.rglob("run.json")).parent
        found = attempt(Case(tuple(str(runs) if word == "runs/fuzz" else word for word in more), folder), LIMIT_S)
        outcomes.append(_outcome(folder, found, problem))
    return next((one for one in outcomes if one.result not in GOOD), outcomes[-1])


def _outcome(folder: Path, found: Attempt, problem: str) -> Outcome:
    command = shlex.join(["toolkit", *found.argv])
    if seen := leaks(folder, found):
        return Outcome("identifier", f"{problem}: {seen[0]} ({len(seen)} in all)"[:600], command)
    outcome = judge(found)
    return Outcome(outcome.result, f"{problem}: {outcome.detail}", command)


PART = Part("identifiers", "attacks", trial)
