"""The stable codes of errors, warnings and reasons, with their rules and remedies, found in the source.

A code is a text such as ``data.answer_not_text`` beside its rule: ``DataError(code, rule, remedy=...)``, a call of a
helper, a pair ``(code, rule)``, an assignment ``rule, code = ...``, or a constant that such a call has.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from docs.generate.source_texts import Module, Source
from toolkit import errors
from toolkit.recipe import recipe_model
from toolkit.recipe.problems import tables_of
from toolkit.recipe.renamed import RENAMED
from toolkit.tasks import TASKS

PACKAGE = Path(errors.__file__).parent

AREAS: Mapping[str, str] = {
    "api": "Python API",
    "cli": "Command line",
    "install": "Installation",
    "recipe": "Recipe",
    "data": "Data",
    "tasks": "Rows of a task",
    "images": "Images",
    "synthetic": "Synthetic data",
    "model": "Models",
    "plan": "Plan",
    "training": "Training",
    "generation": "Generation",
    "rewards": "Rewards",
    "evaluate": "Evaluation",
    "predict": "Prediction",
    "export": "Export",
    "push": "Push to the Hub",
    "run": "Run folder",
    "report": "Reports",
    "tracker": "Experiment trackers",
    "new": "New recipes",
    "recipes": "Shipped recipes",
    "demo": "Demo",
    "output": "Output files",
    "imagegen": "Image generation",
    "doctor": "Checks of the machine",
    "NAME": "Custom code",
}
"""First word of a code -> title of its section."""

_NO_CODE = re.compile(
    r".*(\.(json|jsonl|csv|txt|toml|yaml|yml|png|parquet|html|md|pt|ndjson|safetensors|css|js|jinja)|_)|synthetic\.write"
)
"""Names of files and functions, and beginnings of names."""
NAME = "NAME"
"""Part of a code that the program inserts."""
_DAMAGED = "Copy or download the file again."
_JSON_PLACES: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "json": [("error", "the file must be readable JSON", _DAMAGED)],
    "object": [("error", "the file must contain a JSON object", _DAMAGED)],
}
"""Last word of a code of ``toolkit.models.model_config.read_object``, which gets its beginning -> what it raises."""
MEANINGS: Mapping[str, str] = {
    "cli.arguments_invalid": "the command line must be valid",
    "data.boxes_found": "the format of boxes that was found in the rows",
    "data.image_not_found": "the image must exist",
    "data.order_irregular": "the steps of an episode must be complete and in order",
    "data.row_too_long_in_dry_run": "a row of the dry run is longer than model.max_tokens",
    "doctor.gpu_memory_in_use": "GPU: another process uses its memory",
    "doctor.gpu_memory_small": "GPU: its memory is small",
    "doctor.gpu_no_bfloat16": "GPU: it cannot compute in bfloat16",
    "imagegen.image_rows_conflict": "the rows of an image must agree",
    "model.gguf_projector_ambiguous": "the folder must have one projector: mmproj-NAME.gguf",
    "model.gguf_text_model_ambiguous": "the folder must have one text model, or the path must name a file",
    "plan.architecture_fails": "a batch of every stage must pass on a small random model of the architecture",
    "predict.columns_invalid": "the columns of the file must fit the task",
    "predict.rows_left_out": "rows that cannot be used are left out",
    "predict.steps_irregular": "the steps of an episode must be complete and in order",
    "recipe.conflict": "the keys of a section must fit together",
    "recipe.value_invalid": "the value must be valid for its key",
    "run.recipe_changed": "the recipe of a run must not change",
    "run.seeds_invalid": "seeds must be a number of seeds, or a list of them",
    "tasks.classify.labels_read": "the classes that were found in the training rows",
}
"""Codes whose rule is composed while the program runs -> their rule."""
CLASSES = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)}
LISTS = {"DataProblems", "PlanError", "RecipeError"}
"""Errors that list several problems."""
ROWS = {"RowProblem", "MissingImage"}
KINDS: Mapping[str, str] = {**dict.fromkeys(CLASSES - ROWS, "error"), **dict.fromkeys(ROWS, "row"), "warn": "warning"}
"""Function that takes a code -> kind of the code."""


@dataclass(slots=True)
class Entry:
    """A code with everything that the source says about it.

    Attributes:
        code: The code.
        kinds: error, warning, row (a row that cannot be used), or empty if the source does not say.
        rules: The rules, each once.
        remedies: The remedies, each once.
    """

    code: str
    kinds: set[str] = field(default_factory=set)
    rules: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)

    @property
    def area(self) -> str:
        """Return the first word of the code."""
        return self.code.partition(".")[0]

    def add(self, kind: str, rule: str, remedy: str) -> None:
        """Add one place of the source."""
        self.kinds.add(kind)
        for text, texts in ((rule, self.rules), (remedy, self.remedies)):
            if text and text not in texts:
                texts.append(text)


@cache
def entries() -> Mapping[str, Entry]:
    """Return code -> entry, in order of area and code."""
    source, found = Source(PACKAGE), dict[str, Entry]()
    for module in source.modules.values():
        for node in ast.walk(module.tree):
            for code in _codes(node, module):
                entry = found.setdefault(code, Entry(code))
                for place in (
                    _places(node, module, source) if code == _template(node) else _JSON_PLACES[code.rpartition("_")[2]]
                ):
                    entry.add(*place)
    for code, meaning in MEANINGS.items():
        found[code].rules = [meaning]
    areas = list(AREAS)
    return {code: found[code] for code in sorted(found, key=lambda code: (areas.index(found[code].area), code))}


def is_code(value: object) -> bool:
    """Return whether a constant is the code of an error, and not a key of a recipe or the name of a file."""
    if not isinstance(value, str) or not errors.CODE.fullmatch(value) or _NO_CODE.fullmatch(value):
        return False
    above = value.rpartition(".")[0]
    return value.partition(".")[0] in AREAS and value not in _keys() and ("." not in above or above not in _keys())


def _codes(node: ast.AST, module: Module) -> Sequence[str]:
    """Return the codes that a node of the source is, with ``NAME`` for what the program inserts."""
    code = _template(node)
    if code.endswith(f".{NAME}") or not is_code(code.replace(f"{NAME}.", "tasks.").replace(NAME, NAME.lower())):
        return ()
    parent = module.parents[node]
    if code.startswith(NAME) and not (isinstance(parent, ast.Call) and getattr(parent.func, "id", "") == "Problem"):
        return ()
    if isinstance(parent, ast.Call) and getattr(parent.func, "id", "") == "read_object":
        return f"{code}_not_json", f"{code}_not_object"
    return (code,) if isinstance(node, ast.Constant) or _is_code_place(node, parent) else ()


def _is_code_place(node: ast.AST, parent: ast.AST) -> bool:
    """Return whether a composed text is where a code is: first, or third in a call of ``add``, which counts rows."""
    parts = parent.args if isinstance(parent, ast.Call) else parent.elts if isinstance(parent, ast.Tuple) else []
    place = 2 if isinstance(parent, ast.Call) and getattr(parent.func, "attr", "") == "add" else 0
    return len(parts) > place and parts[place] is node


def _template(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else NAME for one in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@cache
def _keys() -> frozenset[str]:
    tables = tables_of(recipe_model(TASKS))
    keys = {".".join((*path, key)) for path, names in tables.items() for key in names}
    sections = {".".join(path) for path in tables}
    return frozenset({*keys, *sections, *RENAMED, *RENAMED.values()})


def _places(node: ast.AST, module: Module, source: Source) -> Iterator[tuple[str, str, str]]:
    """Yield kind, rule and remedy for each use of a code."""
    parent = module.parents.get(node)
    if isinstance(parent, ast.IfExp):
        yield from _places(parent, module, source)
    elif isinstance(parent, ast.Call):
        yield _call(parent, node, module, source)
    elif isinstance(parent, ast.keyword):
        yield from _places_of_keyword(parent, module, source)
    elif isinstance(parent, ast.Tuple):
        yield _tuple(parent, node, module, source)
    elif isinstance(parent, ast.Assign):
        yield from _uses(parent.targets[0], module, source)
    elif isinstance(parent, ast.Dict) and node in parent.keys:
        yield _value(parent, node, module, source)


def _places_of_keyword(node: ast.keyword, module: Module, source: Source) -> Iterator[tuple[str, str, str]]:
    call = module.parents[node]
    if isinstance(call, ast.Call) and node.arg == "code":
        yield _call(call, node, module, source)


def _call(call: ast.Call, code: ast.AST, module: Module, source: Source) -> tuple[str, str, str]:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    given = {one.arg: one.value for one in call.keywords}
    others = [one for one in call.args if one is not code]
    if name == "DoctorFinding":  # code, name, state, found, remedy
        name_, found = (source.text(one, module) for one in (others[0], others[2]))
        rule = ": ".join(filter(None, (name_, found)))
        return "", rule, source.text(given.get("remedy", others[3] if len(others) > 3 else None), module)
    by_place = others[-1] if name == "Problem" and len(others) == 4 else None
    rule = source.text(given.get("rule"), module) or _first_text(others, module, source)
    kind, remedy = KINDS.get(name, ""), source.text(given.get("remedy", by_place), module)
    if name in LISTS:
        return kind, rule, remedy or "Each line of the message has its own remedy."
    inner = _inner(name, code, call, module, source) if name not in KINDS else ("", "", "")
    return kind or inner[0], rule or inner[1], remedy or inner[2]


def _inner(name: str, code: ast.AST, call: ast.Call, module: Module, source: Source) -> tuple[str, str, str]:
    """Return what a function of the package does with a code that a call passes to it."""
    found = source.defined(name, module)
    if found is None or code not in call.args:
        return "", "", ""
    at, function = found
    names = [one.arg for one in function.args.args]
    place = call.args.index(code)
    for node in ast.walk(function) if place < len(names) else ():
        if isinstance(node, ast.Call) and node.args and getattr(node.args[0], "id", "") == names[place]:
            return _call(node, node.args[0], at, source)
    return "", "", ""


def _first_text(nodes: Sequence[ast.AST], module: Module, source: Source) -> str:
    """Return the first text of several words. A name of a variable or of a key is none."""
    texts = (source.text(one.value if isinstance(one, ast.Starred) else one, module) for one in nodes)
    return next((text for text in texts if " " in text.strip()), "")


def _value(table: ast.Dict, code: ast.AST, module: Module, source: Source) -> tuple[str, str, str]:
    """Return what a table has for a code."""
    value = table.values[table.keys.index(code)]  # type: ignore[arg-type]
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    return "", *_two_texts([source.text(one, module) for one in parts])


def _tuple(parent: ast.Tuple, code: ast.AST, module: Module, source: Source) -> tuple[str, str, str]:
    texts = [source.text(one, module) for one in parent.elts if one is not code]
    return "", *_two_texts(texts)


def _two_texts(texts: Sequence[str]) -> tuple[str, str]:
    """Return rule and remedy of the texts beside a code."""
    rule, remedy, *_ = [*(text for text in texts if " " in text.strip()), "", ""]
    return rule, remedy


def _uses(target: ast.AST, module: Module, source: Source) -> Iterator[tuple[str, str, str]]:
    """Yield the calls that have the name of a constant with a code, in every module that knows the name."""
    if not isinstance(target, ast.Name):
        return
    for other in source.modules.values():
        if other is not module and other.imports.get(target.id) != module.name:
            continue
        for node in ast.walk(other.tree):
            if isinstance(node, ast.Name) and node.id == target.id and isinstance(node.ctx, ast.Load):
                parent = other.parents[node]
                if isinstance(parent, ast.Call) and node in parent.args:
                    yield _call(parent, node, other, source)
                elif isinstance(parent, ast.Tuple):
                    yield _tuple(parent, node, other, source)
                elif isinstance(parent, ast.Dict) and node in parent.keys:
                    yield _value(parent, node, other, source)
