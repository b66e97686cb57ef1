"""Chat templates: a conversation to token ids and labels, and a question to the prompt that generation starts from.

Decided here, and why:

* A conversation is first written as pieces of text, each marked as supervised or not, with the images between them. The
  text between two images is tokenized once, as a whole, and a token is supervised if it starts inside a supervised
  piece. The usual way (tokenize every round again and count) is off by one whenever a tokenizer merges across a border
  or adds a prefix, and then masks the whole sample; positions cannot drift.
* An answer is supervised from its first character through the token that ends it, so that the model learns to stop;
  one that is marked as not to be learnt is not. System text, user turns and role markers never are.
* One image in a turn goes to the front of the turn (LLaVA's rule); several stay where the text has them, and so does a
  frame of a video behind its time.
* The prompt of a question is written by the same code as training text, up to the place where the answer begins.

The templates write what the training code of LLaVA (``plain``, ``vicuna_v1``, ``llama_2``, ``phi3``) and LLaVA-NeXT
(``chatml``) writes; ``tokenizer`` is the chat template that the tokenizer carries; ``bare`` has no markers at all.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from dslight.data.sample import IMAGE_TOKEN, BadSample, Turn, weight_of
from dslight.data.templates.chat_template import render
from dslight.data.templates.habits import Habits, check_habits, habits
from dslight.data.templates.tile_marks import Between, TileMarks
from dslight.data.templates.words import words_of
from dslight.layout import SlotLayout
from dslight.types import IGNORE
from dslight.written import Written

IMAGE = -200
"""Stands in the ids for one image until the collate gives it its slots (LLaVA's value)."""


Ids = list[int] | np.ndarray
"""Token ids, or labels, of one row."""

TemplateName = Literal["plain", "bare", "vicuna_v1", "llama_2", "phi3", "chatml", "tokenizer"]


class Piece(NamedTuple):
    """A stretch of text. ``text`` is ``IMAGE_TOKEN`` and ``image`` true where an image stands; ``weight``: of its loss,
    where it is supervised.

    Example:
        >>> dslight.Piece("A heron.", supervised=True).image
        False
    """

    text: str
    supervised: bool = False
    image: bool = False
    weight: float = 1


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one conversation, of equal length; ``IMAGE`` stands for each image, its label is
    ``IGNORE``. ``weights``, float32 of that length, is how much the loss of each label counts; ``None``: all alike."""

    ids: Ids
    labels: Ids
    weights: np.ndarray | None = None

    @property
    def supervised(self) -> int:
        """How many tokens carry a loss. Zero teaches nothing; the collate has a policy for it."""
        return sum(label != IGNORE for label in self.labels)


class Template(ABC, Written):
    """How a conversation is written: subclass it for a format of your own, or fill :class:`Markers` with texts.

    Instances are small and picklable, since data workers get a copy, and the lengths and tokens that are kept beside
    shards are those of the class and its attributes.

    Example:
        >>> class Dialogue(dslight.Template):
        ...     def pieces(self, turns, tokenizer, images):
        ...         for turn in turns:
        ...             if turn.role == "gpt":
        ...                 yield dslight.Piece(f" {turn.text}{tokenizer.eos_token}", turn.learnt, weight=turn.weight)
        ...             else:
        ...                 yield from [*self.with_images(turn.text, images), dslight.Piece(" Answer:")]
        ...     def stop(self, tokenizer):
        ...         return tokenizer.eos_token
        >>> data = dslight.Data(train=["data/mine"], template=Dialogue(), global_batch_size=4)
    """

    adds_bos = True
    """Whether the tokenizer's own beginning-of-sequence token is put first (false if the template writes it itself)."""

    def __repr__(self) -> str:
        """The class and what it is made of; lengths and tokens on disk go by it."""
        return f"{type(self).__qualname__}({', '.join(f'{key}={value!r}' for key, value in made_of(self))})"

    @abstractmethod
    def pieces(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, images: bool) -> Iterable[Piece]:
        """Write ``turns``; if the last one is a human's, end where the answer begins.

        ``images`` says whether ``<image>`` in the text stands for an image; in a text-only conversation it is only a
        word.
        """

    @staticmethod
    def with_images(text: str, images: bool) -> list[Piece]:
        """A human's ``text``, with a piece for every ``<image>`` in it where these stand for images: one goes to the
        front, several stay where they are.
        """
        return _with_images(text, images)

    @abstractmethod
    def stop(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text that ends an answer."""

    def encode(
        self,
        conversations: Iterable[Mapping[str, str] | Turn],
        tokenizer: PreTrainedTokenizerBase,
        num_images: int | None = None,
    ) -> Encoded:
        """Ids and labels to train on.

        Args:
            conversations: turns, or LLaVA's ``{"from", "value"}``.
            tokenizer: a fast one (labels need the character offsets of tokens).
            num_images: images of the sample; with 0, ``<image>`` in the text is an ordinary word. Default: as many as
                marks.
        """
        turns = [
            turn if isinstance(turn, Turn) else Turn(cast(Any, turn["from"]), turn["value"], weight_of(turn))
            for turn in conversations
        ]
        return _tokenize(self.pieces(turns, tokenizer, num_images != 0), tokenizer, self.adds_bos)

    def prompt(self, text: str, num_images: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Ids of a question about ``num_images`` images (put first), ending where the answer begins."""
        marks = "" if IMAGE_TOKEN in text else "\n".join([IMAGE_TOKEN] * num_images)
        value = f"{marks}\n{text}" if marks and text else marks or text
        pieces = self.pieces([Turn("human", value)], tokenizer, num_images > 0)
        return list(_tokenize(pieces, tokenizer, self.adds_bos).ids)

    def read(self, pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """Ids and labels of what is written already."""
        return _tokenize(pieces, tokenizer, self.adds_bos)

    def tile_texts(self, tokenizer: PreTrainedTokenizerBase, slots: SlotLayout) -> Between | None:
        """What stands between the tiles of an image; ``None``: nothing.

        Args:
            tokenizer: the language model's.
            slots: of an image.

        Raises:
            ValueError: for slots that are no runs of tiles.
        """
        return None

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids at which generation ends: the last token of :meth:`stop`, and the tokenizer's own end token."""
        ids = [_facts(tokenizer).encode(self.stop(tokenizer))[0][-1]]
        eos = cast(int | None, tokenizer.eos_token_id)
        return ids if eos is None or eos in ids else [*ids, eos]


@dataclass(frozen=True)
class Markers(Template):
    """A template of fixed strings around the turns; ``{eos}`` in them is the tokenizer's end token.

    Attributes:
        system: written once, at the start, around the conversation's own system text or ``default``.
        default: the system text of a conversation that has none.
        human: before a human turn.
        human_end: after it.
        gpt: before an answer (not supervised).
        answer: between the marker and the answer (supervised, e.g. the space that belongs to the first word).
        answer_end: after an answer, supervised; the last token of it ends generation.
        between: before every human turn but the first, not supervised.

    Example:
        >>> alpaca = dslight.Markers(human="### Question: ", human_end=" ", gpt="### Answer:", answer=" ")
        >>> lm.load_tokenizer().decode(alpaca.prompt("Why?", 0, lm.load_tokenizer()))
        '### Question: Why? ### Answer:'
        >>> data = dslight.Data(train=["data/mine"], template=alpaca, global_batch_size=4)
    """

    system: tuple[str, str] = ("", "")
    default: str = ""
    human: str = ""
    human_end: str = ""
    gpt: str = ""
    answer: str = ""
    answer_end: str = "{eos}"
    between: str = ""

    def pieces(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, images: bool) -> list[Piece]:
        """See :meth:`Template.pieces`."""
        eos = _eos(tokenizer)
        system, turns = split_system(turns)
        out = [Piece((self.default if system is None else system).join(self.system))]
        for i, turn in enumerate(turns):
            if turn.role == "human":
                out += [
                    Piece(self.between if i else ""),
                    Piece(self.human),
                    *_with_images(turn.text, images),
                    Piece(self.human_end),
                    Piece(self.gpt),
                ]
            elif turn.text:  # an empty answer teaches nothing and is not ended: its marker stands alone
                out.append(
                    Piece(
                        self.answer + turn.text + self.answer_end.replace("{eos}", eos), turn.learnt, weight=turn.weight
                    )
                )
        return out

    def stop(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """See :meth:`Template.stop`."""
        return self.answer_end.replace("{eos}", _eos(tokenizer))


class Plain(Template):
    """LLaVA's projector pre-training: the image, then its caption and a newline. The human's words are dropped."""

    def pieces(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, images: bool) -> list[Piece]:
        """See :meth:`Template.pieces`."""
        _, turns = split_system(turns)
        if not turns or len(turns) > 2 or IMAGE_TOKEN not in turns[0].text:
            raise BadSample(
                f"template plain: needs an image and one caption, got {len(turns)} turns; use bare or a chat template"
            )
        out = [Piece(IMAGE_TOKEN, image=True)] * turns[0].text.count(IMAGE_TOKEN)
        return out + [Piece(turn.text + "\n", turn.learnt, weight=turn.weight) for turn in turns[1:]]

    def stop(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """See :meth:`Template.stop`."""
        return "\n"


class Bare(Template):
    """No markers: the images, then questions and answers in turn, the end token after the last answer.

    For models that learn language from the recipe. An end token after every answer would be learnt first, as it is
    always right, and measurably delays the rest. So the data should hold conversations of different lengths: a model
    that never saw an end after the first answer will not stop there.
    """

    def pieces(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, images: bool) -> list[Piece]:
        """See :meth:`Template.pieces`."""
        system, turns = split_system(turns)
        out = [Piece(f"{system.strip()} ")] if system and system.strip() else []
        for i, turn in enumerate(turns):
            if turn.role == "human":
                between = " " if i else ""
                out += [p if p.image else Piece(between + p.text.strip()) for p in _with_images(turn.text, images)]
            else:
                end = _eos(tokenizer) if i == len(turns) - 1 else ""
                out.append(Piece(f" {turn.text}{end}", turn.learnt, weight=turn.weight))
        return out

    def stop(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """See :meth:`Template.stop`."""
        return _eos(tokenizer)


@dataclass(frozen=True)
class TokenizerTemplate(Template):
    """The chat template of the tokenizer (Qwen, Llama 3, Mistral, ...).

    An answer is what the template adds to its own generation prompt, so the template must write the same prefix whether
    or not more turns follow. One that does not is refused (:mod:`dslight.data.templates.habits`); with ``thinking``
    set, the last answer of a conversation is learnt with it.

    Attributes:
        thinking: ``enable_thinking`` of the template: whether answers begin with thoughts.
    """

    thinking: bool | None = None

    adds_bos = False

    def pieces(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, images: bool) -> list[Piece]:
        """See :meth:`Template.pieces`."""
        found = habits(tokenizer, self.thinking)
        turns = turns if found.system else _system_before_question(turns)
        messages = [
            {
                "role": _ROLES[turn.role],
                "content": _marks_first(turn.text) if images and turn.role == "human" else turn.text,
            }
            for turn in turns
        ]
        out: list[Piece] = []
        done = ""
        for i in self._answered(turns, found, images):
            prompt = render(tokenizer, messages[: i + 1], True, self.thinking)
            spans = [(prompt, False, images)]
            tail, weight = "", 1.0
            if i + 1 < len(turns):
                full = render(tokenizer, messages[: i + 2], False, self.thinking)
                body = full.removesuffix(found.tail)
                weight = turns[i + 1].weight
                learnt = turns[i + 1].learnt and bool(turns[i + 1].text)  # an empty one teaches nothing
                spans += [(body.rstrip(), learnt, False), (body, False, False)]
                tail = full[len(body) :] if i + 2 == len(turns) else ""
            for text, supervised, marked in spans:
                if not text.startswith(done):
                    raise BadSample(
                        f"the tokenizer's chat template rewrites earlier text at turn {i}; choose another template",
                        "template",
                    )
                piece = text[len(done) :]
                out += _split_images(piece) if marked else [Piece(piece, supervised, weight=weight)]
                done = text
            out.append(Piece(tail))
        return out

    def _answered(self, turns: Sequence[Turn], found: Habits, images: bool) -> list[int]:
        """The questions up to which the text is written, one after another."""
        asked = [i for i, turn in enumerate(turns) if turn.role == "human"]
        if not found.rewrites or self.thinking is None:
            return asked
        if images and any(IMAGE_TOKEN in turn.text for turn in turns[: asked[-1]] if turn.role == "gpt"):
            raise BadSample(f"{IMAGE_TOKEN} in an answer, and the chat template writes answers anew", "template")
        return asked[-1:]

    def stop(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """See :meth:`Template.stop`.

        Raises:
            BadSample: the tokenizer's template ends no answer; one sentence.
        """
        return habits(tokenizer, self.thinking).end or check_habits(tokenizer, self.thinking).end


@dataclass(frozen=True)
class Marked(Template):
    """A template with texts of its own before and behind every image, as a released model was trained with
    (``<|vision_start|>``, ``<|vision_end|>``). The line break that stands behind an image else gives way to them.

    Attributes:
        inner: the template.
        before: in front of each image.
        after: behind it.
        tiles: between its tiles.
    """

    inner: Template
    before: str
    after: str
    tiles: TileMarks | None = None

    @property
    def adds_bos(self) -> bool:  # type: ignore[override]
        """See :class:`Template`."""
        return self.inner.adds_bos

    @property
    def thinking(self) -> bool | None:
        """See :class:`TokenizerTemplate`."""
        return getattr(self.inner, "thinking", None)

    def pieces(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, images: bool) -> list[Piece]:
        """See :meth:`Template.pieces`."""
        out: list[Piece] = []
        for piece in self.inner.pieces(turns, tokenizer, images):
            if piece.image:
                out += [Piece(self.before), piece, Piece(self.after)]
            elif len(out) > 1 and out[-2].image:
                out.append(piece._replace(text=piece.text.removeprefix("\n")))
            else:
                out.append(piece)
        return out

    def tile_texts(self, tokenizer: PreTrainedTokenizerBase, slots: SlotLayout) -> Between | None:
        """See :meth:`Template.tile_texts`."""
        if self.tiles is None:
            return None
        if slots.native or slots.newline or slots.fill_to or (slots.crops and slots.thumbnail == "first"):
            raise ValueError(
                "data.tile_marks: stand between tiles of one size with the base view behind them; set "
                "model.stacking to SequenceConcat with thumbnail: last, and neither newline nor fill_to"
            )
        return Between(self.tiles, partial(_ids, tokenizer), slots.crops)

    def stop(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """See :meth:`Template.stop`."""
        return self.inner.stop(tokenizer)


TEMPLATES: dict[TemplateName, Template] = {
    "plain": Plain(),
    "bare": Bare(),
    "vicuna_v1": Markers(
        system=("", " "),
        default="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        human="USER: ",
        human_end=" ",
        gpt="ASSISTANT:",
        answer=" ",
    ),
    "llama_2": Markers(
        system=("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
        default="You are a helpful language and vision assistant. You are able to understand the visual "
        "content that the user provides, and assist the user with a variety of tasks using natural language.",
        human_end=" [/INST]",
        answer=" ",
        answer_end=" {eos}",
        between="<s>[INST] ",
    ),
    "phi3": Markers(
        system=("<|system|>\n", "<|end|>\n"),
        default="You are a helpful AI assistant.",
        human="<|user|>\n",
        human_end="<|end|>\n",
        gpt="<|assistant|>\n",
        answer_end="<|end|>",
        between="\n",
    ),
    "chatml": Markers(
        system=("<|im_start|>system\n", "<|im_end|>"),
        default="A conversation between a user and an LLM-based AI assistant. "
        "The assistant gives helpful and honest answers.",
        human="<|im_start|>user\n",
        human_end="<|im_end|>",
        gpt="<|im_start|>assistant\n",
        answer_end="<|im_end|>",
    ),
    "tokenizer": TokenizerTemplate(),
}


def template(
    name: TemplateName | Template,
    thinking: bool | None = None,
    image_marks: tuple[str, str] | None = None,
    tile_marks: TileMarks | None = None,
) -> Template:
    """The template called ``name``, or one that is made already; ``thinking``: whether the answers of the tokenizer's
    own begin with thoughts; ``image_marks``: texts before and behind every image;
    ``tile_marks``: between its tiles.

    Raises:
        ValueError: listing the names there are; or another template is to think.
    """
    own = isinstance(name, Template)
    if not own and name not in TEMPLATES:
        raise ValueError(
            f"data.template: {name!r} is none of {', '.join(TEMPLATES)}, and no dslight.Template of your own"
        )
    if image_marks is not None or tile_marks is not None:
        image_marks = image_marks or ("", "")
        if any(IMAGE_TOKEN in mark for mark in image_marks):
            raise ValueError(f"data.image_marks: {list(image_marks)}; {IMAGE_TOKEN} stands for an image itself")
        return Marked(template(name, thinking), *image_marks, tile_marks)
    if thinking is None:
        return name if own else TEMPLATES[name]
    if name != "tokenizer":
        said = f"data.thinking: {str(thinking).lower()}"
        raise ValueError(f"{said}, which only data.template: tokenizer has, not {called(name)}")
    return TokenizerTemplate(thinking)


def called(template: TemplateName | Template) -> str:
    """A template's name, in a recipe or in its package."""
    return type(template).__name__ if isinstance(template, Template) else template


def made_of(template: Any) -> list[tuple[str, Any]]:
    """Its attributes but the call that made it (:class:`~dslight.written.Written`), by name."""
    return sorted((key, value) for key, value in vars(template).items() if key != "_made")


def default_template(tokenizer: PreTrainedTokenizerBase) -> TemplateName:
    """What is written where nobody names a template: the tokenizer's own chat template, else LLaVA-1.5's."""
    return "tokenizer" if tokenizer.chat_template else "vicuna_v1"


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    return cast(str | None, tokenizer.eos_token) or ""


_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def split_system(turns: Sequence[Turn]) -> tuple[str | None, Sequence[Turn]]:
    """A conversation's own system text, ``None`` where it has none, and its other turns."""
    if turns and turns[0].role == "system":
        return turns[0].text, turns[1:]
    return None, turns


def _system_before_question(turns: Sequence[Turn]) -> Sequence[Turn]:
    system, rest = split_system(turns)
    if system is None or not system.strip() or not rest:
        return rest
    return [rest[0]._replace(text=f"{system}\n\n{rest[0].text}"), *rest[1:]]


def _marks_first(text: str) -> str:
    return "".join(piece.text for piece in _with_images(text, True))


_STAMPED = re.compile(rf"<\d+\.\d seconds>{IMAGE_TOKEN}")


def _with_images(text: str, images: bool) -> list[Piece]:
    if not images or IMAGE_TOKEN not in text:
        return [Piece(text)]
    if text.count(IMAGE_TOKEN) == 1 and not _STAMPED.search(text):
        rest = text.replace(IMAGE_TOKEN, "").strip()
        return [Piece(IMAGE_TOKEN, image=True), Piece(f"\n{rest}" if rest else "")]
    return _split_images(text)


def _split_images(text: str) -> list[Piece]:
    first, *others = text.split(IMAGE_TOKEN)
    return [Piece(first), *(p for part in others for p in (Piece(IMAGE_TOKEN, image=True), Piece(part)))]


def _tokenize(pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase, adds_bos: bool) -> Encoded:
    facts = _facts(tokenizer)
    ids = list(facts.bos) if adds_bos else []
    labels = [IGNORE] * len(ids)
    weights, used = [0.0] * len(ids), {1.0}
    for text, supervised in _stretches(pieces):
        if text is None:
            ids.append(IMAGE)
            labels.append(IGNORE)
            weights.append(0.0)
            continue
        chunk, starts = facts.encode(text)
        ids += chunk
        found = [supervised[start] for start in starts]
        labels += [token if weight else IGNORE for token, weight in zip(chunk, found, strict=True)]
        weights += found
        used.update(found)
    return Encoded(ids, labels, None if used <= {0.0, 1.0} else np.array(weights, np.float32))


def _stretches(pieces: Iterable[Piece]) -> Iterator[tuple[str | None, list[float]]]:
    """The text between images, with a number per character: the weight of its loss, 0 where it is not supervised;
    ``None`` for an image."""
    texts: list[str] = []
    weights: list[float] = []
    for piece in [*pieces, None]:
        if piece is None or piece.image:
            if texts:
                yield "".join(texts), weights
                texts, weights = [], []
            if piece is not None:
                yield None, weights
        elif piece.text:
            texts.append(piece.text)
            weights += [float(piece.weight) if piece.supervised else 0.0] * len(piece.text)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return _facts(tokenizer).encode(text)[0] if text else []


@dataclass(frozen=True)
class _Facts:
    """What is known of a tokenizer: its beginning token, and how to get ids with the character each starts at."""

    bos: tuple[int, ...]
    encode: Callable[[str], tuple[list[int], list[int]]]


@lru_cache(maxsize=8)
def _facts(tokenizer: PreTrainedTokenizerBase) -> _Facts:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__}: labels need token offsets, which only a fast tokenizer gives")
    backend.no_truncation()
    backend.no_padding()
    empty = cast(list[int], tokenizer("").input_ids)
    bos = tuple(empty[:1]) if empty[:1] == [tokenizer.bos_token_id] else ()

    if (words := words_of(backend)) is not None:
        return _Facts(bos, words.encode)

    def ids_and_starts(text: str) -> tuple[list[int], list[int]]:
        encoding = backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    if ids_and_starts(" a")[0] != ids_and_starts("a")[0]:
        return _Facts(bos, ids_and_starts)

    # transformers 5 builds non-legacy Llama tokenizers so that the first space of a text is taken for the word prefix;
    # with one
    # space more the ids are those that SentencePiece gives.
    def with_prefix(text: str) -> tuple[list[int], list[int]]:
        if not text.startswith((" ", "▁")):
            return ids_and_starts(text)
        ids, starts = ids_and_starts(" " + text)
        return ids, [max(0, start - 1) for start in starts]

    return _Facts(bos, with_prefix)
