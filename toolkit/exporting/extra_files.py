"""Write the files beside exported weights (Modelfiles, model card), and compute the digest of a folder."""

import hashlib
from pathlib import Path

from toolkit.exporting.card import CARD, CardFacts, write_card
from toolkit.exporting.serving import commands, write_modelfiles
from toolkit.models.model_paths import public_name
from toolkit.runfolder import Record, read_json, write_json

BLOCK = 1 << 20


def set_public_base_name(folder: Path) -> None:
    """Set the base model's public name in an adapter's configuration, instead of a path of this machine."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    settings = read_json(file)
    base = settings.get("base_model_name_or_path")
    if base and public_name(base) != base:
        write_json(file, {**settings, "base_model_name_or_path": public_name(base)})


def write_extra_files(folder: Path, facts: CardFacts) -> Record:
    """Write Modelfiles and model card, and return ``next`` (commands that serve the weights) and ``digest``."""
    if facts.format_name == "gguf":
        write_modelfiles(folder, facts.serving)
    write_card(folder, facts)
    return {"next": commands(facts.format_name, folder, facts.serving), "digest": digest_of(folder)}


def digest_of(folder: Path) -> str:
    """Return a digest of all files below ``folder`` except the model card, which its owner may edit."""
    whole = hashlib.blake2b(digest_size=16)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name != CARD:
            whole.update(f"{name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as handle:
                while block := handle.read(BLOCK):
                    whole.update(block)
    return whole.hexdigest()
