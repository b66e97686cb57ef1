"""Which class of transformers makes a decoder of a configuration: a causal language model's, or the language half of a
model that also sees or hears, whose towers are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from dslight.components.decoders.shrunk import shrunk
from dslight.components.transformers_config import as_decoder


@contextmanager
def told(kind: str) -> Iterator[None]:
    """Say in a sentence why transformers makes no decoder of a configuration.

    Raises:
        ValueError: naming the kind.
    """
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"config.model_type: transformers makes no decoder of a {kind} configuration like this one "
            f"({type(error).__name__}: {why})"
        ) from error


def outline(config: Any, options: Mapping[str, Any]) -> Any:
    """A decoder of ``config`` as it begins, with ``options`` of transformers' ``from_config``.

    Raises:
        ValueError: as :func:`class_for`; transformers makes none of it.
    """
    with told(config.model_type):
        made, whole = class_for(as_decoder(config), options.get("trust_remote_code", False))
        return made.from_config(whole, **options)


def read(name: str, config: Any, options: Mapping[str, Any]) -> Any:
    """A decoder with the weights of a checkpoint, all of them.

    Raises:
        ValueError: some are not there, or have another shape: transformers would begin them at random.
    """
    made, whole = class_for(config, options.get("trust_remote_code", False))
    with told(config.model_type):
        model, info = made.from_pretrained(name, config=whole, output_loading_info=True, **options)
    missing = sorted({*info["missing_keys"], *(wrong[0] for wrong in info["mismatched_keys"])})
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(
            f"pretrained: {name} does not hold all weights of {type(model).__name__}: {shown} would begin at random"
        )
    return model


def class_for(config: Any, trust: bool = False) -> tuple[Any, Any]:
    """An auto class and the configuration to give it.

    Args:
        config: of a decoder, of a model with one inside, or of that alone.
        trust: whether the configuration may name code of its own.

    Raises:
        ValueError: there is no decoder in it.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    own_code = trust and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if own_code or type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM, config
    for name in getattr(config, "architectures", None) or ():
        named = getattr(transformers, name, None)
        if name.endswith("ForCausalLM") and getattr(named, "config_class", None) is type(config):
            AutoModelForCausalLM.register(type(config), named, exist_ok=True)  # Emu3's half, which no mapping names
            return AutoModelForCausalLM, config
    whole = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if type(config) in whole and not getattr(config, "is_encoder_decoder", False):
        return AutoModelForImageTextToText, config
    for around in whole.keys():  # noqa: SIM118  # a mapping that is read as it is needed
        inside = getattr(around, "sub_configs", None) or {}
        if inside.get("text_config") is type(config):
            return AutoModelForImageTextToText, _around(around, config)
    raise ValueError(f"config.model_type: {config.model_type} is no decoder of transformers, nor has it one inside")


def _around(kind: Any, text: Any) -> Any:
    """The configuration of a multimodal model with ``text`` as its language half, whose towers are as small as can be,
    as they are left out."""
    fields = kind().to_dict()
    small = {
        name: value for name, value in shrunk(fields).items() if name.endswith("_config") and name != "text_config"
    }
    made = kind(**{**small, "text_config": text.to_dict()})
    made.tie_word_embeddings = getattr(text, "tie_word_embeddings", False)
    return made


def leave_out(model: Any, paths: tuple[str, ...]) -> None:
    """Take modules that no pass over text runs (towers for images and sounds, what leads from them) out of a model."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, None)


def idle(model: nn.Module, called: set[str]) -> tuple[str, ...]:
    """The outermost modules with weights, inside of which none was called; of those that stand in no list."""
    found: list[str] = []
    for path, module in model.named_modules():
        if not path or any(path.startswith(f"{other}.") for other in found) or any(map(str.isdigit, path.split("."))):
            continue
        used = any(name == path or name.startswith(f"{path}.") for name in called)
        if not used and any(True for _ in module.parameters()) and not isinstance(module, nn.ModuleList):
            found.append(path)
    return tuple(found)
