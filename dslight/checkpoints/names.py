"""State-dict names of the field, as names of our parts.

Every row of :data:`RULES` is one habit of naming; the sources are the official LLaVA and DeepStack code
(``model.vision_tower.vision_tower.vision_model``, ``model.mm_projector``), llava-hf (``vision_tower.vision_model``,
``multi_modal_projector``, ``language_model.model``), transformers 5 in memory (``model.language_model``) and on disk
(``vision_tower.embeddings``), and plain checkpoints of CLIP, SigLIP and of a decoder. They do not contradict each
other, so a file need not say which it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WRAPPERS = re.compile(r"^(?:base_model\.model\.(?=model\.|mm_projector|lm_head)|module\.|_orig_mod\.|vlm\.)+")
"""What peft, DataParallel, torch.compile and our own model in transformers put in front of every name."""

RULES: tuple[tuple[str, str], ...] = (
    (r"(?:model\.)?vision_tower\.post_encoder\.(\d+)\.", r"vision_encoder.model.encoder.layers.post\1."),
    (r"(?:model\.)?(?:vision_tower\.)+(?:vision_model\.)?", r"vision_encoder.model."),
    (r"vision_model\.", r"vision_encoder.model."),
    (r"(?:model\.)?mm_projector\.(?=weight$|bias$)", r"projector.net.0."),
    (r"(?:model\.)?mm_projector\.", r"projector.net."),
    (r"(?:model\.)?multi_modal_projector\.linear_1\.", r"projector.net.0."),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.", r"projector.net.2."),
    (r"(?:model\.)?image_newline$", r"stacking.newline"),
    (r"(?:language_model\.)?(lm_head|embed_out)\.", r"language_model.model.\1."),
    (r"(?:language_model\.model|model\.language_model|model|transformer|gpt_neox)\.", r"language_model.model.{body}."),
)
"""(what a name begins with, what stands there instead). The first that fits counts. ``{body}`` is what the decoder
calls itself without its head (``model``, ``transformer``, ``gpt_neox``).
"""

_RULES = tuple((re.compile(pattern), replacement) for pattern, replacement in RULES)
_POST = re.compile(r"(vision_encoder\.model\.encoder\.layers\.)post(\d+)\.")
_LAYER = re.compile(r"vision_encoder\.model\.encoder\.layers\.(\d+)\.")

HARMLESS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)rotary_emb\.inv_freq$", "follows from the configuration"),
    (r"(^|\.)position_ids$", "follows from the configuration"),
    (r"(^|\.)attn\.(masked_)?bias$", "the causal mask of old GPT-2 files"),
    (r"(^|\.)attention\.(masked_)?bias$", "the causal mask of old GPT-NeoX files"),
    (r"^vision_encoder\..*\.post_layernorm\.", "comes behind the tap; the encoder does not have it"),
    (r"^vision_encoder\.model\.(vision_model\.)?head\.", "a pooling head; patches are read before it"),
    (r"^vision_encoder\.model\.embeddings\.mask_token$", "stands for hidden patches in DINO's own training"),
    (r"^(text_model|text_projection|visual_projection|logit_scale|logit_bias)", "the text half of a CLIP or SigLIP"),
    (r"^stacking\.newline$", "this stacking lays no newlines into the sequence"),
)
"""Tensors that a model may lack without being another model, and why."""

_HARMLESS = tuple((re.compile(pattern), reason) for pattern, reason in HARMLESS)


def translate(names: Iterable[str], body: str = "model", depth: int = 0) -> dict[str, str]:
    """Names in a file -> names in a :class:`~dslight.vlm.VLM`; a name that no rule knows stays as it is.

    Args:
        names: of one whole checkpoint.
        body: what the decoder calls itself without its head.
        depth: layers of the vision encoder. DeepStack-V's ``post_encoder`` stands behind the checkpoint's own layers,
            or, where the file has none of these, at the encoder's end.
    """
    renamed = {name: _rename(WRAPPERS.sub("", name), body) for name in names}
    own = [int(match[1]) + 1 for name in renamed.values() if (match := _LAYER.match(name))]
    post = [int(match[2]) + 1 for name in renamed.values() if (match := _POST.match(name))]
    first = max(own) if own else depth - max(post, default=0)
    return {name: _POST.sub(lambda match: f"{match[1]}{first + int(match[2])}.", new) for name, new in renamed.items()}


def _rename(name: str, body: str) -> str:
    for pattern, replacement in _RULES:
        if match := pattern.match(name):
            return match.expand(replacement).format(body=body) + name[match.end() :]
    return name


def harmless(name: str) -> str | None:
    """Why a model may lack the tensor ``name`` (translated), or ``None``: it may not."""
    return next((reason for pattern, reason in _HARMLESS if pattern.search(name)), None)
