"""Models of the timm library, made with errors that name the argument to change."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from dslight.components.component import on_meta
from dslight.components.vision_encoders.stream import one_line
from dslight.limits import check_counts


def create_timm_model(name: str, pretrained: bool, model_args: dict[str, Any] | None, **options: Any) -> Any:
    """``timm.create_model``, with errors that begin with the argument to change; on the meta device nothing is read.

    Raises:
        ValueError: for a name or an argument that timm does not know, or weights that cannot be fetched.
    """
    import timm

    if ":" in name:
        raise ValueError(f"name: {name} is a place and no model of timm; name the model, and its file under `weights`")
    for key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir"):
        if key in (model_args or {}):
            raise ValueError(f"model_args.{key}: weights are read from what `weights` names, and checked there")
    check_counts(model_args or {}, "model_args")
    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name.split(".")[0], timm.list_models())) or "see timm.list_models()"
        raise ValueError(f"name: timm has no model {name!r}; similar: {close}")
    wanted = {**options, **(model_args or {})}
    try:
        return timm.create_model(name, pretrained=pretrained and not on_meta(), **wanted)
    except OSError as error:  # the Hub cannot be reached, or has no such weights
        raise ValueError(
            f"pretrained: the weights of timm's {name} are not in the cache and could not be fetched "
            f"({type(error).__name__}); without a network set HF_HOME to a cache that has them, or begin untrained: "
            f"pretrained: false"
        ) from error
    except TypeError as error:
        raise ValueError(f"model_args: timm's {name} refuses {model_args}: {error}") from error
    except (AssertionError, AttributeError, KeyError, ValueError) as error:
        if pretrained and not on_meta():
            raise
        raise ValueError(f"model_args: timm's {name} refuses {wanted}: {one_line(error)}") from error


def image_size_of(model: Any, model_args: dict[str, Any] | None) -> tuple[int, int]:
    """(height, width) in pixels of the images that a model is made for."""
    args = model_args or {}
    if "img_size" in args and args["img_size"] is None:
        raise ValueError("model_args.img_size: null is no size; name height and width, or leave it out for timm's own")
    embed = getattr(model, "patch_embed", None) or getattr(getattr(model, "encoder", None), "patch_embed", None)
    size = args.get("img_size") or getattr(embed, "img_size", None) or model.pretrained_cfg["input_size"][1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
