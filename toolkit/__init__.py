"""Fine-tune medical vision-language models on one GPU: SFT, GRPO, evaluation and export from one recipe."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from toolkit.api import evaluate, export, load_predictor, plan, predict, run

__all__ = ["evaluate", "export", "load_predictor", "plan", "predict", "predict_rows", "run"]


def __getattr__(name: str) -> Any:
    """Import the Python API when one of its functions is first used, so that ``import toolkit`` stays fast."""
    if name in __all__:
        from toolkit import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the module, with those that are not imported yet."""
    return sorted({*globals(), *__all__})
