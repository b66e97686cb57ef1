"""Any decoder of the transformers library as a language model: what it is, is discovered, on a tiny copy of it.

Packed rows: documents that share a row attend to themselves alone (:mod:`dslight.components.documents`), and their
positions begin anew. A family that does not let its attention be exchanged, or runs it ``eager``, gets a mask instead
(``[B, 1, T, T]``), which costs memory quadratic in T. What cannot be isolated at all is refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from dslight.components import documents
from dslight.components.checkpoint_names import check_folder
from dslight.components.component import on_meta
from dslight.components.decoders import both_ways, prefix
from dslight.components.decoders.both_ways import Bidirectional
from dslight.components.decoders.classes import leave_out, outline, read
from dslight.components.decoders.facts import Facts
from dslight.components.decoders.packing import by_window, isolating_mask, mixes, positions_within
from dslight.components.decoders.trials import known, positions, tried
from dslight.components.language_model import LanguageModel
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
from dslight.nn.window import Window, described
from dslight.places import Places, document_starts
from dslight.types import Batch, VisualTokens


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
        bidirectional: what is seen in both directions: the tokens of each image (``images``, Gemma 3), all in front of
            the first answer (``prompt``, PaliGemma), or ``none``. It takes a mask of all pairs of positions.

    Raises:
        ValueError: for a decoder whose masks cannot be exchanged, and as of its configuration.

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
        bidirectional: Bidirectional = "none",
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
        self.bidirectional = bidirectional
        if bidirectional != "none" and (why := mixes(self.model)):
            raise ValueError(f"bidirectional: {bidirectional}: {self.model.config.model_type}: {why}")
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
        if self._takes_documents:
            starts = document_starts(segments)
            return self._run_documents(input_ids, starts, int(starts.diff().max()), segments)
        return self._run(input_ids, isolating_mask(self.model, segments), positions_within(segments))

    def _located_logits(self, ids: Tensor, batch: Batch, places: Places, packing: dict[str, Tensor]) -> Tensor:
        """Without a mask, and without asking a GPU for what the batch knows."""
        if not places.aligned or not self._takes_documents or (not packing and mixes(self.model)):
            return self.logits(ids, batch.attention_mask, **packing)
        if places.documents is not None:
            return self._run_documents(ids, places.documents, places.longest, packing["segments"])
        rows, length = ids.shape
        return self._run_documents(ids, torch.arange(0, (rows + 1) * length, length, device=ids.device), length)

    @property
    def _takes_documents(self) -> bool:
        """Whether it attends without a mask of all pairs."""
        return self.bidirectional == "none" and documents.supported(self.model)

    def seeing(
        self,
        window: Window,
        visual_mask: Tensor,
        attention_mask: Tensor | None,
        asked: Tensor | None,
        segments: Tensor | None,
    ) -> AbstractContextManager[None]:
        """See :meth:`LanguageModel.seeing`."""
        if self.bidirectional == "none":
            return nullcontext()
        blocks = both_ways.blocks_of(self.bidirectional, visual_mask, asked, segments)
        if attention_mask is not None:
            blocks = blocks.masked_fill(attention_mask == 0, -1)
        return both_ways.seeing(self.model, blocks, window, bounded=self.bidirectional == "images")

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
        if self.answers_anew:
            given = {name: value for name, value in options.items() if name != "use_cache"}
            return super().generate_ids(input_ids, attention_mask, **given)
        return self.continued(input_ids, attention_mask, **options)[:, input_ids.shape[1] :]

    @property
    def answers_anew(self) -> bool:
        """Whether transformers' ``generate`` answers wrongly even without a cache."""
        return self.facts.copy is not None and not any(tried(self.facts, what) for what in ("answers", "answers anew"))

    def continued(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        """What transformers' ``generate`` gives: prompts and answers ``[B, T + new]``, or the object that ``options``
        ask for. A ``generation_config`` among them says all that it can say.

        Raises:
            ValueError: of a family that answers token by token here.
        """
        if self.answers_anew:
            raise ValueError(f"{self.model.config.model_type}: answers greedily, and gives new tokens alone")
        said = options.get("generation_config")
        if self.facts.copy is not None and not tried(self.facts, "answers"):
            options |= {"use_cache": False} if said is None else {}
            if said is not None:
                said.use_cache = False
        if begins := self.facts.begins(self.model):
            options["position_ids"] = positions(attention_mask, begins)
        greedy = {"do_sample": False, "use_cache": True} if said is None else {}
        with self._answering():
            return self.model.generate(input_ids=input_ids, attention_mask=attention_mask, **greedy | options)

    @property
    def shares_beginnings(self) -> bool:
        """Whether :meth:`read` and :meth:`write` answer as :meth:`generate` does: tried, and with settings of
        ``generate`` that leave the likeliest token alone."""
        return (
            self.facts.copy is not None
            and self.bidirectional != "prompt"  # a beginning would see the question behind it
            and self.axes == 1  # positions are counted along the sequence
            and self.facts.begins(self.model) is not None
            and prefix.neutral(self.model)
            and tried(self.facts, "shares beginnings")
        )

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_mask: Tensor,
        visual: VisualTokens,
        found: prefix.Beginnings | None = None,
    ) -> prefix.Read:
        """Pass over prompts, whose greedy answers :meth:`write` then gives; together they do as :meth:`generate`.

        Args:
            input_ids, attention_mask, visual_mask: as of :meth:`forward`.
            visual: of the rows, or of their beginnings.
            found: how the rows begin, where that is computed once.
        """
        begins = self.facts.begins(self.model) or 0
        with self._answering():
            given = input_ids, attention_mask, visual_mask, found
            return prefix.read(self.model, *given, lambda mask: self._injecting(mask, visual), begins)

    def write(self, prompts: Sequence[prefix.Read], **options: Any) -> Tensor:
        """The answers to prompts that were read, ``[B, new]`` of all rows.

        Args:
            prompts: one, or several that join.
            options: of :func:`dslight.components.decoders.prefix.write`.
        """
        with self._answering():
            return prefix.write(self.model, prompts, self.facts.begins(self.model) or 0, **options)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        training = self.model.training
        if training:
            self.model.eval()
        try:
            yield
        finally:
            if training:
                self.model.train()

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
