"""Files of others that try to run code, to leave their folder, or to replace the user's files.

Each payload writes a marker. A trial in which the marker appears is "code_executed".
"""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.children import ROOT
from tests.faults.fuzz_data import copy_images, make_voc, make_yolo, recipe_text, rows_of
from tests.faults.fuzz_images import POSTSCRIPT
from tests.faults.fuzz_outcomes import Case, attempt, digests, judge
from tests.faults.fuzz_own_files import COMMANDS, RUN, copy_base
from tests.faults.part import Outcome, Part, random_of

MODEL = ROOT / "toolkit" / "tiny" / "model"
MARKER = "marker"
LIMIT_S = 120.0


class _Payload:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def _touch(place: Path) -> str:
    return f"touch {place / MARKER}"


def evil_pickle(random: Random, place: Path) -> bytes:
    """Return a pickle that writes the marker: alone, in a dict, in a file of torch.save, old or new."""
    payload: Any = _Payload(_touch(place))
    if random.random() < 0.5:
        payload = {"state_dict": payload, "weight": [payload]}
    kind = random.randrange(3)
    if kind == 0:
        return pickle.dumps(payload, protocol=random.choice((0, 2, 4)))
    import torch

    stream = io.BytesIO()
    torch.save(payload, stream, _use_new_zipfile_serialization=kind == 1)
    return stream.getvalue()


def _code(place: Path) -> str:
    return f"import os\nos.system({_touch(place)!r})\nclass Evil:\n    pass\nclass EvilConfig:\n    pass\n"


def _evaluate(model: Path, place: Path) -> Case:
    copy_base("finished", place / "work")
    return Case(("evaluate", RUN, "--model", str(model), "--set", "evaluate.limit=2"), place)


def _plan_or_evaluate(random: Random, model: Path, place: Path) -> Case:
    if random.random() < 0.5:
        return _evaluate(model, place)
    file = _recipe(place, {"train": "rows.json"}, model={"name": str(model), "max_tokens": 512})
    _rows(place)
    return Case((random.choice(("plan", "run")), str(file)), place)


def _recipe(place: Path, data: dict[str, Any], **sections: Any) -> Path:
    file = place / "in" / "recipe.toml"
    file.write_text(recipe_text("vqa", {"split": {"test": 0.0}, **data}, **sections), encoding="utf-8")
    return file


def _rows(place: Path) -> None:
    copy_images("vqa", place / "in")
    (place / "in" / "rows.json").write_text(json.dumps(rows_of("vqa")), encoding="utf-8")


def _model(place: Path) -> Path:
    folder = place / "in" / "model"
    shutil.copytree(MODEL, folder)
    return folder


def _edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def pickled_weights(random: Random, place: Path) -> Case:
    """Replace the weights of a model by a pickle."""
    model = _model(place)
    if random.random() < 0.7:
        (model / "model.safetensors").unlink()
    content = evil_pickle(random, place)
    for name in random.choice(
        (("pytorch_model.bin",), ("model.bin",), ("pytorch_model-00001-of-00001.bin",), ("tf_model.h5",))
    ):
        (model / name).write_bytes(content)
    if random.random() < 0.3:
        (model / "pytorch_model.bin.index.json").write_text(
            json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}})
        )
    if random.random() < 0.2:
        (model / "model.safetensors").write_bytes(content)
    return _plan_or_evaluate(random, model, place)


def pickled_adapter(random: Random, place: Path) -> Case:
    """Replace the weights of an adapter by a pickle, and name strange things in its configuration."""
    copy_base("finished", place / "work")
    source = next((place / "work" / RUN).rglob("adapter_config.json")).parent
    adapter = place / "in" / "adapter"
    shutil.copytree(source, adapter)
    content = evil_pickle(random, place)
    if random.random() < 0.6:
        (adapter / "adapter_model.safetensors").unlink()
        (adapter / "adapter_model.bin").write_bytes(content)
    (adapter / "evil.py").write_text(_code(place))
    _edit(adapter / "adapter_config.json", **random.choice(ADAPTERS))
    return Case(("evaluate", RUN, "--model", str(adapter), "--set", "evaluate.limit=2"), place)


ADAPTERS: tuple[dict[str, Any], ...] = (
    {},
    {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
    {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},
    {"megatron_core": "evil", "megatron_config": {}},
    {"peft_type": "EVIL"},
    {"peft_type": "LOFTQ", "base_model_name_or_path": "/etc"},
    {"base_model_name_or_path": "evil/remote", "revision": "x"},
    {"target_modules": "(a+)+$"},
    {"target_modules": ["../../x"]},
    {"r": 10**7},
    {"modules_to_save": ["__class__"]},
    {"corda_config": {"cache_file": "adapter_model.bin"}},
    {"eva_config": {"x": 1}},
)


def pickled_checkpoint(random: Random, place: Path) -> Case:
    """Put a pickle into a checkpoint, with a manifest that fits."""
    copy_base(random.choice(("sft", "grpo")), place / "work")
    checkpoints = sorted((place / "work" / RUN).glob("stages/*/checkpoints/*"))
    content = evil_pickle(random, place)
    names = (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
        "adapter_model.bin",
        "pytorch_model.bin",
    )
    name = random.choice(names)
    for checkpoint in checkpoints:
        if checkpoint.is_dir():
            (checkpoint / name).write_bytes(content)
            for manifest in checkpoint.glob("*manifest*.json"):
                _fit(manifest, checkpoint, name)
    return Case(COMMANDS["run"], place)


def _fit(manifest: Path, checkpoint: Path, name: str) -> None:
    """Write the size and digest of a file into a manifest, whatever its layout."""
    import hashlib

    content = (checkpoint / name).read_bytes()
    facts = {"size": len(content), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def fitted(value: Any, under: str = "") -> Any:
        if isinstance(value, dict):
            if under == name:
                return {key: facts.get(key, inner) for key, inner in value.items()}
            return {key: fitted(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [fitted(inner, under) for inner in value]
        if under == name:
            return facts["size"] if isinstance(value, int) else facts["sha256"]
        return value

    manifest.write_text(json.dumps(fitted(json.loads(manifest.read_text(encoding="utf-8")))), encoding="utf-8")


def remote_code(random: Random, place: Path) -> Case:
    """Name code of the model folder in its configurations."""
    model = _model(place)
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py", "processing_evil.py", "tokenization_evil.py"):
        (model / name).write_text(_code(place))
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(_code(place) + "def generate(**x): pass\n")
    auto = dict.fromkeys(
        ("AutoModelForImageTextToText", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil"
    )
    auto |= {"AutoConfig": "evil.EvilConfig", "AutoProcessor": "evil.Evil", "AutoImageProcessor": "evil.Evil"}
    files = (
        "config.json",
        "tokenizer_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "generation_config.json",
    )
    for name in random.sample(files, random.choice((1, 2, 5))):
        changes: dict[str, Any] = {"auto_map": {**auto, "AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        if random.random() < 0.4:
            changes |= random.choice(
                (
                    {"model_type": "evil"},
                    {"tokenizer_class": "Evil"},
                    {"processor_class": "Evil"},
                    {"custom_generate": "."},
                    {"image_processor_type": "Evil"},
                )
            )
        _edit(model / name, **changes)
    return _plan_or_evaluate(random, model, place)


TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('%s') }}",
    "{{ lipsum.__globals__['os'].popen('%s').read() }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('%s') }}",
    "{{ raise_exception('%s') }}",
    "{%% for x in range(10**9) %%}a{%% endfor %%}",
    "{{ 'a' * 9999999999 }}",
    "{%% include '/etc/passwd' %%}",
    "{%% import 'os' as os %%}{{ os.system('%s') }}",
    "{{ messages }}{%% endif %%}",
    "{{ messages | attr('__class__') }}",
    "",
)


def chat_template(random: Random, place: Path) -> Case:
    """Give a model a chat template that tries to leave its sandbox, or never ends."""
    model = _model(place)
    text = random.choice(TEMPLATES)
    text = text % _touch(place) if "%s" in text else text.replace("%%", "%")
    for file in (model / "chat_template.jinja", model / "chat_template.json"):
        if file.suffix == ".jinja" or file.exists():
            file.write_text(text if file.suffix == ".jinja" else json.dumps({"chat_template": text}))
    return _plan_or_evaluate(random, model, place)


def postscript(random: Random, place: Path) -> Case:
    """Name a PostScript file like an image. Another program named gs is on the path."""
    _rows(place)
    tools = place / "tools"
    tools.mkdir()
    for name in ("gs", "gswin32c", "convert", "inkscape", "dcmdump", "ffmpeg"):
        (tools / name).write_text(f"#!/bin/sh\n{_touch(place)}\n")
        (tools / name).chmod(0o755)
    suffix = random.choice((".png", ".jpg", ".tif", ".eps", ".ps", ".pdf", ".gif", ".dcm", ".nii"))
    xray = place / "in" / "images" / f"xray{suffix}"
    content = random.choice(
        (POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + bytes(26) + POSTSCRIPT, b"%!PS\n" + POSTSCRIPT, b"%PDF-1.4\n")
    )
    xray.write_bytes(content)
    rows = rows_of("vqa")
    rows[0]["image_name"] = f"images/xray{suffix}"
    (place / "in" / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    file = _recipe(place, {"train": "rows.json", "max_dropped": 1.0})
    environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    return Case(random.choice((("data", "inspect", str(file)), ("run", str(file)))), place, environment=environment)


def traversal(random: Random, place: Path) -> Case:
    """Name an image outside the data root, by its path or by a link."""
    _rows(place)
    secret = place / "outside" / "secret.png"
    secret.parent.mkdir()
    shutil.copy(next((place / "in" / "images").iterdir()), secret)
    link = place / "in" / "images" / "link.png"
    link.symlink_to(secret)
    (place / "in" / "images" / "linked").symlink_to(secret.parent)
    paths = (
        "../outside/secret.png",
        str(secret),
        "images/../../outside/secret.png",
        "images/link.png",
        "images/linked/secret.png",
        f"file://{secret}",
        "..\\outside\\secret.png",
        "./images/./../../outside/secret.png",
        "../outside/secret",
    )
    rows = rows_of("vqa")
    rows[0]["image_name"] = random.choice(paths)
    (place / "in" / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    file = _recipe(place, {"train": "rows.json"})
    return Case(("data", "inspect", str(file)), place)


def run_names(random: Random, place: Path) -> Case:
    """Name a run, an evaluation or a folder so that files would be written elsewhere."""
    _rows(place)
    (place / "in" / "runs").mkdir()
    (place / "in" / "runs" / "notes.txt").write_text("mine")
    file = _recipe(place, {"train": "rows.json"})
    names = (
        "../in/runs",
        "../../x",
        "/tmp/x",
        "a/../../x",
        "..",
        ".",
        "",
        "a\\b",
        "~",
        "CON",
        "x\n",
        "-x",
        "..\\x",
        "a" * 300,
    )
    name = random.choice(names)
    if random.random() < 0.6:
        setting = random.choice(
            (f"run.name={json.dumps(name)}", f"run.folder={json.dumps(str(place / 'in' / 'runs' / 'notes.txt'))}")
        )
        return Case((random.choice(("run", "plan")), str(file), "--set", setting), place)
    copy_base("finished", place / "work")
    return Case(("evaluate", RUN, "--set", "evaluate.limit=2", f"--name={name}"), place)


def links(random: Random, place: Path) -> Case:
    """Put links to the user's files in the places that a command writes."""
    notes = place / "in" / "notes.txt"
    notes.write_text("mine")
    copy_base("finished", place / "work")
    command = random.choice(("evaluate", "export", "predict", "report", "run"))
    run = place / "work" / RUN
    targets = {
        "evaluate": (run / "results.json", run / "stages" / "more", run / "log.txt", run.parent / ".chest.lock"),
        "export": (place / "work" / "out", run / "README.md", run / "log.txt"),
        "predict": (place / "work" / "answers.jsonl",),
        "report": (place / "work" / "report.json",),
        "run": (run / "plan.json", run / "metrics.jsonl", run / "compute.jsonl", run / "log.txt", run),
    }
    target = random.choice(targets[command])
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    target.symlink_to(random.choice((notes, notes.parent)))
    return Case(COMMANDS[command], place)


def datasets(random: Random, place: Path) -> Case:
    """Put code, entities and paths into the files of a dataset."""
    folder = place / "in" / "set"
    folder.mkdir()
    kind = random.randrange(6)
    data: dict[str, Any] = {"train": str(folder), "task": "detect"}
    if kind == 0:
        data = make_yolo(folder)
        (folder / "data.yaml").write_text(f"names: !!python/object/apply:os.system ['{_touch(place)}']\n")
    elif kind == 1:
        data = make_voc(folder)
        file = next((folder / "Annotations").iterdir())
        entity = random.choice(("SYSTEM 'file:///etc/passwd'", f"'{'a' * 1000}'"))
        file.write_text(f"<!DOCTYPE a [<!ENTITY b {entity}>]>" + file.read_text().replace("nodule", "&b;" * 1000))
    elif kind == 2:
        (folder / "set.py").write_text(_code(place))
        (folder / "README.md").write_text(f"---\nconfigs: !!python/object/apply:os.system ['{_touch(place)}']\n---\n")
        (folder / "train.jsonl").write_text(json.dumps({"image": "1.png", "label": "a"}))
    elif kind == 3:
        with zipfile.ZipFile(folder / "set.zip", "w") as archive:
            archive.writestr(random.choice(("../../marker", f"{place / MARKER}", "a/../../../marker")), "x")
            archive.writestr("rows.json", json.dumps(rows_of("vqa")))
        data = {"train": str(folder / "set.zip"), "task": "vqa"}
    elif kind == 4:
        (folder / "dataset_info.json").write_text(
            json.dumps({"features": {"a": {"_type": "evil.Evil"}}, "builder_name": "evil"})
        )
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../../secret"}]}))
        (folder / "data-00000-of-00001.arrow").write_bytes(evil_pickle(random, place))
    else:
        (folder / "rows.pkl").write_bytes(evil_pickle(random, place))
        data = {"train": str(folder / "rows.pkl"), "task": "vqa"}
    file = place / "in" / "recipe.toml"
    task = data.pop("task")
    file.write_text(recipe_text(task, {**data, "split": {"test": 0.0}}), encoding="utf-8")
    return Case(("data", "inspect", str(file)), place)


ATTACKS: tuple[Callable[[Random, Path], Case], ...] = (
    *(pickled_weights, pickled_adapter, pickled_checkpoint, remote_code, chat_template, postscript),
    *(traversal, run_names, links, datasets),
)
INSIDE = ("in", "work", "problems.json", "tools", "outside")


def trial(seed: int, number: int, folder: Path) -> Outcome:
    """Try one attack."""
    random = random_of(seed, "attacks", number)
    attack = ATTACKS[number % len(ATTACKS)]
    for name in ("in", "work"):
        (folder / name).mkdir()
    case = attack(random, folder)
    before = digests(folder / "outside")
    found = attempt(case, LIMIT_S)
    outcome = judge(found)
    if any(folder.rglob(MARKER)):
        outcome = Outcome("code_executed", "the payload wrote its marker", outcome.command)
    elif digests(folder / "outside") != before or {path.name for path in folder.iterdir()} - set(INSIDE):
        outcome = Outcome("file_changed", "something was written outside of the working directory", outcome.command)
    elif attack is traversal and found.ended.status == 0 and "unusable rows: 0" in found.ended.stdout:
        outcome = Outcome("different", "an image outside the data root was read", outcome.command)
    return Outcome(outcome.result, f"{attack.__name__}: {outcome.detail}", outcome.command)


PART = Part("attacks", "attacks", trial)
