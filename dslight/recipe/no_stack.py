"""``model.stacking: null``: no stack. Over a base's stacking it is what that lays into the sequence, without more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dslight.recipe.errors import RecipeError

KEY = "model.stacking"
HOME = "dslight.components"

_ALONE = ("LowResolution", ("tap", "position"), {})
_LAID: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    **dict.fromkeys(("LowResolution", "DeepStackL", "DeepStackV", "DeepStackTaps", "ChannelConcat"), _ALONE),
    "CrossAttention": _ALONE,
    "DeepStackHD": ("SequenceConcat", ("tap", "newline", "unpad"), {"newline": True}),
}
"""Class -> what remains of it, with which of its arguments, and those that it sets itself."""
_STACKS = ("stacks", "encoder_stacks", "operation", "newline_in_stacks")


def without_stacks(section: Mapping[str, Any]) -> dict[str, Any]:
    """A stacking's section (``class_path``, ``init_args``) as it is without its stacks.

    Raises:
        RecipeError: nothing of an image would be left; or it is of a class that is not known here.

    Example:
        >>> without_stacks({"class_path": "dslight.components.DeepStackTaps", "init_args": {"taps": [2], "tap": -1}})
        {'class_path': 'dslight.components.LowResolution', 'init_args': {'tap': -1}}
    """
    home, _, name = str(section.get("class_path", "")).rpartition(".")
    arguments = dict(section.get("init_args") or {})
    if arguments.get("base") == "zero":
        raise RecipeError(
            f"{KEY}: null: the slots of {name} are zeros that stacks alone write on (base: zero), so nothing of an "
            f"image would be left; name a stacking whose base fills them"
        )
    if home.partition(".")[0] == "dslight" and name in ("DeepStack", "SequenceConcat"):
        kept = {key: value for key, value in arguments.items() if key not in _STACKS}
        return {**section, "init_args": kept}
    if home.partition(".")[0] != "dslight" or name not in _LAID:
        raise RecipeError(
            f"{KEY}: null: what {name} lays into the sequence beside its stacks is not known; name a stacking"
        )
    remains, keys, said = _LAID[name]
    return {
        "class_path": f"{HOME}.{remains}",
        "init_args": {**said, **{key: arguments[key] for key in keys if key in arguments}},
    }


def with_null(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A composed recipe whose stacking, if it is null because nothing lies below, is the one without a stack."""
    model = recipe.get("model")
    if not isinstance(model, Mapping) or model.get("stacking", ...) is not None:
        return recipe
    return {**recipe, "model": {**model, "stacking": {"class_path": f"{HOME}.LowResolution"}}}
