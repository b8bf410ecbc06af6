"""Measure the index of 600,000 multiple-choice records, against ``json.load`` of the same file.

    python tests/benchmarks/bench_index.py [--records 600000] [--rounds 2] [--folder DIR]

Each measurement runs in its own process, and its fastest round counts. ``json.load`` and the index alternate, so that
other load on the machine affects both. "checked" opens the data as a run does: the index, one pass over all rows, and
the leak check. Prints a table, then one JSON object. The exit code is 1 if a limit is missed.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

VOCABULARY = (
    "pleural effusion consolidation right left lower upper lobe heart size normal mediastinum no pneumothorax is seen "
    "bones are intact chronic change unchanged catheter tip with the of in small opacity stable"
)
WORDS = VOCABULARY.split()
LIMITS = {
    "first indexing / json.load": 2.0,
    "first indexing, MB": 500.0,
    "opened again, s": 1.0,
    "opened again, MB": 300.0,
    "random row to Sample, ms": 1.0,
}

STEPS = {
    "json.load": "import json; rows = json.load(open(source, encoding='utf-8'))",
    "index": "from toolkit.data import open_index; rows = open_index(source)",
    "checked": "wanted = recipe(); data = load_data(wanted, wanted.task)",
    "random rows": "for number in numbers(): data.train[number]",
}
"""Name -> the timed code. ``PREPARE`` runs before the clock starts."""

PREPARE = """
import random, resource, sys, time
from pathlib import Path
source, step = sys.argv[1:3]
def recipe():
    from toolkit.recipe import recipe_model
    from toolkit.tasks import TASKS
    data = {"task": "mcq", "train": source, "split": {"test": 0}}
    sections = {"run": {"name": "bench"}, "data": data, "prompt": {"context": ["Indication"]}}
    return recipe_model(TASKS).model_validate(sections)
def numbers():
    return random.Random(0).choices(range(len(data.train)), k=2000)
if step in ("checked", "random rows"):
    from toolkit.data.loading import load_data
if step == "random rows":
    wanted = recipe()
    data = load_data(wanted, wanted.task)
began = time.perf_counter()
"""
REPORT = """
seconds = time.perf_counter() - began
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write_records(file: Path, count: int) -> float:
    """Write records in ReXVQA's layout and return their mean size in bytes.

    A study has four questions, and a question has one or two X-rays.
    """
    rng = random.Random(1)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            text = json.dumps({f"case_{number:06d}": record(rng, number // 4)})[1:-1]
            stream.write(("{" if number == 0 else ", ") + text)
        stream.write("}")
    return file.stat().st_size / count


def record(rng: random.Random, study: int) -> dict[str, object]:
    def words(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count)).capitalize() + "."

    images = [f"images/patient{study // 2:06d}/study{study % 2}/view{view}.png" for view in range(1 + study % 2)]
    return {
        "question": words(9)[:-1] + "?",
        "options": [f"{letter}. {words(4)}" for letter in "ABCD"],
        "correct_answer": rng.choice("ABCD"),
        "correct_answer_explanation": words(17),
        "ImagePath": images,
        "Indication": words(5),
        "Comparison": "None.",
        "Findings": words(25),
        "Impression": words(7),
        "PatientSex": rng.choice("MF"),
        "PatientAge": f"{rng.randint(1, 90):03d}Y",
    }


def measure(step: str, source: Path, cache: Path) -> tuple[float, float]:
    """Seconds and peak MB (resident) of one step in a fresh process."""
    code = f"{PREPARE}\n{STEPS[step]}\n{REPORT}"
    command = [sys.executable, "-c", code, str(source), step]
    environment = {"TOOLKIT_CACHE": str(cache), "PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def run_rounds(source: Path, folder: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Return step -> least seconds and largest RAM."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        # A new cache each round: the first step that uses it builds the index.
        plain, checked = folder / f"plain{number}", folder / f"checked{number}"
        steps = [
            ("json.load", "json.load", plain),
            ("index", "index", plain),
            ("index again", "index", plain),
            ("json.load", "json.load", plain),
            ("checked", "checked", checked),
            ("checked again", "checked", checked),
            ("random rows", "random rows", checked),
        ]
        for name, step, cache in steps:
            seen.setdefault(name, []).append(measure(step, source, cache))
    return {name: (min(s for s, _ in found), max(mb for _, mb in found)) for name, found in seen.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=600_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where 0.5 GB of records and 1 GB of indices go for a while")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        size = write_records(folder / "records.json", options.records)
        found = run_rounds(folder / "records.json", folder, options.rounds)
    baseline = found["json.load"][0]
    results = {
        "first indexing / json.load": found["index"][0] / baseline,
        "first indexing, every row checked / json.load": found["checked"][0] / baseline,
        "json.load, MB": found["json.load"][1],
        "first indexing, MB": found["index"][1],
        "first indexing, every row checked, MB": found["checked"][1],
        "opened again, s": found["index again"][0],
        "opened again, MB": found["index again"][1],
        "opened again with its checks, s": found["checked again"][0],
        "opened again with its checks, MB": found["checked again"][1],
        "random row to Sample, ms": found["random rows"][0] / 2000 * 1000,
    }
    for what, value in results.items():
        limit = f"  (at most {LIMITS[what]:g})" if what in LIMITS else ""
        print(f"{what:<48}{value:10.3f}{limit}")
    facts = {"records": options.records, "bytes a record": size, "json.load, s": baseline}
    print(json.dumps({**facts, **results}))
    return int(any(results[what] > most for what, most in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
