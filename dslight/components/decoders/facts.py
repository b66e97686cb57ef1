"""What a decoder is, discovered before a weight is read: a tiny random copy of it is run, and watched.

The copy (:mod:`~dslight.components.decoders.shrunk`) has the model's class and its configuration, but for sizes. So
whatever holds of it by its code (which layers it has and how it calls them, whether it is causal, what its position
ids begin with, whether it reads ids that an image replaced, whether it can pad, whether documents of a row can be kept
apart) holds of the model. What was found is kept for the process, by configuration.

Where no copy can be run, the first pass of the model itself is watched for its layers, and the rest is taken to be at
its worst: rows are padded at the end, answers are made in groups of equal length.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from dslight.components.decoders.classes import idle
from dslight.components.decoders.shrunk import copy_of
from dslight.components.decoders.watch import BATCH, LENGTH, find, named, watched
from dslight.components.transformers_config import field as field_of
from dslight.components.unread import in_memory
from dslight.nn.hooks import first_input, with_first_input
from dslight.nn.window import described
from dslight.positions import AXES


@dataclass
class Facts:
    """What was found out about a kind of decoder.

    Attributes:
        layers: the path of the list of its layers.
        why: why it is refused; empty: it is not.
        copy: the tiny copy that was watched; ``None``: it could not be run.
        offset: what the copy's position ids begin with; ``None``: it takes none.
        axes: how many axes its positions have.
        counts: whether positions of several axes have the count of tokens in front of them.
        after_pad: whether they begin behind the id of padding, which the model may have another of.
        passed_over: classes of the list's modules that a pass over text does not call.
        idle: modules that a pass over text does not run, of a model that also sees or hears.
        last: how many layers at the end take nothing from other columns, so that a stack there stays at its own.
        reads_ids: whether it looks at the ids where an image stands.
    """

    layers: str = ""
    why: str = ""
    copy: Any = None
    offset: int | None = None
    axes: int = 1
    counts: bool = False
    after_pad: bool = False
    passed_over: frozenset[str] = frozenset()
    idle: tuple[str, ...] = ()
    last: int = 0
    reads_ids: bool = False
    watched: bool = False
    tried: dict[str, bool] = field(default_factory=dict)
    """What was asked since: see :mod:`~dslight.components.decoders.trials`."""

    @contextmanager
    def checked(self, model: Any) -> Iterator[None]:
        """Watch the first pass of a model that has no copy.

        Raises:
            ValueError: its layers are not called once each, in order, with the residual stream.
        """
        if self.copy is not None or self.watched:
            yield
            return
        with watched(model) as seen:
            yield
        self.watched = True
        size, width = len(model.get_submodule(self.layers)), model.get_input_embeddings().embedding_dim
        mine = [call for call in seen if call.path == self.layers]
        batch, length = mine[0].shape[:2] if mine else (0, 0)
        found = find(mine, {self.layers: size}, width, batch, length)
        if found.why:
            raise ValueError(f"pretrained: {described(model)} cannot take visual tokens: {found.why}")

    def layers_of(self, model: Any) -> Sequence[nn.Module]:
        """The layers of ``model``, in order."""
        every = model.get_submodule(self.layers)
        if not self.passed_over:
            return every
        return [each for each in every if not self.passed_over & {kind.__name__ for kind in type(each).__mro__}]

    def begins(self, model: Any) -> int | None:
        """What the position ids of ``model`` begin with."""
        return model.config.get_text_config().pad_token_id + 1 if self.after_pad else self.offset


_KNOWN: dict[str, Facts] = {}

ONE_AT_A_TIME = RLock()
"""Held while a copy runs: threads that generate with one model share it."""


def discover(model: Any) -> Facts:
    """What is known of ``model``, a decoder of transformers with its head; nothing of it is run.

    A refusal is in ``why``, and says no name.
    """
    key = f"{type(model).__qualname__} {json.dumps(model.config.to_dict(), sort_keys=True, default=str)}"
    with ONE_AT_A_TIME:
        if key not in _KNOWN:
            with quiet():
                _KNOWN[key] = _discovered(model)
    return _KNOWN[key]


def _discovered(model: Any) -> Facts:
    try:
        embedding = model.get_input_embeddings()
        if not isinstance(embedding.embedding_dim, int):
            raise AttributeError
    except (NotImplementedError, AttributeError):
        return Facts(why="it has no one token embedding that an image's tokens could stand in for")
    try:
        copy = copy_of(model)
    except Exception:  # sizes that were not known to go together
        return _by_name(model)
    ids = probe()
    sizes = {path: len(each) for path, each in copy.named_modules() if isinstance(each, nn.ModuleList)}
    try:
        with watched(copy) as seen, named(copy) as ran:
            logits = passed(copy, ids)
    except (ValueError, NotImplementedError) as error:  # the model says itself that it does not run on ids
        return Facts(why=f"a pass over ids alone is refused by transformers: {_first_sentence(error)}")
    except Exception:
        return _by_name(model)
    hidden = field_of(copy.config.get_text_config(), "hidden_size")
    found = find(seen, sizes, copy.get_input_embeddings().embedding_dim, BATCH, LENGTH, hidden)
    if found.why:
        return Facts(found.layers, found.why)
    if not isinstance(model.get_submodule(found.layers), nn.ModuleList):
        return Facts(why=f"{found.layers} is no list of layers")
    every = list(copy.get_submodule(found.layers))
    called = {type(every[index]).__name__ for index in found.called}
    over = frozenset(type(each).__name__ for at, each in enumerate(every) if at not in found.called)
    if over & called:
        return Facts(found.layers, f"a pass over text calls only layers {', '.join(map(str, found.called))} of it")
    facts = Facts(found.layers, copy=copy, passed_over=over)
    if copy.config.get_text_config() is not copy.config:
        facts.idle = idle(copy, ran)
    facts.why = _values(facts, ids, logits)
    return facts


def _values(facts: Facts, ids: Tensor, logits: Tensor) -> str:
    """Fill in what values show; returns why the model is refused."""
    copy = facts.copy
    if logits.shape[:2] != ids.shape:
        return f"it gives logits of shape {list(logits.shape)} for {list(ids.shape)} ids"
    with filled(copy, ids, columns=slice(2, 4)) as without:
        base = passed(copy, ids)
        facts.reads_ids = not alike(passed(copy, without), base)
        if alike(base[:, 2:], logits[:, 2:]):
            return "what its token embedding gives does not reach its logits"
    other = ids.clone()
    other[:, -1] = (ids[:, -1] - 2) % 50 + 5
    if not alike(passed(copy, other)[:, :-1], logits[:, :-1]):
        return "it is not causal: a token changes what is predicted at columns before it"
    try:
        with torch.enable_grad():
            copy.train()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except Exception as error:  # each library's own
        return f"a pass in training is refused by transformers: {_first_sentence(error)}"
    finally:
        copy.eval()
    facts.last = _last(facts, ids, logits)
    if "position_ids" in signature(copy.forward).parameters:
        pad = getattr(copy.config.get_text_config(), "pad_token_id", None)
        offsets = [0, *([] if pad is None else [pad + 1]), 1, 2]
        facts.offset = next((offset for offset in offsets if alike(_at(copy, ids, offset), logits)), None)
        facts.after_pad = bool(facts.offset) and pad is not None and facts.offset == pad + 1
        facts.axes, facts.counts = _axes(copy, ids, logits)
    return ""


def _last(facts: Facts, ids: Tensor, logits: Tensor) -> int:
    """How many of the copy's layers, from the end, pass nothing on from a column to later ones."""
    width = facts.copy.get_input_embeddings().embedding_dim
    noise = 3 * torch.randn(len(ids), width, generator=torch.Generator().manual_seed(3))

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = first_input(args, kwargs).clone()
        hidden[:, 2] += noise
        return with_first_input(args, kwargs, hidden)

    count = 0
    for layer in reversed([*facts.layers_of(facts.copy)]):
        handle = layer.register_forward_pre_hook(add, with_kwargs=True)
        try:
            if not alike(passed(facts.copy, ids)[:, 3:], logits[:, 3:], 1e-5):
                break
        finally:
            handle.remove()
        count += 1
    return count


def _at(copy: Any, ids: Tensor, offset: int) -> Tensor:
    return _placed(copy, ids, torch.arange(offset, offset + ids.shape[1]).expand_as(ids))


def _placed(copy: Any, ids: Tensor, positions: Tensor) -> Tensor:
    try:
        return passed(copy, ids, position_ids=positions)
    except Exception:  # positions of other axes, or none that are read so
        return torch.full((*ids.shape, 1), torch.nan)


def _axes(copy: Any, ids: Tensor, logits: Tensor) -> tuple[int, bool]:
    """How many axes positions have, and whether the count of tokens stands in front: positions that are equal in all
    axes are those of text, others are not, and a count alone makes no difference. So narrow a copy may have too few
    frequencies for each axis; that there are several is told by what it takes.
    """
    for counts in (True, False):
        same = torch.arange(ids.shape[1]).expand(AXES + counts, *ids.shape)
        other, counted = same.clone(), same.clone()
        other[counts:, :, 2:5] += 50
        counted[:counts, :, 2:5] += 50
        found = [alike(_placed(copy, ids, each), logits) for each in (same, other, counted)]
        if found == [True, False, True]:
            return AXES, counts
    return 1, False


def probe(rows: int = BATCH, length: int = LENGTH) -> Tensor:
    """Ids ``[rows, length]`` that are none of the special ones."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, 55, (rows, length), generator=generator)


@torch.no_grad()
def passed(copy: Any, ids: Tensor, mask: Any = None, **options: Any) -> Tensor:
    """Logits of a pass without a cache."""
    mask = torch.ones_like(ids) if mask is None else mask
    return copy(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits


@contextmanager
def filled(copy: Any, ids: Tensor, columns: slice) -> Iterator[Tensor]:
    """Put noise in place of embedded tokens at ``columns``; yields ids that differ from ``ids`` there."""
    generator = torch.Generator().manual_seed(2)
    noise: list[Tensor] = []

    def fill(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not noise:
            noise.append(2 * torch.randn(output[:, columns].shape, generator=generator))
        changed = output.clone()
        changed[:, columns] = noise[0]
        return changed

    other = ids.clone()
    other[:, columns] = (ids[:, columns] - 2) % 50 + 5
    handle = copy.get_input_embeddings().register_forward_hook(fill)
    try:
        yield other
    finally:
        handle.remove()


def alike(one: Tensor, other: Tensor, most: float = 1e-3) -> bool:
    """Whether two results are equal but for rounding."""
    if one.shape != other.shape or not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        return False
    return float((one - other).abs().max()) <= most * max(1.0, float(other.abs().max()))


def _by_name(model: Any) -> Facts:
    """Of a model that no copy could be run of: its layers are the outermost list of as many modules as its
    configuration says, in its decoder where there are several.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [p for p, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each) == count]
    lists = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if len(lists) > 1:  # a tower may have as many layers
        inside = {id(module) for module in model.get_decoder().modules()}
        lists = [path for path in lists if id(model.get_submodule(path)) in inside] or lists
    if len(lists) == 1:
        return Facts(lists[0])
    said = f"it has {len(lists)} lists of {count} layers" if count else "its configuration says no number of layers"
    return Facts(why=f"its layers were not found: no tiny copy of it could be run, and {said}")


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0][:200].rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """No warning of a copy that nobody asked for, and no random number of the caller's."""
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng([]), in_memory(), torch.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
