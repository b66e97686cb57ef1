"""Whether a decoder's layers pass the mask that the model is given on to their attention, unread.

Nearly all of transformers' do. One that makes a mask of its own out of it, or treats an attention of some name as its
own case, says so in its code alone; so that is read, instead of keeping a table of names of models.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from inspect import getsource
from sys import modules
from textwrap import dedent
from typing import Any, TypeGuard

from torch import nn

MASK, ATTENTION = "attention_mask", "attention_interface"
"""What transformers' layers call the two."""


def passes_mask(decoder: nn.Module) -> bool:
    """Whether all of a decoder's layers do, and none of its code asks for ``sdpa`` by name."""
    if '"sdpa"' in _source(modules[type(decoder).__module__]):
        return False
    return all(_passes(kind.forward) for kind in set(map(type, decoder.modules())))


@cache
def _passes(forward: Callable[..., Any]) -> bool:
    """Whether such a module, if it calls an attention, calls it with the mask that it is given itself."""
    source = dedent(_source(forward))
    if f"{ATTENTION}(" not in source:
        return True
    nodes = [*ast.walk(ast.parse(source))]
    calls = [n for n in nodes if isinstance(n, ast.Call) and _is_name(n.func, ATTENTION)]
    given = [[*call.args, *(keyword.value for keyword in call.keywords)] for call in calls]
    changed = any(_is_name(n, MASK) and isinstance(n.ctx, ast.Store) for n in nodes)
    return not changed and all(any(_is_name(each, MASK) for each in call) for call in given)


def _is_name(node: ast.AST, name: str) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and node.id == name


@cache
def _source(code: Any) -> str:
    try:
        return getsource(code)
    except (OSError, TypeError):  # it is written in no file
        return ""
