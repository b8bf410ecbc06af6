"""Base class of all sections of a recipe."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the recipe. It is frozen, and rejects unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
