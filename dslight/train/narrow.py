"""Which parameters of a part train: a range of its layers, and names by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

Range = tuple[int | None, int | None]
"""Of layers, as a slice: from, and behind the last; negative numbers count from the end, ``None`` is the end itself."""


def narrow(
    part: nn.Module,
    layers: Range | None = None,
    only: Sequence[str] | None = None,
    frozen: Sequence[str] | None = None,
) -> None:
    """Freeze all parameters of a part but those that are in ``layers``, match ``only``, and do not match ``frozen``;
    what is not given says nothing. A parameter with several names (tied ones) matches by any of them.

    Args:
        part: one all of whose parameters train.
        layers: of its ``shard_units``.
        only: shell patterns of names in the part, such as ``*.layers.*.self_attn.*``.
        frozen: as ``only``.

    Raises:
        ValueError: beginning with the argument: a range of no layer, a pattern that matches nothing, or nothing that
            would be left to train.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in part.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    kept = set(names)
    if layers is not None:
        kept &= _of_layers(part, layers)
    if only is not None:
        kept &= _matching("only", only, names)
    if frozen is not None:
        kept -= _matching("frozen", frozen, names)
    if not kept:
        key = next(key for key, given in (("only", only), ("frozen", frozen), ("layers", layers)) if given is not None)
        raise ValueError(f"{key}: leaves nothing of {type(part).__name__} to train; leave the part out to freeze it")
    for parameter in part.parameters():
        parameter.requires_grad_(id(parameter) in kept)


def _of_layers(part: nn.Module, layers: Range) -> set[int]:
    units: Any = list(getattr(part, "shard_units", []))
    if not units:
        raise ValueError(f"layers: {type(part).__name__} has no layers")
    chosen = units[slice(*layers)]
    beyond = [end for end in layers if end is not None and not -len(units) <= end <= len(units)]
    if beyond or not chosen:
        what = f"{beyond[0]} is beyond them" if beyond else "that is none of them"
        said = ", ".join("null" if end is None else str(end) for end in layers)
        raise ValueError(f"layers: [{said}]: {what}; {type(part).__name__} has {len(units)} layers")
    return {id(parameter) for unit in chosen for parameter in unit.parameters()}


def _matching(key: str, patterns: Sequence[str], names: dict[int, list[str]]) -> set[int]:
    found: set[int] = set()
    for pattern in patterns:
        matched = {i for i, known in names.items() if any(fnmatchcase(name, pattern) for name in known)}
        if not matched:
            some = [known[0] for known in names.values()][:3]
            raise ValueError(f"{key}: {pattern!r} matches no parameter; there are {', '.join(some)} and others")
        found |= matched
    return found
