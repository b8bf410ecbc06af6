"""Files of weights in a folder. Only whole safetensors files are read, because a pickle can run code.

This module imports no model library.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from toolkit.errors import ModelError
from toolkit.models.model_config import read_configuration, read_object
from toolkit.runfolder.manifest import check_weights

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")
"""Suffixes of pickled files."""
STATES = ("optimizer.", "scheduler.", "scaler.", "rng_state", "training_args.")
"""Beginnings of the names of pickled files that the trainer writes beside weights."""

Shape = tuple[int, ...]


def check_model_folder(folder: Path) -> None:
    """Check the files of a model in a folder, except those of its processor.

    Raises:
        ModelError: A file is missing, pickled or damaged, a size in config.json is out of range, or the folder contains
            an adapter.
        RunError: The folder is an export of a run, and a file differs from its manifest.
    """
    check_regular(folder)
    if (folder / "adapter_config.json").is_file():  # transformers would load the base that the adapter names
        raise ModelError(
            "model.name_is_adapter",
            "the model must be a full model, not an adapter",
            place=folder,
            remedy="Set model.adapter to this folder, and model.name to the adapter's base model.",
        )
    if (folder / "config.json").exists():
        read_configuration(folder / "config.json")
    if (folder / "generation_config.json").exists():  # transformers ignores a damaged one
        read_object(folder / "generation_config.json", "model.generation_config")
    model_weights(folder)
    check_weights(folder, remedy="Restore the file, or export again with toolkit export.")


def check_regular(folder: Path) -> None:
    """Raise ModelError for a named pipe or a device in the folder. Reading one would not end."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.exists() and not file.is_file() and not file.is_dir():
            rule = "every file of a model must be a regular file"
            raise ModelError("model.file_not_regular", rule, place=file, remedy="Remove it, or copy the model again.")


def model_weights(folder: Path) -> list[Path]:
    """Return the safetensors files of the model in a folder, which transformers loads. All of them are whole.

    Raises:
        ModelError: A file is missing, pickled, or damaged.
    """
    files = _model_files(folder)
    for file in files:
        tensor_shapes(file)
    return files


def adapter_weights(folder: Path) -> Path:
    """Return the safetensors file of the adapter in a folder.

    Raises:
        ModelError: The file is missing or pickled.
    """
    file = folder / ADAPTER
    if not file.exists():
        raise _missing_error(folder, ADAPTER, _convert_adapter(folder))
    return file


def tensor_shapes(file: Path) -> Mapping[str, Shape]:
    """Return the names and shapes of the tensors in a safetensors file, from its header.

    Raises:
        ModelError: The file is damaged: it is cut, its header is invalid, or it has no tensors.
    """
    if not file.is_file():  # opening a named pipe would wait forever
        raise damaged_error(file, "no regular file")
    try:
        with safe_open(file, framework="numpy") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise damaged_error(file, error) from error
    if not shapes:
        raise damaged_error(file, "no tensors")
    return shapes


def pickled_weights(folder: Path) -> list[str]:
    """Return the names of the pickled weights in a folder, without the states that a trainer writes."""
    try:
        names = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLES)
    except OSError:
        return []
    return [name for name in names if not name.startswith(STATES)]


def damaged_error(file: Path, reason: object) -> ModelError:
    """Return the error for a file of weights that cannot be read."""
    return ModelError(
        "model.weights_damaged",
        "a file of weights must be a whole safetensors file",
        place=file,
        value=(str(reason).strip() or type(reason).__name__).splitlines()[0][:200],
        remedy="Copy or download the file again.",
    )


def _model_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        names = _indexed(folder / INDEX)
        if missing := [name for name in names if not (folder / name).exists()]:
            raise _missing_error(folder, missing, "Copy or download the missing files.")
        return [folder / name for name in names]
    raise _missing_error(folder, SINGLE, _convert_model(folder))


def _indexed(index: Path) -> list[str]:
    """Return the names of the files that an index names. transformers would follow a path out of the folder."""
    try:
        names: Iterable[object] = set(read_object(index, "model.index")["weight_map"].values())
    except (LookupError, TypeError, AttributeError) as error:
        raise damaged_error(index, error) from error
    plain = sorted(name for name in names if isinstance(name, str) and _is_plain(name))
    if not plain or len(plain) != len(list(names)):
        raise damaged_error(index, "weight_map must name safetensors files of the folder")
    return plain


def _is_plain(name: str) -> bool:
    return name.endswith(".safetensors") and Path(name).name == name and "\\" not in name


def _missing_error(folder: Path, wanted: object, remedy: str) -> ModelError:
    """Return the error for files that are missing. ``remedy`` is for a folder with pickled weights."""
    if pickled := pickled_weights(folder):
        return ModelError(
            "model.weights_pickled",
            "weights must be stored as safetensors, because a pickle can run code",
            place=folder,
            value=pickled[:5],
            remedy=remedy,
        )
    return ModelError(
        "model.weights_missing",
        "the folder must contain every file of the weights",
        place=folder,
        value=f"{wanted} is missing" if isinstance(wanted, str) else wanted,
        remedy="Copy or download the missing files.",
    )


def _convert_model(folder: Path) -> str:
    load = f"AutoModelForImageTextToText as M; M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')"
    return f'If you trust the files, convert them: python -c "from transformers import {load}"'


def _convert_adapter(folder: Path) -> str:
    names = pickled_weights(folder)
    load = f"torch.load('{folder / (names[0] if names else 'adapter_model.bin')}', weights_only=True)"
    save = f"s.save_file({{k: v.clone() for k, v in {load}.items()}}, '{folder / ADAPTER}', {{'format': 'pt'}})"
    return f'If you trust the file, convert it: python -c "import torch, safetensors.torch as s; {save}"'
