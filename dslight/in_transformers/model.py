"""The model of an exported folder: a :class:`dslight.VLM` behind the calls of transformers.

Inside are the same modules, so it computes what we compute. The decoder's own ``generate`` runs with the visual tokens
injected around it, as in :meth:`dslight.components.LanguageModel.generate`: beams, sampling, caches and chunks are the
family's, and no state is kept between calls.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from dslight.in_transformers.config import DslightConfig
from dslight.places import IGNORE
from dslight.upstream.pretrained import Composed
from dslight.upstream.transformers import attention_of

VIEWS = ("pixel_values", "image_grids", "image_sizes", "image_pieces")


class DslightForConditionalGeneration(Composed):
    """A multimodal language model out of four parts.

    Attributes:
        vlm: the :class:`dslight.VLM`.

    Raises:
        ValueError: for a configuration that names code which nobody imported, or weights of its own.

    Example:
        >>> import dslight
        >>> from transformers import AutoModelForImageTextToText
        >>> AutoModelForImageTextToText.from_pretrained("exported/mine")  # doctest: +SKIP
    """

    config: DslightConfig
    config_class = DslightConfig
    base_model_prefix = "vlm"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True

    def __init__(self, config: DslightConfig) -> None:
        from dslight.in_transformers.build import built

        attention = attention_of(config)
        super().__init__(config)
        self.vlm = built(config, attention if isinstance(attention, str) else None)
        self.keep_whole([*self.vlm.vision_encoder.shard_units, *self.vlm.language_model.shard_units])
        self.post_init()
        for name, module in self.vlm.named_modules():
            if isinstance(module, PreTrainedModel):
                tied = module.all_tied_weights_keys.items()
                self.all_tied_weights_keys |= {f"vlm.{name}.{one}": f"vlm.{name}.{other}" for one, other in tied}

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """As of any model of transformers.

        Raises:
            ValueError: the file lacks a tensor of the model, or has one of another shape.
        """
        wanted = options.pop("output_loading_info", False)
        opened: Any = super().from_pretrained(*args, **{**options, "output_loading_info": True})
        model, report = opened
        if lost := sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]):
            raise ValueError(f"{model.name_or_path}: has no tensor {lost[0]} that fits, and {len(lost) - 1} more")
        return (model, report) if wanted else model

    def initialize_weights(self, *args: Any, **options: Any) -> None:
        """Nothing: the parts have initialised themselves."""

    def named_non_persistent_buffers(self, *args: Any, **options: Any) -> Any:
        """None that transformers would have to make anew: the parts have them, with their values."""
        return iter(())

    def get_input_embeddings(self) -> Any:
        """The language model's token embedding."""
        return self.vlm.language_model.embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Refused: a recipe says how many ids there are."""
        raise NotImplementedError("the vocabulary is the recipe's; export another model")

    def get_output_embeddings(self) -> Any:
        """The language model's head, ``None`` where it is no module of its own."""
        return self.vlm.language_model.head

    def resize_token_embeddings(self, *args: Any, **options: Any) -> Any:
        """Refused: a recipe says how many ids there are."""
        raise NotImplementedError("resize_token_embeddings: the vocabulary is the recipe's; export another model")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grids: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_pieces: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and the loss where there are labels.

        Args:
            input_ids: int64 ``[B, T]``, ``image_token_id`` at visual positions, as the processor makes them.
            attention_mask: int64 ``[B, T]``; of a pass behind a cache, of all positions so far.
            pixel_values: uint8 ``[V, 3, H, W]``, the views of all images of the pass, packed.
            image_grids: int64 ``[I, 2]``, (rows, columns) of each image's crops.
            image_sizes: int64 ``[I, 2]``, (height, width) of each image.
            image_pieces: int64 ``[I, 2]``, of images of sizes of their own, (rows, columns) of the pieces of each.
            past_key_values: the cache, which the pass continues.
            position_ids: of the decoder; default: counted along ``attention_mask``.
            labels: int64 ``[B, T]``, not shifted, -100 where there is no loss.
            use_cache: whether a cache is wanted; default: no.
            num_items_in_batch: what the loss is divided by; default: its supervised tokens.
            options: of the decoder's ``forward``.

        Raises:
            ValueError: where ``input_ids`` and the images do not go together.
        """
        if input_ids is None:
            raise ValueError("input_ids: missing; visual tokens are placed by their ids, not by embeddings")
        lm = self.vlm.language_model
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, visual_mask = self._slots(input_ids)
        visual = self._see(visual_mask, pixel_values, image_grids, image_sizes, image_pieces)
        if past and lm.axes > 1 and position_ids is None:
            raise ValueError(
                f"position_ids: missing; positions of this decoder have {lm.axes} axes, and what stands behind a cache "
                f"depends on the images in it. `generate` counts them"
            )
        options = {name: value for name, value in options.items() if value is not None and name != "return_dict"}
        keep = options.pop("logits_to_keep", 0)
        prompts = labels is not None and lm.bidirectional == "prompt"
        asked = torch.nn.functional.pad((labels != IGNORE).cumsum(1) == 0, (past, 0), value=True) if prompts else None
        if not past and past_key_values is None and not use_cache and not options and position_ids is None:
            out: Any = CausalLMOutputWithPast(logits=lm(ids, mask, visual_mask, visual, asked=asked))
        else:
            whole = torch.nn.functional.pad(visual_mask, (past, 0))  # what the cache holds is in there already
            with lm.injecting(whole, visual, mask, asked):
                options |= {"use_cache": bool(use_cache)}
                options |= {} if past_key_values is None else {"past_key_values": past_key_values}
                options |= self._positions(mask, ids, position_ids)
                out = lm.outermost(input_ids=ids, attention_mask=mask, **options)
        if labels is not None:
            from dslight.nn.loss import next_token_loss

            total, count = next_token_loss(out.logits, labels)
            out["loss"] = total / (count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        if isinstance(keep, Tensor) or keep:
            out["logits"] = out.logits[:, keep if isinstance(keep, Tensor) else slice(-keep, None)]
        return out

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **options: Any) -> Any:
        """Continue prompts, as transformers' ``generate`` of the decoder does.

        Args:
            inputs: prompts, where ``input_ids`` are not given.
            generation_config: default: the model's.
            options: what the processor makes, and whatever ``generate`` takes.

        Returns:
            Prompts and answers ``[B, T + new]``, or the object that ``return_dict_in_generate`` asks for.

        Raises:
            ValueError: as :meth:`forward`; for a decoder that has not the option.
        """
        ids = options.pop("input_ids", inputs)
        if ids is None:
            raise ValueError("input_ids: missing; visual tokens are placed by their ids, not by embeddings")
        mask = options.pop("attention_mask", None)
        mask = torch.ones_like(ids) if mask is None else mask
        config = generation_config or self.generation_config
        given, visual_mask = self._slots(ids)
        visual = self._see(visual_mask, *(options.pop(name, None) for name in VIEWS))
        lm: Any = self.vlm.language_model
        options = self._said(config, options)
        said = options.get("generation_config")
        if said is not None and said.return_dict_in_generate:
            with lm.injecting(visual_mask, visual, mask):
                out = lm.continued(lm.standing_for(given, visual_mask), mask, **options)
            out.sequences[:, : ids.shape[1]] = ids.repeat_interleave(len(out.sequences) // len(ids), 0)
            return out
        new = lm.generate(given, mask, visual_mask, visual, **options)
        return torch.cat([ids.repeat_interleave(len(new) // len(ids), 0).to(new.device), new], dim=1)

    @property
    def _native(self) -> bool:
        """Whether answers come from the ``generate`` of a decoder of transformers."""
        lm: Any = self.vlm.language_model
        return hasattr(lm, "continued") and not lm.answers_anew

    def _said(self, config: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The options for the decoder: its own ``generate`` reads the configuration, others get what they know."""
        config = deepcopy(config)
        if self._native:
            rest = config.update(**options)
            config.do_sample, config.use_cache = bool(config.do_sample), config.use_cache is not False
            return {**rest, "generation_config": config}
        known = {name: getattr(config, name) for name in ("max_new_tokens", "eos_token_id", "pad_token_id")}
        return {name: value for name, value in (known | options).items() if value is not None and name != "tokenizer"}

    def _slots(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids that the decoder has an embedding of, and where visual tokens stand, ``[B, T]``."""
        visual_mask = input_ids == self.config.image_token_id
        pad = self.generation_config.pad_token_id
        return input_ids.masked_fill(visual_mask, pad if isinstance(pad, int) else 0), visual_mask

    def _see(self, visual_mask: Tensor, pixels: Any, grids: Any, sizes: Any, pieces: Any) -> Any:
        """The visual tokens of a pass, ``None`` where it has none."""
        slots = int(visual_mask.sum())
        if pixels is None or not len(pixels):
            if slots:
                raise ValueError(
                    f"pixel_values: missing; {slots} positions of input_ids hold the image token "
                    f"{self.config.image_token_id}"
                )
            return None
        from dslight.types import Views

        if grids is None or pixels.dtype != torch.uint8:
            raise ValueError("pixel_values: uint8 views, and their image_grids, as the processor of the folder makes")
        model = self.vlm
        device = next(model.vision_encoder.parameters()).device
        grids, sizes, pieces = (
            [] if each is None else [(int(a), int(b)) for a, b in each.tolist()] for each in (grids, sizes, pieces)
        )
        views = Views(pixels.to(device), grids, model.stacking.fine, sizes, pieces)
        visual = model.see(views)
        if visual.slots.shape[1] != slots:
            raise ValueError(
                f"input_ids: {slots} positions hold the image token {self.config.image_token_id}, the images of "
                f"pixel_values fill {visual.slots.shape[1]}; give a whole sequence with all of its images"
            )
        return visual

    def _positions(self, mask: Tensor, ids: Tensor, given: Tensor | None) -> dict[str, Tensor]:
        """``position_ids`` for decoders that take them."""
        from dslight.components.decoders.trials import positions

        facts = getattr(self.vlm.language_model, "facts", None)
        begins = None if facts is None else facts.begins(self.vlm.language_model.outermost)
        if given is not None or begins is None or mask.ndim != 2:
            return {} if given is None else {"position_ids": given}
        return {"position_ids": positions(mask, begins)[:, -ids.shape[1] :]}
