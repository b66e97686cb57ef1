"""The one error of recipes: something that its writer can put right in a file or on the command line."""

from __future__ import annotations

from dslight.errors import UserError


class RecipeError(UserError):
    """A recipe that cannot be used. The first line reads ``key.path or file: what, the value, what to do``."""
