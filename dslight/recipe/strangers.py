"""A recipe that comes with weights is data: it may name what is imported already, and nothing else but this library's,
and says nothing about whom to trust.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dslight.recipe.compose import flatten
from dslight.recipe.errors import RecipeError


def refuse_strangers(recipe: Mapping[str, Any], path: str | Path) -> None:
    """Refuse what would import something, or run code that a checkpoint brings along.

    Raises:
        RecipeError: naming the key.
    """
    named = ("class_path", "operation", "projector", "vision_encoder", "stacking", "language_model", "views")
    listed = ("data.template", "stage.schedule", "stage.schedule.name")  # where a word may stand, too, of our lists
    for key, value in flatten(recipe).items():
        if key.endswith("trust_remote_code") and value:
            raise RecipeError(f"{path}: its {key} asks for code to be run; give its recipe: load(..., recipe=...)")
        names = key.rpartition(".")[2] in named or (key in listed and "." in str(value))
        if names and isinstance(value, str) and not value.startswith("dslight."):
            module = value.rpartition(".")[0]
            if module not in sys.modules:
                raise RecipeError(f"{path}: its {key} is {value}; if you trust it, import {module or value} first")
