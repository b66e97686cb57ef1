"""The window of a forward pass: which columns of the whole sequence it computes.

Behind a KV cache a pass computes a part of the sequence only: a chunk of a chunked prefill, the one token of a decode
step. Whoever acts at columns of the sequence (stacks, base tokens, cross-attention) has to know where that part begins.
Libraries rename the keyword that hands a cache on, rename it inside of a forward, or keep a state that cannot say how
long it is; a window taken wrongly then changes every generated token without a word. So the outermost model is watched,
whatever it calls its cache, and a window that is not known is an error:

- *A cache that can say how many tokens it holds* is asked. Where the pass has a mask ``[b, n]`` of the tokens so far,
  the two have to agree.
- *A cache that cannot* (the state of a Mamba or RWKV) is counted: what a pass was given, or gave back, holds the tokens
  up to its end. One that was not seen before is placed by the mask.
- *Without a cache* a pass begins at column 0, and then computes all of the sequence: a shorter one is refused.

Layers that get fewer positions than the pass (keys and values shared with earlier layers) get the last ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor, nn

from dslight.nn.hooks import before, behind

CACHES = frozenset(
    ("cache", "past_key_values", "past_key_value", "cache_params", "state", "mems", "past_buckets_states", "layer_past")
)
"""What models call the argument that holds what earlier passes computed."""


class Window:
    """Where the pass that is running stands in a sequence of ``length`` columns.

    On its own: of a model whose every pass computes the whole sequence (a vision encoder). :func:`follow` watches one
    that may compute parts.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._passing: tuple[int, int] | None = None  # the first column of the running pass, and how many it computes
        self._held: list[tuple[Any, int]] = []  # caches that cannot say how many tokens they hold, and how many
        self._model: nn.Module | None = None
        self._passes = 0

    @property
    def _name(self) -> str:
        """For errors alone: looking a library's version up takes longer than a small model's pass."""
        return "this model" if self._model is None else described(self._model)

    def start(self, count: int) -> int:
        """The column of the sequence where a stream of ``count`` positions begins, within the running pass.

        Raises:
            RuntimeError: where that is not known.
        """
        if self._passing is None:
            if count < self.length:
                raise RuntimeError(
                    f"window: {count} positions reach a layer of {self._name}, the sequence has {self.length}; where "
                    "they stand is not known, because no pass of the whole model is running"
                )
            return 0
        start, width = self._passing
        if count > width:
            raise RuntimeError(
                f"window: a layer of {self._name} gets {count} positions in a pass over {width} tokens; where they "
                "stand in the sequence is not known"
            )
        return start + width - count

    def visit(self, layer: int, before: set[int]) -> None:
        """Note that ``layer`` is called in the running pass; ``before``: the passes that called it.

        Raises:
            RuntimeError: the running pass did already, so that what is added there would be added again.
        """
        if self._passing is None:
            return
        if self._passes in before:
            raise RuntimeError(
                f"window: layer {layer} of {self._name} is called twice in a pass, so a stack would be added once per "
                "loop"
            )
        before.clear()
        before.add(self._passes)

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A pass of ``model`` begins, called like this.

        Raises:
            RuntimeError: when nothing tells which part of the sequence it computes.
        """
        self._model = model
        self._passes += 1
        width = _width(args, kwargs)
        if width is None:
            raise RuntimeError(f"window: {self._name} was called without input_ids or inputs_embeds")
        self._passing = (self._begins(_caches(args, kwargs), _mask_length(kwargs), width), width)

    def leave(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """The pass is through: note what its caches hold now, where they cannot say so themselves."""
        if self._passing is None:
            return
        end, self._passing = sum(self._passing), None
        found = [*_caches(args, kwargs), *_caches((), output if isinstance(output, Mapping) else {})]
        silent = [cache for cache in found if _tokens_in(cache) is None]
        kept = [(cache, count) for cache, count in self._held if all(cache is not other for other in silent)]
        self._held = [*kept, *((cache, end) for cache in silent)]

    def _begins(self, caches: list[Any], mask_length: int | None, width: int) -> int:
        """The first column that a pass over ``width`` tokens computes."""
        behind_mask = None if mask_length is None or mask_length < width else mask_length - width
        if not caches:
            if width < self.length or behind_mask:
                raise RuntimeError(
                    f"window: a pass of {self._name} over {width} of {max(mask_length or 0, self.length)} tokens has "
                    "no cache that is known here; where it stands in the sequence is not known"
                )
            return 0
        said = {count for cache in caches if (count := self._tokens(cache)) is not None}
        if len(said) > 1 or (said and behind_mask is not None and behind_mask not in said):
            counts = ", ".join(map(str, sorted(said)))
            raise RuntimeError(
                f"window: the cache of {self._name} holds {counts} tokens, but a pass over {width} has an attention "
                f"mask of {mask_length}; where it stands in the sequence is not known"
            )
        if said:
            return said.pop()
        if behind_mask is not None:
            return behind_mask
        if width >= self.length:
            return 0
        raise RuntimeError(
            f"window: the cache of {self._name} ({type(caches[0]).__name__}) cannot say how many tokens it holds, and "
            f"no attention mask tells; where a pass over {width} of {self.length} tokens stands is not known"
        )

    def _tokens(self, cache: Any) -> int | None:
        counted = next((count for held, count in self._held if held is cache), None)
        return _tokens_in(cache) if counted is None else counted


@contextmanager
def follow(model: nn.Module, length: int) -> Iterator[Window]:
    """While the block runs, watch the passes of ``model`` that this thread runs over a sequence.

    Args:
        model: the outermost module that a pass goes through: it is called with ``input_ids`` or ``inputs_embeds``, and
            with the cache.
        length: T, of the sequence that masks of visual tokens describe; answers are behind it.
    """
    window = Window(length)
    window._model = model
    called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        called[:] = [(args, kwargs)]
        window.enter(model, args, kwargs)

    def leave(output: Any) -> None:
        window.leave(*called.pop(), output)

    handles = [before(model, enter), behind(model, leave)]
    try:
        yield window
    finally:
        for handle in handles:
            handle.remove()


def described(model: nn.Module) -> str:
    """For an error: ``llama (LlamaForCausalLM, transformers 5.24.0)``."""
    package = type(model).__module__.partition(".")[0]
    try:
        source = f", {package} {version(package)}"
    except PackageNotFoundError:
        source = ""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    name = type(model).__name__
    return f"{kind} ({name}{source})" if kind else f"{name}{source and f' ({source[2:]})'}"


def _width(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """How many positions a pass computes in each row."""
    for tokens in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]):
        if isinstance(tokens, Tensor) and tokens.ndim >= 2:
            return tokens.shape[1]
    return None


def _mask_length(kwargs: Mapping[str, Any]) -> int | None:
    """n of an attention mask ``[b, n]``, of the tokens so far and those of the pass."""
    mask = kwargs.get("attention_mask")
    return mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _caches(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that hold what earlier passes computed: by their name, or because they can say how many."""
    named = [value for name, value in kwargs.items() if value is not None and _is_cache(name, value)]
    found: list[Any] = []
    for value in [*(value for value in args if _is_cache("", value)), *named]:
        if all(value is not other for other in found):
            found.append(value)
    return found


def _is_cache(name: str, value: Any) -> bool:
    return not isinstance(value, (bool, int)) and (name in CACHES or hasattr(type(value), "get_seq_length"))


def _tokens_in(cache: Any) -> int | None:
    """How many tokens a cache says that it holds; ``None``: it cannot say."""
    if not hasattr(cache, "get_seq_length"):
        return None
    try:
        return int(cache.get_seq_length())
    except (ValueError, IndexError, AttributeError, NotImplementedError, TypeError):
        return None  # of states alone: transformers refuses the question
