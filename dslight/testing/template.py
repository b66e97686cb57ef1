"""What a template promises: answers alone are learnt, they end, and a question reads as it did in training."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from dslight.data.conversation import Piece, Template
from dslight.data.sample import IMAGE_TOKEN, Turn
from dslight.testing.tiny import byte_tokenizer
from dslight.types import IGNORE


class TemplateContract:
    """The promises of :class:`~dslight.Template`; subclass it and define :meth:`make`.

    Attributes:
        turns: the conversation that it is tried with.
    """

    turns: Sequence[Turn] = (
        Turn("human", f"{IMAGE_TOKEN}\nWhich bird is it?"),
        Turn("gpt", "A heron."),
        Turn("human", "Why?"),
        Turn("gpt", "Its neck."),
    )

    def make(self) -> Template:
        """A new template."""
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the template to test")

    def tokenizer(self) -> Any:
        """A fast tokenizer; define it where a template needs tokens of its own. Here: bytes, and an end token."""
        return byte_tokenizer()

    def test_it_is_a_template(self) -> None:
        template = self.make()
        assert isinstance(template, Template), f"{type(template).__name__} must subclass dslight.Template"

    def test_answers_are_learnt_and_nothing_else(self) -> None:
        learnt = " ".join(piece.text for piece in self._pieces(self.turns) if piece.supervised)
        for turn in self.turns:
            words = turn.text.replace(IMAGE_TOKEN, "").strip()
            assert (words in learnt) == (turn.role == "gpt"), (
                f"{words!r} of {turn.role} is {'' if words in learnt else 'not '}learnt: pieces of answers have "
                f"supervised=turn.learnt, and no others"
            )

    def test_an_answer_that_is_not_to_be_learnt_is_only_read(self) -> None:
        unlearnt = [turn._replace(weight=0) for turn in self.turns]
        assert self._text(unlearnt) == self._text(self.turns), "turn.weight changes the text"
        assert not any(piece.supervised for piece in self._pieces(unlearnt)), (
            "an answer of weight 0 is learnt: supervised=turn.learnt"
        )

    def test_an_answer_has_its_weight(self) -> None:
        weights = {
            piece.weight for piece in self._pieces([t._replace(weight=0.5) for t in self.turns]) if piece.supervised
        }
        assert weights == {0.5}, f"answers of weight 0.5 are learnt with {sorted(weights)}: weight=turn.weight"

    def test_an_answer_ends_with_the_token_that_ends_generation(self) -> None:
        template, tokenizer = self.make(), self.tokenizer()
        encoded = template.encode(self.turns, tokenizer)
        learnt = [int(label) for label in encoded.labels if label != IGNORE]
        assert learnt[-1] == template.stop_ids(tokenizer)[0], (
            f"the last token that is learnt is {tokenizer.decode(learnt[-1:])!r}, and stop() says "
            f"{template.stop(tokenizer)!r}: a model would not learn to end its answer"
        )

    def test_a_question_reads_as_it_did_in_training(self) -> None:
        asked, trained = self._text(self.turns[:1]), self._text(self.turns[:2])
        assert trained.startswith(asked), (
            f"a question is {asked!r}, and in training {trained[: len(asked)]!r}: end where the answer begins"
        )
        assert len(asked) < len(trained), "nothing follows the question: the answer is not written"

    def test_every_image_has_its_place(self) -> None:
        turns = [Turn("human", f"{IMAGE_TOKEN}\nThis, or {IMAGE_TOKEN}?"), Turn("gpt", "That.")]
        found = sum(piece.image for piece in self._pieces(turns))
        assert found == 2, f"{found} images where the text has 2 marks: see Template.with_images"

    def test_without_images_the_mark_is_a_word(self) -> None:
        turns = [Turn("human", f"What does {IMAGE_TOKEN} mean?"), Turn("gpt", "An image.")]
        pieces = list(self.make().pieces(turns, self.tokenizer(), False))
        assert not any(piece.image for piece in pieces), "a text without images gets one: heed the argument `images`"
        assert IMAGE_TOKEN in "".join(piece.text for piece in pieces), f"the word {IMAGE_TOKEN} is lost"

    def test_it_travels_to_data_workers_and_is_known_again(self) -> None:
        template, tokenizer = self.make(), self.tokenizer()
        again = pickle.loads(pickle.dumps(template))
        assert list(again.encode(self.turns, tokenizer).ids) == list(template.encode(self.turns, tokenizer).ids)
        assert repr(again) == repr(template) == repr(self.make()), (
            f"{template!r} is described otherwise in another process, so lengths and tokens on disk would not be found"
        )
        assert " at 0x" not in repr(template), f"{template!r}: an attribute does not say what it is made of"

    def _pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        return list(self.make().pieces(turns, self.tokenizer(), True))

    def _text(self, turns: Sequence[Turn]) -> str:
        return "".join(piece.text for piece in self._pieces(turns))
