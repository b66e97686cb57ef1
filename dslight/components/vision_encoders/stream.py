"""What a vision transformer is, found out by a pass that computes nothing: its layers and the stream that they pass on.

Nothing is looked up by a model's name. The pass runs on the meta device with hooks on every list of modules. The layers
are the list whose members are called once each, in order, and take and give the same ``[B, N, C]``; prefix tokens are
what the model puts before the patches when it makes the sequence; what no gradient reaches is not needed. A model that
is otherwise is refused in one sentence, which says what it is instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, cast

from torch import Tensor, nn

from dslight.types import Grid
from dslight.upstream.torch import watch_operations

VIEWS = 2
"""Of a pass: more than one, since some models lay the patches of all images into one row."""


@dataclass
class Call:
    """One call of a module: its first tensor, and what it gives back (the first of several)."""

    given: Tensor | None
    gave: Any
    when: int  # how many sequences had been joined before

    @property
    def same(self) -> bool:
        """Whether it took and gave ``[VIEWS, N, C]``."""
        return (
            self.given is not None
            and isinstance(self.gave, Tensor)
            and self.given.ndim == 3
            and len(self.given) == VIEWS
            and self.given.shape == self.gave.shape
        )


@dataclass
class Pass:
    """All that one pass has shown."""

    output: Any = None
    calls: dict[str, list[Call]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    joined: list[tuple[int, list[int]]] = field(default_factory=list)  # when and which lengths along the sequence
    random: str | None = None
    normalises: bool = False


def _note(seen: Pass) -> Callable[[str, Any, bool], None]:
    """How sequences are joined, whether anything is drawn at random, whether a mean is taken off the pixels."""

    def see(name: str, args: Any, random: bool) -> None:
        if name.startswith("aten.cat."):
            tensors, dim = args[0], args[1] if len(args) > 1 else 0
            if dim in (1, -2) and all(tensor.ndim == 3 for tensor in tensors):
                seen.joined.append((len(seen.order), [tensor.shape[1] for tensor in tensors]))
        elif name.startswith("aten.sub.") and _colours(args):
            seen.normalises = True
        elif random and "attention" not in name:
            seen.random = name

    return see


def _colours(args: Sequence[Any]) -> bool:
    """Whether a number for each colour is taken from pixels."""
    pixels, mean = args[0], args[1]
    both = isinstance(pixels, Tensor) and isinstance(mean, Tensor)
    return both and pixels.ndim == 4 and pixels.shape[1] == mean.numel() == 3


def watch(model: nn.Module, run: Callable[[], Any]) -> Pass:
    """Run a pass of ``model`` and note what its lists of modules are called with."""
    seen = Pass()

    def behind(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            gave = output[0] if isinstance(output, tuple) and output else output
            seen.calls[name][-1:] = [
                Call(given if isinstance(given, Tensor) else None, gave, seen.calls[name][-1].when)
            ]

        return hook

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.calls.setdefault(name, []).append(Call(None, None, len(seen.order)))
            seen.order.append(name)

        return hook

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if path:
                hooks.callback(module.register_forward_pre_hook(before(path)).remove)
                hooks.callback(module.register_forward_hook(behind(path), with_kwargs=True).remove)
        with watch_operations(_note(seen)):
            seen.output = run()
    return seen


def find_layers(model: nn.Module, seen: Pass) -> str:
    """The path of the list of layers.

    Raises:
        ValueError: the model has none through which one stream goes; said is what it has.
    """
    lists = {
        path: [f"{path}.{child}" for child, _ in module.named_children()]
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 0
    }
    called = {path: members for path, members in lists.items() if any(m in seen.calls for m in members)}
    stacks = {path: members for path, members in called.items() if _is_stack(seen, members)}
    stacks = {
        path: members
        for path, members in stacks.items()
        if not any(path.startswith(f"{layer}.") for other in stacks.values() for layer in other)
    }
    if not stacks:
        raise ValueError(
            f"has no transformer blocks through which one stream [B, N, C] goes{_instead(model, seen, called)}"
        )
    best = max(stacks, key=lambda path: _size(model, path))
    first = cast(Tensor, seen.calls[stacks[best][0]][0].given)
    for path, members in stacks.items():
        given = cast(Tensor, seen.calls[members[0]][0].given)
        earlier = seen.order.index(members[0]) < seen.order.index(stacks[best][0])
        if path != best and earlier and given.shape != first.shape:
            raise ValueError(
                f"has stages of its own: the layers of {path} work on {_said(given)}, those of {best} on {_said(first)}"
            )
    for path in called:
        within = best.startswith(f"{path}.")
        if (
            path not in stacks
            and not path.startswith(f"{best}.")
            and _size(model, path) > _size(model, best) * (1 + within)
        ):
            raise ValueError(
                f"has no transformer blocks through which one stream [B, N, C] goes"
                f"{_instead(model, seen, {path: called[path]})}"
            )
    return best


def _is_stack(seen: Pass, members: Sequence[str]) -> bool:
    """Whether each is called once, in order, and all take and give the same ``[VIEWS, N, C]``."""
    calls = [seen.calls.get(member, []) for member in members]
    if any(len(each) != 1 or not each[0].same for each in calls):
        return False
    shapes = {tuple(cast(Tensor, each[0].given).shape) for each in calls}
    when = [each[0].when for each in calls]
    return len(shapes) == 1 and when == sorted(when)


def _instead(model: nn.Module, seen: Pass, called: dict[str, list[str]]) -> str:
    """What the largest of these lists works on."""
    if not called:
        return ""
    path = max(called, key=lambda path: _size(model, path))
    ran = sorted((m for m in called[path] if m in seen.calls), key=seen.order.index)
    first, last = seen.calls[ran[0]][0], seen.calls[ran[-1]][-1]
    if len(seen.calls[ran[0]]) > 1 and first.same:
        return f": {ran[0]} is called {len(seen.calls[ran[0]])} times"
    return f": {path} takes {_said(first.given)} and gives {_said(last.gave)}"


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return shape_of(value)
    return "no tensor" if value is None else "more than one tensor"


def _size(model: nn.Module, path: str) -> int:
    return sum(parameter.numel() for parameter in model.get_submodule(path).parameters())


@dataclass(frozen=True)
class Stream:
    """What a vision transformer is.

    Attributes:
        layers: path of the list of layers.
        width: C.
        grid: (rows, columns) of patches.
        prefix: tokens before the patches in the layers' stream.
        outside: tokens before the patches in the output, if that is a sequence.
        channels: the axis of the output's channels: -1, or 1 where the output is a map ``[B, C, rows, columns]``.
        dropped: module or parameter -> what takes the place of what no gradient reaches.
        behind: modules behind the layers, whose output the layers' own output does not need.
        norm: the last norm, where the model's own output of the patches comes without it.
        normalises: whether the model itself takes a mean of colours off its pixels.
        early: whether the model runs when its list of layers is shorter.
    """

    layers: str
    width: int
    grid: Grid
    prefix: int
    outside: int
    channels: int = -1
    dropped: tuple[tuple[str, str], ...] = ()
    behind: tuple[str, ...] = ()
    norm: str | None = None
    normalises: bool = False
    early: bool = True

    def patches(self, output: Tensor) -> Tensor:
        """The model's output as ``[B, P, C]``."""
        if output.ndim == 3:
            return output[:, self.outside : self.outside + self.grid[0] * self.grid[1]]
        return output.flatten(1, 2) if self.channels == -1 else output.flatten(2).transpose(1, 2)


_SHORTENED = RLock()
"""Held while a model has some of its layers only: another thread waits until it is whole again."""


def whole_layers(model: nn.Module, path: str) -> Sequence[nn.Module]:
    """The list of layers at ``path``, all of them, whatever passes run in other threads."""
    with _SHORTENED:
        return cast(Sequence[nn.Module], model.get_submodule(path))


@contextmanager
def first_layers(model: nn.Module, path: str, depth: int) -> Iterator[None]:
    """While the block runs, the model has its first ``depth`` layers only."""
    owner, _, name = path.rpartition(".")
    with _SHORTENED:
        parent = model.get_submodule(owner)
        layers = cast(Any, getattr(parent, name))
        if depth < len(layers):
            setattr(parent, name, layers[:depth])
        try:
            yield
        finally:
            if depth < len(layers):
                setattr(parent, name, layers)


def drop(model: nn.Module, dropped: Sequence[tuple[str, str]]) -> None:
    """Take out what no gradient reaches: modules become ``nn.Identity``, parameters ``None`` or, where the model reads
    them all the same, buffers.
    """
    for path, how in dropped:
        owner, _, name = path.rpartition(".")
        parent = model.get_submodule(owner)
        if how == "identity":
            setattr(parent, name, nn.Identity())
        elif how == "none":
            setattr(parent, name, None)
        else:
            value = cast(Tensor, getattr(parent, name)).detach()
            delattr(parent, name)
            parent.register_buffer(name, value)


def prefix_of(seen: Pass, patches: int, tokens: int, until: int, since: int = 0) -> int | None:
    """How many of ``tokens`` stand before the ``patches``, from how the model joined them; ``None``: not seen.

    Raises:
        ValueError: for tokens behind the patches.
    """
    known = {patches: (0, 0)}  # length of a sequence with all patches -> tokens before and behind them
    for when, lengths in seen.joined:
        size = max((length for length in lengths if length in known), default=None)
        if size is not None and since <= when <= until:
            at, (before, behind) = len(lengths) - 1 - lengths[::-1].index(size), known[size]  # of equals, the last
            known[sum(lengths)] = before + sum(lengths[:at]), behind + sum(lengths[at + 1 :])
    if tokens not in known:
        return None
    before, behind = known[tokens]
    if behind:
        raise ValueError(f"puts {behind} tokens behind its {patches} patches, where a layer's stream has only a prefix")
    return before


def shape_of(value: Tensor) -> str:
    """A shape, where B is the number of views."""
    views, *others = value.shape
    return f"[{', '.join(map(str, ('B' if views == VIEWS else views, *others)))}]"


def one_line(error: BaseException) -> str:
    """The first line of an error, without addresses in memory."""
    text = str(error).strip().split("\n")[0].strip() or type(error).__name__
    return re.sub(r" at 0x[0-9a-f]+", "", text)[:200]
