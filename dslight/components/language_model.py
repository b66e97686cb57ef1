"""Language models: any decoder of the transformers library, taking visual tokens at its embedding and at its layers.

The decoder is never copied or subclassed: slot 0 replaces the output of its token embedding at the visual positions,
the stacks are added at the inputs of its layers, both through :mod:`dslight.nn.injector`. ``generate`` is Hugging
Face's own, fed with token ids.

So what a family does inside its embedding (Gemma's scale) does not touch visual tokens, and what it does behind it
(Granite's multiplier, GPT-2's positions) does: as in the multimodal models that transformers builds on these families.

Packed rows: documents that share a row attend to themselves alone (:mod:`dslight.components.documents`), and their
positions begin anew. A family that does not let its attention be exchanged, or runs it ``eager``, gets a mask instead
(``[B, 1, T, T]``), which costs memory quadratic in T. What cannot be isolated at all is refused by name.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from dslight.components import documents
from dslight.components.checkpoint_names import check_folder
from dslight.components.component import Component, on_meta
from dslight.components.decoders.classes import leave_out, outline, read
from dslight.components.decoders.facts import Facts
from dslight.components.decoders.packing import by_window, isolating_mask, mixes, positions_within
from dslight.components.decoders.padding import behind, grouped
from dslight.components.decoders.trials import known, positions, tried
from dslight.components.transformers_config import (
    as_decoder,
    check_agreement,
    check_attention,
    check_source,
    configuration,
    no_code,
    settings_of,
)
from dslight.components.unread import weights_wait
from dslight.nn.cross_attention import attend
from dslight.nn.head import at, narrowed
from dslight.nn.injector import inject
from dslight.nn.loss import summed_loss
from dslight.nn.positions import placed
from dslight.nn.window import Window, described, follow
from dslight.places import Places, document_starts
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
    ) -> Tensor:
        """Next-token logits of sequences that hold visual tokens.

        Args:
            input_ids: int64 ``[B, T]``; ids at visual positions are not read.
            attention_mask: int64 ``[B, T]``.
            visual_mask: bool ``[B, T]``.
            visual: the slots, or ``None`` for plain text.
            segments: int64 ``[B, T]`` where rows are packed: the document of each position, 0 for padding.

        Returns:
            ``[B, T, vocabulary]``.

        Raises:
            ValueError: for packed rows that cannot be told apart.
        """
        input_ids = self.standing_for(input_ids, visual_mask)
        if segments is None:

            def rows(ids: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
                with self._injecting(mask, visual, attention):
                    return self.logits(ids, attention)

            given = input_ids, attention_mask, visual_mask
            return rows(*given) if self.pads else behind(attention_mask, rows, *given)
        packing = self._packing(segments, visual)
        with self._injecting(visual_mask, visual, attention_mask, segments):
            return self.logits(input_ids, attention_mask, **packing)

    def loss(self, batch: Batch, visual: VisualTokens | None) -> tuple[Tensor, Tensor]:
        """Next-token loss of a batch with labels, as :func:`~dslight.nn.loss.next_token_loss` of :meth:`forward`: the
        sum over supervised tokens, and their number. Logits are made of those positions alone where :attr:`head` says
        how.

        Raises:
            ValueError: as :meth:`forward`.
        """
        places, (rows, length) = batch.places, batch.input_ids.shape
        assert places.supervised is not None
        assert places.targets is not None
        packing = self._packing(batch.segments, visual)
        with (
            self._injecting(batch.visual_mask, visual, batch.attention_mask, batch.segments, places),
            narrowed(self.head, rows, places.supervised),
        ):
            ids = self.standing_for(batch.input_ids, batch.visual_mask)
            logits = self._located_logits(ids, batch, places, packing)
        return summed_loss(at(logits, rows, length, places.supervised), places.targets)

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

    @contextmanager
    def _injecting(
        self,
        visual_mask: Tensor,
        visual: VisualTokens | None,
        attention_mask: Tensor | None = None,
        segments: Tensor | None = None,
        places: Places | None = None,
    ) -> Iterator[None]:
        if visual is None:
            yield
            return
        with follow(self.outermost, visual_mask.shape[1]) as window:
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


class HFCausalLM(LanguageModel):
    """Any decoder-only model that ``transformers.AutoModelForCausalLM`` knows.

    Args:
        pretrained: hub name or local folder; weights and configuration come from there.
        config: the configuration, ``{model_type: llama, hidden_size: ..., ...}``. Alone: random weights. With
            ``pretrained``: what the checkpoint must be, so that a recipe can be planned and checked without reading it.
        tokenizer: hub name or local folder; default: ``pretrained``.
        dtype: of the weights, e.g. ``bfloat16``.
        attention: transformers' ``attn_implementation``: ``sdpa``, ``eager``, ``flash_attention_2``, ..., or ``auto``:
            FlashAttention where it is installed; default: what transformers chooses for the architecture, ``sdpa``
            nearly always.
        trust_remote_code: run code that the checkpoint or the tokenizer brings along, or that ``attention`` fetches
            from the hub. It can do all that you can; without it, such a checkpoint is refused.

    Example:
        >>> lm = dslight.HFCausalLM("HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> lm.depth, lm.width == lm.embedding.embedding_dim
        (6, True)
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        dtype: str = "float32",
        attention: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        from transformers import GenerationConfig

        found: Facts | None = None
        kind, self.trust = check_source(pretrained, config, dtype), trust_remote_code
        options: dict[str, Any] = {"dtype": kind, "attn_implementation": check_attention(attention, kind, self.trust)}
        options |= {"trust_remote_code": self.trust}
        self.pretrained, self.tokenizer_path = pretrained, tokenizer or pretrained
        self.model: Any
        if config is not None and (pretrained is None or on_meta()):
            self.model = outline(configuration(config), options)
        elif pretrained is not None:
            settings = as_decoder(settings_of(pretrained, self.trust))
            check_agreement(config or {}, settings, pretrained)
            with no_code(pretrained, "pretrained"):
                if weights_wait():
                    self.model = outline(settings, options)
                else:
                    with torch.device("meta"):  # what is refused is refused before a weight is read
                        found = known(outline(settings, options))
                    self.model = read(pretrained, settings, options)
            if weights_wait() and not on_meta():
                with suppress(OSError):  # a checkpoint need not have one
                    self.model.generation_config = GenerationConfig.from_pretrained(pretrained)
        self._describe(found)
        leave_out(self.model, self.facts.idle)

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None) -> HFCausalLM:
        """A model of transformers that is in memory already, as it is.

        Example:
            >>> from transformers import AutoModelForCausalLM
            >>> model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
            >>> dslight.HFCausalLM.of(model).model is model
            True
        """
        made = cls.__new__(cls, model)
        LanguageModel.__init__(made)
        made.model, made.tokenizer, made.tokenizer_path = model, tokenizer, model.name_or_path or None
        made.pretrained = made.tokenizer_path
        made.trust = False
        made._describe()
        return made

    def _describe(self, found: Facts | None = None) -> None:
        self.model.train()  # from_pretrained leaves evaluation mode, and Lightning trains in the mode that it finds
        self.facts = found or known(self.model)
        if self.facts.axes == 1 and "mrope_section" in str(self.model.config.get_text_config().to_dict()):
            warnings.warn(
                f"{described(self.model)}: its positions have several axes (mrope_section), and how it takes them was "
                f"not found out; visual tokens count as text",
                stacklevel=3,
            )
        self.width = int(self.model.get_input_embeddings().embedding_dim)
        self.vocabulary = int(self.model.get_input_embeddings().num_embeddings)
        self.max_positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The decoder's own list of layers."""
        # not kept: a second attribute would put every weight twice into the state dict
        return self.facts.layers_of(self.model)

    @property
    def pads(self) -> bool:
        """See :meth:`LanguageModel.pads`; tried."""
        return tried(self.facts, "pads")

    @property
    def answers_padded(self) -> bool:
        """See :meth:`LanguageModel.answers_padded`; tried."""
        return tried(self.facts, "answers padded")

    @property
    def axes(self) -> int:  # type: ignore[override]
        """See :class:`LanguageModel`; found out."""
        return self.facts.axes

    def position_ids(self, counts: Tensor, axes: Tensor) -> Tensor:
        """See :meth:`LanguageModel.position_ids`: most of transformers' take the counts in front."""
        return torch.cat([counts[None], axes]) if self.facts.counts else axes

    @property
    def left_out(self) -> tuple[str, ...]:
        """Modules of the checkpoint's model that are no part of its decoder: towers for images and sounds."""
        return self.facts.idle

    def check_sites(self, sites: Sequence[int]) -> None:
        """See :meth:`LanguageModel.check_sites`: what uses keys and values of earlier layers passes nothing on."""
        shared = getattr(self.model.config.get_text_config(), "num_kv_shared_layers", None) or 0
        first = self.depth - (shared if self.facts.last > 1 else 0)
        if late := [site for site in sites if site >= first]:
            raise ValueError(
                f"{described(self.model)}: a stack at layer {late[0]} would reach no token behind it: layers from "
                f"{first} on use the keys and values of earlier layers; there are {first} to stack at"
            )

    def standing_for(self, input_ids: Tensor, visual_mask: Tensor) -> Tensor:
        """See :meth:`LanguageModel.standing_for`: the id of padding where ids are read behind the embedding, too
        (Gemma's embeddings per layer), as in Gemma's own multimodal model.
        """
        if not self.facts.reads_ids:
            return input_ids
        return input_ids.masked_fill(visual_mask, self.model.config.get_text_config().pad_token_id or 0)

    @property
    def embedding(self) -> nn.Module:
        """The model's input embedding."""
        return self.model.get_input_embeddings()

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        return self.model.get_decoder()

    @property
    def outermost(self) -> nn.Module:
        """The model with its head, which ``generate`` calls."""
        return self.model

    @property
    def head(self) -> nn.Module | None:
        """The model's output embedding, adapters included."""
        return self.model.get_output_embeddings()

    def logits(self, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """Next-token logits ``[B, T, vocabulary]``; documents of a row see only themselves where ``segments`` are."""
        if segments is None:
            return self._run(input_ids, attention_mask, positions(attention_mask, 0))
        if documents.supported(self.model):
            starts = document_starts(segments)
            return self._run_documents(input_ids, starts, int(starts.diff().max()), segments)
        return self._run(input_ids, isolating_mask(self.model, segments), positions_within(segments))

    def _located_logits(self, ids: Tensor, batch: Batch, places: Places, packing: dict[str, Tensor]) -> Tensor:
        """Without a mask, and without asking a GPU for what the batch knows."""
        if not places.aligned or not documents.supported(self.model) or (not packing and mixes(self.model)):
            return self.logits(ids, batch.attention_mask, **packing)
        if places.documents is not None:
            return self._run_documents(ids, places.documents, places.longest, packing["segments"])
        rows, length = ids.shape
        return self._run_documents(ids, torch.arange(0, (rows + 1) * length, length, device=ids.device), length)

    def _run_documents(self, input_ids: Tensor, starts: Tensor, longest: int, segments: Tensor | None = None) -> Tensor:
        documents.use(self.model)
        masks = by_window(self.model, lambda window: documents.as_mask(starts, longest, window), longest)
        within = torch.zeros_like(input_ids) if segments is None else segments
        return self._run(input_ids, masks, positions_within(within))

    def _run(self, input_ids: Tensor, mask: Any, given: Tensor) -> Tensor:
        """Logits of a pass in which positions are counted as ``given``, where the model takes them."""
        begins = self.facts.begins(self.model)
        options = {} if begins is None else {"position_ids": given + begins}
        with self.facts.checked(self.model):
            return self.model(input_ids=input_ids, attention_mask=mask, use_cache=False, **options).logits

    def check_packing(self) -> None:
        """See :meth:`LanguageModel.check_packing`: what mixes positions otherwise than by masked attention is out, and
        whatever does not keep documents apart when it is tried.
        """
        if why := mixes(self.model) or ("" if tried(self.facts, "packs", True) else "documents of a row mix"):
            raise ValueError(f"data.order.pack: {self.model.config.model_type}: {why}; or do not pack")

    def generate_ids(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Transformers' ``generate``: greedy unless ``options`` say otherwise. Where that does not answer as passes
        over the whole sequence do: without a cache, or greedily only (see :meth:`LanguageModel.generate_ids`).
        """
        training = self.model.training
        self.model.eval()
        try:
            if self.facts.copy is not None and not tried(self.facts, "answers"):
                if not tried(self.facts, "answers anew"):
                    given = {name: value for name, value in options.items() if name != "use_cache"}
                    return super().generate_ids(input_ids, attention_mask, **given)
                options["use_cache"] = False
            if begins := self.facts.begins(self.model):
                options["position_ids"] = positions(attention_mask, begins)
            out = self.model.generate(
                input_ids=input_ids, attention_mask=attention_mask, **{"do_sample": False, "use_cache": True} | options
            )
        finally:
            self.model.train(training)
        return out[:, input_ids.shape[1] :]

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer lies on this machine, so that loading it fetches nothing."""
        path = self.tokenizer_path
        if self.tokenizer is not None or path is None:
            return self.tokenizer is not None
        try:
            return Path(path).is_dir() or isinstance(try_to_load_from_cache(path, "tokenizer_config.json"), str)
        except ValueError:  # no name of the hub
            return False

    def load_tokenizer(self) -> Any:
        """The tokenizer at ``tokenizer`` (or ``pretrained``).

        Raises:
            ValueError: when the model has fewer ids than the tokenizer, or it needs code of its own.
        """
        from transformers import AutoTokenizer

        if self.tokenizer is not None:
            return self.tokenizer
        if self.tokenizer_path is None:
            raise ValueError("tokenizer: a model made from a `config` needs a `tokenizer` (hub name or folder)")
        check_folder(self.tokenizer_path, "tokenizer")
        with no_code(self.tokenizer_path, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_path, trust_remote_code=self.trust)
        if len(tokenizer) > self.vocabulary:
            raise ValueError(
                f"tokenizer: has {len(tokenizer)} tokens, the language model embeds only {self.vocabulary}"
            )
        if self.pretrained is not None and len(tokenizer) < self.vocabulary // 2:
            raise ValueError(
                f"tokenizer: has {len(tokenizer)} tokens, {self.pretrained} was trained on {self.vocabulary}: it is "
                f"another model's"
            )
        return tokenizer
