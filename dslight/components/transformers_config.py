"""What a recipe says of a model of transformers: a checkpoint, a configuration, or both. For encoders and decoders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dslight.components.checkpoint_names import check_checkpoint
from dslight.limits import check_counts
from dslight.upstream.hub import stay_offline_without_network


def check_source(pretrained: str | None, config: Mapping[str, Any] | None, dtype: str) -> torch.dtype:
    """The dtype that ``dtype`` names.

    Raises:
        ValueError: when it names none, or neither a checkpoint nor a configuration is given.
    """
    if pretrained is None and config is None:
        raise ValueError("pretrained: name a checkpoint, or give a `config` for random weights")
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype):
        raise ValueError(f"dtype: {dtype!r} is no torch dtype; float32, bfloat16 and float16 are")
    return named


@contextmanager
def no_code(name: str, key: str) -> Iterator[None]:
    """Say in a sentence that a checkpoint or a tokenizer needs code which it brings along, where transformers says so,
    or that its files hold something else than they should, where transformers trips over them.

    Raises:
        ValueError: beginning with ``key``.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{key}: {_culprit(name)} is not built as it should be ({error})") from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{key}: {name} can only be opened by running code that it brings along, and none of it was run; set "
            f"trust_remote_code: true if you have read that code and trust it"
        ) from None
    except (LookupError, TypeError, AttributeError, RecursionError, StrictDataclassError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{key}: a file of {name} is not built as it should be ({why})") from error


def _culprit(name: str) -> str:
    """The text file of a folder that cannot be read, of which transformers says only where in it."""
    for file in sorted(path for path in Path(name).glob("*") if path.suffix in (".json", ".jinja", ".txt")):
        try:
            text = file.read_bytes().decode()
            if file.suffix == ".json":
                json.loads(text)
        except ValueError:
            return str(file)
        except (OSError, RecursionError):
            continue
    return f"a file of {name}"


def settings_of(name: str, trust: bool) -> Any:
    """Transformers' configuration of a checkpoint, by its hub name or folder.

    Raises:
        ValueError: it needs code of its own; it asks for more layers than the limit; it names another checkpoint.
    """
    from transformers import AutoConfig, PretrainedConfig

    if (Path(name) / "adapter_config.json").is_file():
        raise ValueError(
            f"pretrained: {name} holds an adapter, which names another checkpoint that would be opened; merge it first"
        )
    check_checkpoint(name)
    with no_code(name, "pretrained"):
        try:
            found = PretrainedConfig.get_config_dict(name)[0]
        except OSError as error:
            if Path(name).is_dir() or (why := stay_offline_without_network()) is None:
                raise
            raise ValueError(
                f"pretrained: there is no folder {name}, the cache of the Hub holds no such name, and {why}"
            ) from error
        check_numbers(found, f"pretrained: {name}: config.json")
        return AutoConfig.from_pretrained(name, trust_remote_code=trust)


def as_decoder(config: Any) -> Any:
    """``config``, of a model that looks back only: BERT and its kin look ahead unless their configuration says so."""
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    return config


_COUNT = re.compile(r"(num|n)_(\w+_)?(layers?|heads?|experts?)$")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def check_numbers(config: Mapping[str, Any], path: str) -> None:
    """Refuse a configuration that asks for too many layers or too few, or for kernels from the hub, which are
    code.

    Raises:
        ValueError: beginning with the key.
    """
    check_counts(config, path)
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_numbers(value, f"{path}.{key}")
        elif _COUNT.match(str(key)) and isinstance(value, int) and value < (str(key) in _LAYERS):
            raise ValueError(f"{path}.{key}: {value}; at least {int(str(key) in _LAYERS)}")
        elif str(key).endswith("_implementation") and "/" in str(value):
            raise ValueError(f"{path}.{key}: {value!r} names code from the hub, which only a recipe's `attention` may")


def check_attention(attention: str | None, dtype: torch.dtype, trust: bool = False) -> str | None:
    """What transformers takes as ``attn_implementation``.

    Args:
        attention: as the recipe says; ``auto``: FlashAttention where it is installed and the weights have half
            precision, else ``sdpa``, which torch brings along; ``None``: transformers' own choice.
        dtype: of the weights.
        trust: whether code from the hub may be run.

    Raises:
        ValueError: for FlashAttention that is not installed, and for kernels from the hub without ``trust``.
    """
    if attention is not None and "/" in attention and not trust:
        raise ValueError(
            f"attention: {attention} is code from the hub; set trust_remote_code: true if you trust whoever wrote it"
        )
    if attention == "auto":
        half = dtype in (torch.bfloat16, torch.float16)
        return "flash_attention_2" if half and find_spec("flash_attn") and torch.cuda.is_available() else "sdpa"
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ValueError(
            "attention: flash_attention_2 needs the package flash-attn, which is not installed here; sdpa needs "
            "nothing, auto takes FlashAttention where it is installed"
        )
    return attention


def configuration(config: Mapping[str, Any]) -> Any:
    """Transformers' configuration object of ``{model_type: llama, hidden_size: ..., ...}``.

    Raises:
        ValueError: for an architecture that transformers does not know, or a field that the architecture has not.
    """
    from transformers import AutoConfig

    if "model_type" not in config:
        raise ValueError("config.model_type: missing; name an architecture of transformers, e.g. llama, qwen2, phi3")
    check_numbers(config, "config")
    options = dict(config)
    kind = options.pop("model_type")
    # transformers keeps a misspelt key as an attribute that nothing reads, so it is looked for here
    if unknown := unread(kind, options):
        raise ValueError(f"config.{unknown[0]}: {type(AutoConfig.for_model(kind)).__name__} has no such field")
    try:
        return AutoConfig.for_model(kind, **options)
    except Exception as error:  # each library's own error for fields that do not go together
        said = str(error.__cause__ or error).strip().split("\n")[-1].strip()
        raise ValueError(f"config: {kind}: {said}") from error


_NONE = object()

TIED = "tie_word_embeddings"
"""Also of a text configuration that leaves it to the multimodal one around it."""

UNDECLARED = {"siglip_vision_model": {"vision_use_head"}}
"""What a model reads that its configuration has not in every version."""


def unread(kind: str, keys: Iterable[str]) -> list[str]:
    """Those of ``keys`` that no configuration of this model type has.

    Raises:
        ValueError: transformers has no such type.
    """
    from transformers import AutoConfig

    try:
        known = AutoConfig.for_model(kind)
    except ValueError as error:
        raise ValueError(f"config.model_type: transformers has no architecture {kind!r}") from error
    except Exception:  # one that has no valid defaults
        return []
    read = {TIED} | UNDECLARED.get(kind, set())
    return [key for key in keys if key not in read and field(known, key, _NONE) is _NONE]


def field(config: Any, key: str, default: Any = None) -> Any:
    """A field of a configuration; of one that differs from layer to layer, what is written down for all."""
    try:
        return getattr(config, key, default)
    except RuntimeError:  # which layer's is not said
        return config.to_dict().get(key, default)


def check_agreement(expected: Mapping[str, Any], actual: Any, name: str) -> None:
    """Compare what a recipe says of a checkpoint with its own configuration.

    Raises:
        ValueError: for the first field that differs.
    """
    for key, value in expected.items():
        if (found := field(actual, key)) != value:
            raise ValueError(f"config.{key}: the recipe says {value!r}, the checkpoint {name} has {found!r}")
