"""The processor of an exported folder: :class:`dslight.processor.Processor` behind the calls of transformers.

Pictures are decoded and cut by the code that training used, conversations are written by the template that it used, and
tokenized in the same pieces, so that pixels and ids are those that the model knows.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from dslight.in_transformers.register import MODEL_TYPE

IMAGE_TOKEN = "<image>"
ROLES: dict[str, Any] = {"system": "system", "user": "human", "human": "human", "assistant": "gpt", "gpt": "gpt"}


class DslightProcessor(ProcessorMixin):
    """Questions and pictures to what the model takes.

    Args:
        tokenizer: the language model's.
        settings: ``data`` (views, template and more, as in a recipe), ``image_size``, ``slots`` (the fields of a
            :class:`dslight.layout.SlotLayout`) and ``image_token_id``.
        chat_template: the tokenizer's own, for tools that read it; conversations are written by ``settings.data``.

    Raises:
        ValueError: for settings that name code which nobody imported.
    """

    model_input_names: Any = [  # noqa: RUF012
        "input_ids",
        "attention_mask",
        "pixel_values",
        "image_grids",
        "image_sizes",
        "image_pieces",
    ]

    def __init__(self, tokenizer: Any = None, settings: Any = None, chat_template: Any = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        if not isinstance(settings, Mapping):
            raise ValueError("processor_config.json: has no settings; open the folder that dslight export wrote")
        self.settings = dict(settings)
        self.image_token, self.image_token_id = IMAGE_TOKEN, int(settings["image_token_id"])
        self._asked_through: Any = None

    @property
    def ours(self) -> Any:
        """The :class:`dslight.processor.Processor`."""
        if self._asked_through is None:
            from dslight.in_transformers.settings import processor_of

            self._asked_through = processor_of(self.settings, self.tokenizer)
        return self._asked_through

    @property
    def image_processor(self) -> DslightProcessor:
        """Itself: pipelines that batch ask one whether pixels are to be padded, which packed views are not."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """What ``processor_config.json`` holds."""
        kept, self._asked_through = self._asked_through, None  # it would be copied, tokenizer and all
        try:
            return super().to_dict()
        finally:
            self._asked_through = kept

    def __call__(
        self, images: Any = None, text: Any = None, return_tensors: Any = "pt", **options: Any
    ) -> BatchFeature:
        """A left-padded batch of texts that are written already, as :meth:`apply_chat_template` writes them.

        Args:
            images: a picture of PIL, a file, a ``data:`` or ``http`` address, an array; several in a list; of several
                texts a list for each.
            text: one or several; ``<image>`` in it stands for a picture.
            return_tensors: ``pt``, or ``None`` for the same.
            options: of other processors; padding is always as it has to be.

        Raises:
            ValueError: for pictures and places that do not go together, or what is no picture.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors: {return_tensors!r}; pt")
        if text is None:
            raise ValueError("text: missing; <image> in it stands for a picture")
        texts = [text] if isinstance(text, str) else list(text)
        shown = _by_text(images, texts)
        written = [self._read(each, bool(pictures)) for each, pictures in zip(texts, shown, strict=True)]
        return self._batch(written, shown)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Any,
        chat_template: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """Conversations as the model was trained on them, as text or, tokenized, as a batch with their pictures.

        Args:
            conversation: messages ``{"role": ..., "content": ...}``, or a list of such lists. A content is a text, or
                parts ``{"type": "text", "text": ...}`` and ``{"type": "image", "image": ...}`` (or ``url``, ``path``,
                ``base64``, or OpenAI's ``image_url``).
            chat_template: refused; the recipe's template writes.
            add_generation_prompt: to be set where the last message is the user's: it is written up to where the answer
                begins.
            continue_final_message: leave out what ends the last answer.
            tokenize: whether ids are wanted.
            return_dict: the whole batch, not its ``input_ids`` alone.
            options: of other processors, without effect.

        Raises:
            ValueError: for a role or a part that is not known; for what has no meaning in this template.
        """
        if chat_template is not None and chat_template != self.chat_template:
            raise ValueError("chat_template: conversations are written by the template that the model was trained with")
        alone = not conversation or not isinstance(getattr(conversation[0], "messages", conversation[0]), list | tuple)
        talks = [getattr(talk, "messages", talk) for talk in ([conversation] if alone else conversation)]
        made = [self._written(talk, add_generation_prompt, continue_final_message) for talk in talks]
        if not tokenize:
            texts = ["".join(piece.text for piece in pieces) for pieces, _ in made]
            return texts[0] if alone else texts
        template = self.ours.rows.template
        batch = self._batch([template.read(pieces, self.tokenizer).ids for pieces, _ in made], [p for _, p in made])
        return batch if return_dict else batch["input_ids"]

    def of_batch(self, batch: Any) -> BatchFeature:
        """A :class:`dslight.types.Batch`, of training or of questions, as the model takes it."""
        made = {
            "input_ids": batch.input_ids.masked_fill(batch.visual_mask, self.image_token_id),
            "attention_mask": batch.attention_mask,
        }
        if batch.views is not None:
            made["pixel_values"] = batch.views.pixels.contiguous()
            made["image_grids"] = torch.tensor(batch.views.grids, dtype=torch.int64)
            if batch.views.sizes:
                made["image_sizes"] = torch.tensor(batch.views.sizes, dtype=torch.int64)
            if batch.views.pieces:
                made["image_pieces"] = torch.tensor(batch.views.pieces, dtype=torch.int64)
        if batch.labels is not None:
            made["labels"] = batch.labels
        return BatchFeature(made)

    def _written(self, messages: Any, prompted: bool, continued: bool) -> tuple[list[Any], list[Any]]:
        """The pieces of a conversation, and its pictures."""
        from dslight.data.sample import Turn

        turns, pictures = [], []
        for message in messages:
            role = ROLES.get(message["role"])
            if role is None:
                raise ValueError(f"role: {message['role']!r}; one of {', '.join(ROLES)}")
            text, found = _content(message.get("content"))
            turns.append(Turn(role, text))
            pictures += found
        if turns and turns[-1].role == "human" and not prompted:
            raise ValueError(
                "add_generation_prompt: a conversation that ends with a question is written up to where the answer "
                "begins; set it to True"
            )
        rows = self.ours.rows
        pieces = rows.template.pieces(turns, self.tokenizer, bool(pictures))
        if continued and turns and turns[-1].role == "gpt":
            stop = rows.template.stop(self.tokenizer)
            while pieces and not pieces[-1].text.strip():
                pieces.pop()
            pieces[-1] = pieces[-1]._replace(text=pieces[-1].text.rstrip("\n").removesuffix(stop.rstrip("\n")))
        return pieces, pictures

    def _read(self, text: str, images: bool) -> Any:
        """Ids of a text that is written already."""
        from dslight.data.conversation import Piece

        pieces = [Piece(text)]
        if images:
            first, *others = text.split(IMAGE_TOKEN)
            pieces = [Piece(first), *(p for part in others for p in (Piece(IMAGE_TOKEN, image=True), Piece(part)))]
        return self.ours.rows.template.read(pieces, self.tokenizer).ids

    def _batch(self, ids: Sequence[Any], shown: Sequence[Sequence[Any]]) -> BatchFeature:
        from dslight.data.collate import Item
        from dslight.question import Question

        rows, items = self.ours.rows, []
        for number, (row, pictures) in enumerate(zip(ids, shown, strict=True)):
            arrays = [rows.read(_opened(picture)) for picture in pictures]
            name = f"text {number}"
            items.append(Item(name, list(row), None, **rows.seen(arrays), question=Question(name, "", references=())))
        return self.of_batch(self.ours.collate(items))


def _content(content: Any) -> tuple[str, list[Any]]:
    """A message's text with a mark for each picture, and the pictures."""
    texts, pictures = [], []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text"):
            texts.append(part["text"])
        elif kind in ("image", "image_url", "input_image"):
            found = next((part[key] for key in ("image", "url", "path", "base64", "image_url") if key in part), None)
            if found is None:
                raise ValueError("content: an image without `image`, `url`, `path` or `base64`")
            url = found.get("url") if isinstance(found, Mapping) else found
            pictures.append(f"data:image;base64,{url}" if "base64" in part else url)
            texts.append(IMAGE_TOKEN)
        else:
            raise ValueError(f"content: a part of the type {kind!r}; {MODEL_TYPE} models take text and image")
    return "\n".join(texts), pictures


def _by_text(images: Any, texts: Sequence[str]) -> list[list[Any]]:
    """The pictures of each text."""
    if images is None:
        return [[] for _ in texts]
    listed = list(images) if isinstance(images, list | tuple) else [images]
    if any(isinstance(each, list | tuple) for each in listed):
        if len(listed) != len(texts):
            raise ValueError(f"images: {len(listed)} lists for {len(texts)} texts; one for each")
        return [list(each or ()) for each in listed]
    marks = [text.count(IMAGE_TOKEN) for text in texts]
    if len(listed) != sum(marks):
        raise ValueError(f"images: {len(listed)} pictures, and the texts have places for {sum(marks)} ({IMAGE_TOKEN})")
    left = iter(listed)
    return [[next(left) for _ in range(count)] for count in marks]


def _opened(picture: Any) -> Any:
    """What :meth:`dslight.data.rows.RowMaker.read` takes: addresses are followed."""
    if isinstance(picture, torch.Tensor):
        return picture.numpy()
    if isinstance(picture, str) and picture.startswith("data:"):
        try:
            return base64.b64decode(picture.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise ValueError(f"images: a data: address whose base64 cannot be read ({error})") from None
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        from transformers.image_utils import load_image

        return np.asarray(load_image(picture))
    return picture
