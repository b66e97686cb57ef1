"""Language models: any decoder of the transformers library, taking visual tokens at its embedding and at its layers.

The decoder is never copied or subclassed: slot 0 replaces the output of its token embedding at the visual positions,
the stacks are added at the inputs of its layers, both through :mod:`dslight.nn.injector`. ``generate`` is Hugging
Face's own, fed with token ids.

So what a family does inside its embedding (Gemma's scale) does not touch visual tokens, and what it does behind it
(Granite's multiplier, GPT-2's positions) does: as in the multimodal models that transformers builds on these families.

Decoders of transformers are read by :class:`~dslight.components.decoders.causal_lm.HFCausalLM`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dslight.components.component import Component
from dslight.components.decoders.both_ways import Bidirectional
from dslight.components.decoders.packing import positions_within
from dslight.components.decoders.padding import behind, grouped
from dslight.components.decoders.trials import positions
from dslight.nn.cross_attention import attend
from dslight.nn.head import at, narrowed
from dslight.nn.injector import inject
from dslight.nn.loss import summed_loss
from dslight.nn.positions import placed
from dslight.nn.window import Window, follow
from dslight.places import Places
from dslight.positions import axis_positions
from dslight.types import Batch, VisualTokens


class LanguageModel(Component, ABC):
    """A causal decoder.

    A subclass sets, in ``__init__``:

    Attributes:
        width: D, the width of the residual stream.
        vocabulary: the number of token ids.
        max_positions: the longest sequence that it was made for, where that is known.
        tokenizer: Hugging Face's, a fast one; or :meth:`load_tokenizer` reads it.
        axes: of its positions: 3 for time, height and width (M-RoPE). :attr:`decoder` then takes ``position_ids``
            ``[3, B, T]``, and gets them wherever it is told the grids of visual tokens.
        bidirectional: what is seen in both directions: ``images``, the tokens of each; ``prompt``, all that is asked;
            or ``none``. A subclass that sets it defines :meth:`seeing`.

    Example:
        >>> class Mine(dslight.LanguageModel):  # `net` is any decoder that gives logits [B, T, vocabulary]
        ...     def __init__(self, net, tokenizer):
        ...         super().__init__()
        ...         self.net, self.tokenizer = net, tokenizer
        ...         self.width, self.vocabulary = net.embed.embedding_dim, net.embed.num_embeddings
        ...     layers = property(lambda self: self.net.blocks)
        ...     embedding = property(lambda self: self.net.embed)
        ...     decoder = property(lambda self: self.net)
        ...     def logits(self, input_ids, attention_mask):
        ...         return self.net(input_ids, attention_mask)
    """

    kind: ClassVar[str] = "language_model"

    width: int
    vocabulary: int
    max_positions: int | None = None
    tokenizer: Any = None
    axes: int = 1
    bidirectional: Bidirectional = "none"

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers, in order. Each takes its hidden states ``[B, T, D]`` as first argument."""

    @property
    @abstractmethod
    def embedding(self) -> nn.Module:
        """The token embedding."""

    @property
    @abstractmethod
    def decoder(self) -> nn.Module:
        """The module around embedding and layers."""

    @property
    def outermost(self) -> nn.Module:
        """The module that every pass goes through first: it is called with ``input_ids`` and with the KV cache."""
        return self.decoder

    @property
    def head(self) -> nn.Module | None:
        """The module that :meth:`logits` calls with hidden states ``[B, T, D]`` to make logits of them. In training it
        sees supervised positions alone; ``None``: there is no such module, and logits of all positions are made.
        """
        return None

    @property
    def pads(self) -> bool:
        """Whether :meth:`logits` of a row behind left padding are those of the row; if not, padding is moved behind."""
        return True

    @property
    def answers_padded(self) -> bool:
        """Whether :meth:`generate_ids` does so too; if not, rows of unequal length are answered in groups."""
        return True

    def position_ids(self, counts: Tensor, axes: Tensor) -> Tensor:
        """What :attr:`decoder` takes as ``position_ids``.

        Args:
            counts: int64 ``[B, ...]``, how many tokens of its document stand before each.
            axes: int64 ``[3, B, ...]``, see :mod:`dslight.positions`.
        """
        return axes

    def check_sites(self, sites: Sequence[int]) -> None:
        """Whether a stack at each of these layers can reach the tokens behind it.

        Raises:
            ValueError: naming the first layer that cannot.
        """

    def standing_for(self, input_ids: Tensor, visual_mask: Tensor) -> Tensor:
        """The ids, with those at visual positions that the model is to see there; it reads none, mostly."""
        return input_ids

    @abstractmethod
    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Next-token logits ``[B, T, vocabulary]``. One that can tell documents apart also takes ``segments``."""

    def check_packing(self) -> None:
        """Whether :meth:`logits` takes ``segments`` ``[B, T]``, the document of each position (see
        :class:`~dslight.types.Batch`).

        Raises:
            ValueError: saying why not.
        """
        raise ValueError(f"data.order.pack: {type(self).__name__} cannot tell apart the documents of a packed row")

    def generate_ids(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int = 20,
        eos_token_id: int | Sequence[int] = (),
        pad_token_id: int = 0,
        synced_gpus: bool = False,
        **options: Any,
    ) -> Tensor:
        """Greedy continuation; returns only the new ids ``[B, new]``. This one computes the whole sequence anew for
        each of them; a subclass that has a KV cache should do better.

        Raises:
            ValueError: for an option of transformers' ``generate`` that it does not know.
        """
        if unknown := sorted(name for name, value in options.items() if value):
            raise ValueError(f"{unknown[0]}: {type(self).__name__} answers greedily, and has no such option")
        ends = torch.as_tensor(eos_token_id, dtype=torch.int64, device=input_ids.device)
        ids, mask, done = input_ids, attention_mask, torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        for _ in range(max_new_tokens):
            token = self.logits(ids, mask)[:, -1].argmax(-1).masked_fill(done, pad_token_id)
            ids = torch.cat([ids, token[:, None]], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            done |= torch.isin(token, ends)
            if done.all() and not synced_gpus:
                break
        return ids[:, input_ids.shape[1] :]

    def load_tokenizer(self) -> Any:
        """The Hugging Face tokenizer that belongs to the model.

        Raises:
            ValueError: when there is none.
        """
        if self.tokenizer is None:
            raise ValueError(f"tokenizer: {type(self).__name__} has none; set self.tokenizer, or define load_tokenizer")
        return self.tokenizer

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @property
    def shard_units(self) -> list[nn.Module]:
        """One unit per layer."""
        return list(self.layers)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_mask: Tensor,
        visual: VisualTokens | None,
        segments: Tensor | None = None,
        asked: Tensor | None = None,
    ) -> Tensor:
        """Next-token logits of sequences that hold visual tokens.

        Args:
            input_ids: int64 ``[B, T]``; ids at visual positions are not read.
            attention_mask: int64 ``[B, T]``.
            visual_mask: bool ``[B, T]``.
            visual: the slots, or ``None`` for plain text.
            segments: int64 ``[B, T]`` where rows are packed: the document of each position, 0 for padding.
            asked: bool ``[B, T]``, what is no answer, for a decoder that sees it in both directions; ``None``:
                everything.

        Returns:
            ``[B, T, vocabulary]``.

        Raises:
            ValueError: for packed rows that cannot be told apart.
        """
        input_ids = self.standing_for(input_ids, visual_mask)
        if segments is None:

            def rows(ids: Tensor, attention: Tensor, mask: Tensor, *asked: Tensor) -> Tensor:
                with self._injecting(mask, visual, attention, None, None, *asked):
                    return self.logits(ids, attention)

            given = input_ids, attention_mask, visual_mask, *(() if asked is None else (asked,))
            return rows(*given) if self.pads else behind(attention_mask, rows, *given)
        packing = self._packing(segments, visual)
        with self._injecting(visual_mask, visual, attention_mask, segments, asked=asked):
            return self.logits(input_ids, attention_mask, **packing)

    def loss(self, batch: Batch, visual: VisualTokens | None) -> tuple[Tensor, Tensor]:
        """Next-token loss of a batch with labels, as :func:`~dslight.nn.loss.next_token_loss` of :meth:`forward`: the
        sum over supervised tokens, and their number (with weights, the sum of those). Logits are made of those
        positions alone where :attr:`head` says how.

        Raises:
            ValueError: as :meth:`forward`.
        """
        places, (rows, length) = batch.places, batch.input_ids.shape
        assert places.supervised is not None
        assert places.targets is not None
        packing = self._packing(batch.segments, visual)
        asked = batch.asked if self.bidirectional == "prompt" else None
        with (
            self._injecting(batch.visual_mask, visual, batch.attention_mask, batch.segments, places, asked),
            narrowed(self.head, rows, places.supervised),
        ):
            ids = self.standing_for(batch.input_ids, batch.visual_mask)
            logits = self._located_logits(ids, batch, places, packing)
        return summed_loss(at(logits, rows, length, places.supervised), places.targets, places.weights)

    def _located_logits(self, ids: Tensor, batch: Batch, places: Places, packing: dict[str, Tensor]) -> Tensor:
        """:meth:`logits` of a batch whose places are known, for a subclass that they spare work."""
        return self.logits(ids, batch.attention_mask, **packing)

    def _packing(self, segments: Tensor | None, visual: VisualTokens | None) -> dict[str, Tensor]:
        if segments is None:
            return {}
        self.check_packing()
        if visual is not None and visual.memory is not None:
            raise ValueError(
                "data.order.pack: cross-attention reads the images of a whole row, so a document would see those "
                "of the others in it; do not pack, or choose a stacking that stacks"
            )
        return {"segments": segments}

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_mask: Tensor,
        visual: VisualTokens | None,
        **options: Any,
    ) -> Tensor:
        """Continue left-padded prompts; arguments as in :meth:`forward`, ``options`` as in transformers'
        ``generate``.
        """

        def answer(ids: Tensor, attention: Tensor, mask: Tensor, visual: VisualTokens | None, **options: Any) -> Tensor:
            with self._injecting(mask, visual, attention):
                return self.generate_ids(ids, attention, **options)

        given = self.standing_for(input_ids, visual_mask), attention_mask, visual_mask, visual
        return answer(*given, **options) if self.answers_padded else grouped(answer, *given, **options)

    def injecting(
        self,
        visual_mask: Tensor,
        visual: VisualTokens | None,
        attention_mask: Tensor | None = None,
        asked: Tensor | None = None,
    ) -> AbstractContextManager[None]:
        """While the block runs, passes of :attr:`outermost` over a sequence with these masks ``[B, T]`` take the visual
        tokens in: whole, in chunks or behind a cache. ``asked``: see :meth:`forward`.
        """
        return self._injecting(visual_mask, visual, attention_mask, asked=asked)

    def seeing(
        self,
        window: Window,
        visual_mask: Tensor,
        attention_mask: Tensor | None,
        asked: Tensor | None,
        segments: Tensor | None,
    ) -> AbstractContextManager[None]:
        """While the block runs, passes see in both directions what :attr:`bidirectional` says.

        Args:
            window: of the pass that runs.
            visual_mask: bool ``[B, T]``.
            attention_mask: int64 ``[B, T]``; ``None``: nothing is padding.
            asked: see :meth:`forward`; as ``segments``.
            segments: see there.
        """
        return nullcontext()

    @contextmanager
    def _injecting(
        self,
        visual_mask: Tensor,
        visual: VisualTokens | None,
        attention_mask: Tensor | None = None,
        segments: Tensor | None = None,
        places: Places | None = None,
        asked: Tensor | None = None,
    ) -> Iterator[None]:
        if visual is None and self.bidirectional == "none":
            yield
            return
        with (
            follow(self.outermost, visual_mask.shape[1]) as window,
            self.seeing(window, visual_mask, attention_mask, asked, segments),
        ):
            if visual is None:
                yield
                return
            stacking = inject(
                self.layers,
                visual_mask,
                visual.stacks,
                visual.sites,
                fill=visual.base,
                embedding=self.embedding,
                window=window,
                places=None if places is None else places.visual,
                operation=visual.operation,
            )
            found = None if places is None else places.runs
            standing = nullcontext()
            if self.axes > 1 and visual.grids:
                real = torch.ones_like(visual_mask).long() if attention_mask is None else attention_mask
                standing = self._placing(window, visual_mask, visual, real, segments, places)
            with standing, stacking, attend(self.layers, visual_mask, visual.memory, window=window, slots=found):
                yield

    def _placing(
        self,
        window: Window,
        visual_mask: Tensor,
        visual: VisualTokens,
        attention_mask: Tensor,
        segments: Tensor | None,
        places: Places | None,
    ) -> AbstractContextManager[None]:
        slots = None if places is None else places.visual
        axes, behind = axis_positions(attention_mask, visual_mask, visual.grids, segments, slots)
        counts = positions(attention_mask, 0) if segments is None else positions_within(segments)
        table = self.position_ids(counts, axes)
        following = self.position_ids(attention_mask.sum(-1), behind.expand(len(axes), -1))
        return placed(self.decoder, table, following, window)
