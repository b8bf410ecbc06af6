"""What stands beside exported weights: the base's public name, Modelfiles, the card; and a digest of it all."""

import hashlib
from pathlib import Path

from toolkit.exporting.card import CARD, CardFacts, write_card
from toolkit.exporting.serving import commands, write_modelfiles
from toolkit.models.model_paths import public_name
from toolkit.runfolder import Record, read_json, write_json

BLOCK = 1 << 20


def name_base(folder: Path) -> None:
    """Have an adapter's configuration call its base by a name that means something on other machines."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    settings = read_json(file)
    base = settings.get("base_model_name_or_path")
    if base and public_name(base) != base:
        write_json(file, {**settings, "base_model_name_or_path": public_name(base)})


def put_beside(folder: Path, facts: CardFacts) -> Record:
    """Write what goes with the weights in ``folder``; gives ``next``, commands that serve them, and ``digest``."""
    if facts.form == "gguf":
        write_modelfiles(folder, facts.serving)
    write_card(folder, facts)
    return {"next": commands(facts.form, folder, facts.serving), "digest": digest_of(folder)}


def digest_of(folder: Path) -> str:
    """A digest of the names and bytes of all files below ``folder`` but the card, which its owner may complete."""
    whole = hashlib.blake2b(digest_size=16)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name != CARD:
            whole.update(f"{name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as handle:
                while block := handle.read(BLOCK):
                    whole.update(block)
    return whole.hexdigest()
