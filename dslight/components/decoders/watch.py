"""Which layers a decoder has, found by watching a pass: each is called once, in order, with the residual stream.

Nothing is known of a model but that its layers stand in a list. What a stack can be added to is told by how they are
called: a list of layers that is run through once, with ``[B, T, width]``, each with what the one before it gave. What
is called otherwise (again and again, time first, with several streams) is said, and refused: a stack there would mean
something else, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

BATCH, LENGTH = 2, 7
"""Of the rows that a pass is watched with; no other size of a tiny model is equal to one of them."""


@dataclass(frozen=True)
class Call:
    """One call of one layer."""

    path: str
    """Of the list that it stands in."""
    index: int
    shape: tuple[int, ...]
    follows: bool
    """Whether it was given what the layer called before it, of the same list, gave."""


@dataclass(frozen=True)
class Found:
    """What the watched pass showed.

    Attributes:
        layers: where the list of layers is, from the outermost module.
        why: why no stack can be added there; empty: it can.
    """

    layers: str
    why: str = ""
    called: tuple[int, ...] = ()
    """Which layers of the list are called: not all where some are for what is no text."""


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Call]]:
    """Yields every call of a module that stands in a list, while the block runs."""
    seen: list[Call] = []
    gave: dict[str, Any] = {}

    def enter(path: str, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            if isinstance(given, Tensor) and given.is_floating_point():
                follows = gave.get(path) is given or _equal(gave.get(path), given)
                seen.append(Call(path, index, tuple(given.shape), follows))

        return hook

    def leave(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            gave[path] = output[0] if isinstance(output, tuple | list) else output

        return hook

    with ExitStack() as hooks:
        for path, modules in model.named_modules():
            if isinstance(modules, nn.ModuleList):
                for index, module in enumerate(modules):
                    hooks.callback(module.register_forward_pre_hook(enter(path, index), with_kwargs=True).remove)
                    hooks.callback(module.register_forward_hook(leave(path)).remove)
        yield seen


@contextmanager
def named(model: nn.Module) -> Iterator[set[str]]:
    """Yields the paths of all modules that are called while the block runs."""
    seen: set[str] = set()
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(lambda *_, path=path: seen.add(path)).remove)
        yield seen


def _equal(gave: Any, given: Tensor) -> bool:
    if not isinstance(gave, Tensor) or gave.shape != given.shape:
        return False
    try:
        return bool((gave == given).all())
    except RuntimeError:  # without values
        return True


def find(
    seen: Iterable[Call], sizes: dict[str, int], width: int, batch: int, length: int, hidden: int | None = None
) -> Found:
    """The list of layers among those that were called.

    Args:
        seen: the calls of a pass over ``[batch, length]`` ids.
        sizes: how many modules each list holds.
        width: of the token embedding.
        batch: B.
        length: T.
        hidden: the width that the configuration names, where it does.
    """
    by_list: dict[str, list[Call]] = {}
    for call in seen:
        by_list.setdefault(call.path, []).append(call)
    outermost = {p: c for p, c in by_list.items() if not any(p.startswith(f"{other}.") for other in by_list if other)}
    if not outermost:
        return Found("", "no list of layers is called in a pass over text")
    judged = {path: _judged(seen, sizes[path], width, (batch, length), hidden) for path, seen in outermost.items()}
    good = [path for path, why in judged.items() if not why]
    if len(good) > 1:
        longest = max(sizes[path] for path in good)
        if len(several := [path for path in good if sizes[path] == longest]) > 1:
            return Found("", f"has {len(several)} lists of {longest} layers ({', '.join(several)})")
        good = several
    if good:
        return Found(good[0], called=tuple(call.index for call in outermost[good[0]]))
    path = max(judged, key=lambda path: (sizes[path], len(outermost[path])))
    return Found(path, judged[path])


def _judged(seen: list[Call], size: int, width: int, rows: tuple[int, int], hidden: int | None) -> str:
    """Why the modules of a list are no layers that stacks can be added at; empty: they are."""
    order = [call.index for call in seen]
    shapes = list(dict.fromkeys(call.shape for call in seen))
    expected = (*rows, width)
    if any(shape != expected for shape in shapes):
        shape = next(shape for shape in shapes if shape != expected)
        if shape == (*rows, hidden):
            return f"its embedding has width {width} and its residual stream {hidden}"
        return _misshapen(shape, expected)
    if len(order) > size and set(order) == set(range(size)):
        visits = ", ".join(map(str, order[:12])) + (", ..." if len(order) > 12 else "")
        return f"its {size} layers are looped (called in the order {visits}), so a stack would be added once per loop"
    if order != sorted(set(order)):
        return f"its layers are called in the order {', '.join(map(str, order[:12]))} of {size}"
    if not all(call.follows for call in seen[1:]):
        return "what one of its layers gives is not what the next one takes, so there is no one residual stream"
    return ""


def _misshapen(shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    batch, length, width = expected
    if shape == (length, batch, width):
        return "its layers take time first, [T, B, width]"
    if len(shape) == 4 and shape[0] == batch and shape[1] == length and shape[3] == width:
        return f"its residual stream is {shape[2]} streams per position (hyper-connections)"
    if len(shape) == 4 and shape[1:] == expected:
        return f"its residual stream is {shape[0]} predictions per position (AltUp)"
    if shape[:2] == (batch, length) and len(shape) == 3 and shape[2] % width == 0:
        return f"its residual stream is {shape[2] // width} streams of width {width} side by side (hyper-connections)"
    return f"its layers are called with {list(shape)}, not with [B, T, width] = {list(expected)}"
