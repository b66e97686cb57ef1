"""From a pass on the meta device to the facts of a vision transformer (:class:`~...stream.Stream`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dslight.components.vision_encoders.stream import (
    Pass,
    Stream,
    drop,
    find_layers,
    first_layers,
    one_line,
    prefix_of,
    shape_of,
    watch,
)
from dslight.types import Grid

Run = Callable[[], Any]


_KNOWN: dict[str, Any] = {}


def remembered(key: str | None, find: Callable[[], Any]) -> Any:
    """What ``find()`` gives, found out once in a process for a ``key`` that says all that it depends on."""
    if key is None:
        return find()
    if key not in _KNOWN:
        _KNOWN[key] = find()
    return _KNOWN[key]


def key_of(library: str, name: str, args: Any) -> str | None:
    """For :func:`remembered`; ``None`` where a class or a function is among the arguments."""
    try:
        return f"{library} {name} {json.dumps(args, sort_keys=True)}"
    except TypeError:
        return None


def discover(model: nn.Module, run: Run, grid_of: Callable[[Pass, int], Grid], norm_apart: bool = False) -> Stream:
    """Find out what ``model`` is, and take out of it what its patches do not need.

    Args:
        model: on the meta device.
        run: a pass of ``VIEWS`` images, which gives the model's output.
        grid_of: the rows and columns of patches, of the pass and the number of tokens in the stream.
        norm_apart: whether a last norm that the model applies to pooled features alone goes over the patches too.

    Raises:
        ValueError: the model is none whose stream can be read; the sentence begins with a verb.
    """
    training = model.training
    model.eval()
    with torch.device("meta"), torch.enable_grad():
        found, seen, final = _facts(model, run, grid_of, norm_apart)
        found = _drop_idle(model, run, found, seen, final)
        depth = len(cast(Any, model.get_submodule(found.layers)))
        with first_layers(model, found.layers, 1):
            early = depth == 1 or _works(run)
    model.train(training)
    return replace(found, early=early)


def _facts(
    model: nn.Module, run: Run, grid_of: Callable[[Pass, int], Grid], norm_apart: bool
) -> tuple[Stream, Pass, Tensor]:
    try:
        seen = watch(model, run)
    except Exception as error:  # whatever a stranger's model raises
        raise ValueError(f"cannot be run on an image alone: {one_line(error)}") from error
    if seen.random is not None:
        raise ValueError(f"draws at random in evaluation mode ({seen.random}), so no two passes would agree")
    layers = find_layers(model, seen)
    members = [f"{layers}.{name}" for name, _ in model.get_submodule(layers).named_children()]
    first, last = seen.calls[members[0]][0], seen.calls[members[-1]][0]
    _, tokens, width = cast(Tensor, first.given).shape
    rows, columns = grid_of(seen, tokens)
    if rows * columns > tokens:
        raise ValueError(f"has {tokens} tokens in its layers' stream, and {rows} x {columns} patches")
    prefix = prefix_of(seen, rows * columns, tokens, first.when)
    if prefix is None:
        raise ValueError(
            f"has {tokens} tokens in its layers' stream, of which {rows * columns} are patches, and where these stand "
            f"was not seen"
        )
    output, norm = seen.output, None
    if norm_apart and output is last.gave:
        norm = _norm_behind(model, seen, members[-1], width)
        output = output if norm is None else model.get_submodule(norm)(output)
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        raise ValueError(f"gives {_shape(output)}, and no features of patches")
    found = Stream(layers, width, (rows, columns), prefix, prefix, norm=norm, normalises=seen.normalises)
    found = _layout(found, output, tokens, seen, last.when)
    return found, seen, output


def _layout(found: Stream, output: Tensor, tokens: int, seen: Pass, behind: int) -> Stream:
    """Where in the output the patches are."""
    shape, count = tuple(output.shape), found.grid[0] * found.grid[1]
    if output.ndim == 4 and shape[2:] == found.grid and shape[1] == found.width:
        return replace(found, channels=1)
    if shape[-1] != found.width:
        raise ValueError(f"has layers that are {found.width} wide and an output of {shape_of(output)}")
    if output.ndim == 4 and shape[1:3] == found.grid:
        return found
    if output.ndim == 3 and shape[1] in (count, tokens):
        return replace(found, outside=0 if shape[1] == count else found.prefix)
    added = prefix_of(seen, tokens, shape[1], len(seen.order), behind) if output.ndim == 3 else None
    if added is None:
        raise ValueError(
            f"has an output of {shape_of(output)}, which is no longer on the {found.grid[0]} x {found.grid[1]} grid of "
            f"its layers"
        )
    return replace(found, outside=found.prefix + added)


def _norm_behind(model: nn.Module, seen: Pass, last: str, width: int) -> str | None:
    """The one norm that runs behind the last layer, over something else than the patches."""
    since = seen.order.index(last)
    norms = {
        path
        for path in seen.order[since:]
        if not path.startswith(f"{last}.")
        and "Norm" in type(model.get_submodule(path)).__name__
        and {tuple(p.shape) for p in model.get_submodule(path).parameters()} == {(width,)}
        and isinstance(seen.calls[path][-1].given, Tensor)
        and cast(Tensor, seen.calls[path][-1].given).shape[-1] == width
    }
    return norms.pop() if len(norms) == 1 else None


def _drop_idle(model: nn.Module, run: Run, found: Stream, seen: Pass, final: Tensor) -> Stream:
    """Take out the modules and parameters that the patches' features do not depend on."""
    learnt = {name: p for name, p in model.named_parameters() if p.requires_grad}
    members = [f"{found.layers}.{name}" for name, _ in model.get_submodule(found.layers).named_children()]
    inner = cast(Tensor, seen.calls[members[-1]][0].gave)[:, found.prefix :]
    reached = leaves_of(found.patches(final), learnt)
    if not reached:
        raise ValueError("gives features that no gradient reaches")
    idle, behind = set(learnt) - reached, reached - leaves_of(inner, learnt)
    whole, single = covering(model, idle)
    dropped = []
    for path in whole:
        calls = [
            call for name in seen.calls if name == path or name.startswith(f"{path}.") for call in seen.calls[name]
        ]
        if not calls or (
            _off_path(found.patches(final), seen, path) and _still(model, run, path, nn.Identity(), final)
        ):
            dropped.append((path, "identity"))
        else:
            single += [f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters()]
    drop(model, dropped)
    for path in single:
        how = "none" if _still(model, run, path, None, final) else "buffer"
        drop(model, [(path, how)])
        dropped.append((path, how))
    modules, _ = covering(model, behind)
    return replace(found, dropped=tuple(dropped), behind=tuple(modules))


def leaves_of(features: Tensor, parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """The names of those that a gradient of ``features`` reaches: autograd's graph is walked, and nothing computed."""
    reached = _edges(features)
    edges = {name: torch.autograd.graph.get_gradient_edge(p) for name, p in parameters.items() if p.requires_grad}
    return {name for name, edge in edges.items() if (edge.node, edge.output_nr) in reached}


def _edges(features: Tensor) -> set[tuple[Any, int]]:
    """Of autograd's graph behind a tensor: each node, and which of its outputs is used."""
    if not features.requires_grad:
        return set()
    first = torch.autograd.graph.get_gradient_edge(features)
    found, waiting = {(first.node, first.output_nr)}, [first.node]
    visited = {first.node}
    while waiting:
        for node, output in waiting.pop().next_functions:
            if node is not None:
                found.add((node, output))
                if node not in visited:
                    visited.add(node)
                    waiting.append(node)
    return found


def _off_path(features: Tensor, seen: Pass, path: str) -> bool:
    """Whether what a module gives is not needed for the features either."""
    gave = [call.gave for call in seen.calls.get(path, [])]
    if not gave or not all(isinstance(value, Tensor) and value.requires_grad for value in gave):
        return False
    reached = _edges(features)
    edges = [torch.autograd.graph.get_gradient_edge(value) for value in gave]
    return all((edge.node, edge.output_nr) not in reached for edge in edges)


def _still(model: nn.Module, run: Run, path: str, instead: Any, final: Tensor) -> bool:
    """Whether the pass gives features of the same shape without this module or parameter; it is put back."""
    owner, _, name = path.rpartition(".")
    parent = model.get_submodule(owner)
    before = getattr(parent, name)
    setattr(parent, name, instead)
    try:
        return _works(run, final.shape)
    finally:
        setattr(parent, name, before)


def _works(run: Run, shape: Any = None) -> bool:
    with suppress(Exception), torch.no_grad():
        output = run()
        return shape is None or output.shape == shape
    return False


def covering(model: nn.Module, names: Iterable[str], prefix: str = "") -> tuple[list[str], list[str]]:
    """The fewest modules that have no learnt parameters but these, and the parameters that are in none of them."""
    names, modules = set(names), []
    single = [f"{prefix}{name}" for name, _ in model.named_parameters(recurse=False) if f"{prefix}{name}" in names]
    for child, module in model.named_children():
        own = {f"{prefix}{child}.{name}" for name, _ in module.named_parameters()}
        if own and own <= names:
            modules.append(f"{prefix}{child}")
        elif own & names:
            below, rest = covering(module, names, f"{prefix}{child}.")
            modules, single = modules + below, single + rest
    return modules, single


def _shape(value: Any) -> str:
    return shape_of(value) if isinstance(value, Tensor) else type(value).__name__
