"""Invalid recipes: every shipped recipe with mutated values, keys, syntax and bytes."""

import re
from functools import cache
from pathlib import Path
from random import Random

from tests.faults.children import ROOT
from tests.faults.fuzz_mutations import misspelled, mutate_bytes
from tests.faults.fuzz_outcomes import Case, batch_trial
from tests.faults.part import Part

VALUES = (
    *("nan", "-nan", "inf", "-inf", "+inf", "0", "-0", "-1", "1", "2", "0.0", "-0.5", "0.5", "1.0", "1e-300", "1e300"),
    *("1e400", "-1e300", "1e6", "1000000", "1000000000", "1000000000000", "9223372036854775807"),
    *("-9223372036854775808", "9" * 30, "9" * 4301, "0x7fffffffffffffff", "0b1", "1_000", "01", "1__0", "+5"),
    *("true", "false", "True", "null", "none", '""', '" "', '"x"', "'x'", '"tiny"', '"../x"', '"/"', '"~"', '"."'),
    *('"a\\u0000b"', '"\\ud800"', '"\\x00"', '"""a\nb"""', '"\\U0001F600"', '"\\u202e"', f'"{"a" * 300}"'),
    *(f'"{"a" * 100_000}"', '"/dev/zero"', '"/dev/full"', '"a" "b"', '"', "'", "=", "[", "{", "[]", "[[]]", "{}"),
    *(
        "[1, 2]",
        "[1, 'a']",
        '["a", "a"]',
        "[true]",
        "[nan]",
        "[{}]",
        "{a = 1}",
        "{a = {b = {c = 1}}}",
        "{a = 1, a = 2}",
    ),
    *("1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "[" * 60 + "]" * 60, "[" * 300 + "]" * 300),
    *("[" * 5_000 + "]" * 5_000, "{a=" * 300 + "1" + "}" * 300, "", "#", "\\", "$(id)", "`id`", "{{ 7*7 }}"),
    *("\"__import__('os').system('id')\"", '"http://127.0.0.1:9/x"', '"hf://x"', '"[a-z]+("', '"a#b#c"', '"*"'),
)
SECTIONS = (
    *("run", "model", "lora", "data", "data.synthetic", "data.split", "data.columns", "images", "prompt", "sft"),
    *("grpo", "rewards", "evaluate", "export", "imagegen", "imagegen.update", "imagegen.policy", "trainer", "Run"),
)
FEW = re.compile(r"^(train|validation|test) = \d+", re.MULTILINE)


@cache
def recipes() -> dict[str, str]:
    """Return the text of every shipped recipe by name, with few synthetic rows."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.toml"))}
    return {
        name: re.sub(r"^images = \d+", "images = 40", FEW.sub(r"\1 = 12", text), flags=re.M)
        for name, text in texts.items()
    }


def mutate(random: Random, text: str) -> bytes:
    """Return the recipe with a mistake."""
    kind = random.randrange(12)
    if kind < 6:
        for _ in range(random.choice((1, 1, 1, 3))):
            text = _mutate_line(random, text)
        return text.encode("utf-8", "surrogatepass")
    if kind < 8:
        return mutate_bytes(random, text.encode())
    if kind == 8:
        encodings = ("utf-16", "utf-32", "utf-8-sig", "latin-1", "cp1252", "utf-16-be")
        return f"# Größe\n{text}".encode(random.choice(encodings), "replace")
    if kind == 9:
        section, value = random.choice(SECTIONS), random.choice(VALUES)
        head = random.choice((f"[{section}]", f"[[{section}]]", f'["{section}"]', f"[{section}", f"{section} = 1"))
        return f"{text}\n{head}\n{random.choice(('x', 'name', 'r', 'learning_rate', '__class__'))} = {value}\n".encode()
    if kind == 10:
        key = random.choice((".".join(["a"] * 500), "run." * 60 + "name", '""', '"\\u0000"', "a b", "é", "a" * 5_000))
        return f"{key} = 1\n{text}".encode()
    whole = (b"", b"\0", b"\xff\xfe", b"{}", b"null", b"[run]", b"\n" * 100_000, b"#" * 1_000_000, b"x = 1\n" * 2)
    return random.choice(whole)


def _mutate_line(random: Random, text: str) -> str:
    lines = text.split("\n")
    keys = [number for number, line in enumerate(lines) if re.match(r"^[\w\". -]+=", line)]
    if not keys:
        return text
    at = random.choice(keys)
    key, _, value = lines[at].partition("=")
    kind = random.randrange(8)
    if kind < 4:
        lines[at] = f"{key}= {random.choice(VALUES)}"
    elif kind == 4:
        lines[at] = f"{misspelled(random, key.strip())} ={value}"
    elif kind == 5:
        lines.insert(random.choice(keys), lines[at])
    elif kind == 6:
        del lines[at]
    else:
        lines.insert(at, f"{key}= {random.choice(VALUES)}")
        del lines[at + 1]
        lines.insert(random.randrange(len(lines)), random.choice(("]", "}", '"', "[[", "\0", "= 1", "a.b.c", "\r")))
    return "\n".join(lines)


def make(random: Random, place: Path) -> Case:
    """Write a mutated recipe, and plan it."""
    name, text = random.choice(sorted(recipes().items()))
    file = place / "in" / name
    file.write_bytes(mutate(random, text))
    return Case(("plan", str(file), *random.choice(((), ("--json",)))), place)


PART = Part("recipes", "inputs", batch_trial("recipes", make, 20))
