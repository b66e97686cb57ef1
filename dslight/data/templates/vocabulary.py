"""Whether a tokenizer knows the words that are to be learnt. One of another language writes ``<unk>`` for each of them,
and the loss falls nicely all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dslight.data.sample import BadSample, parse_sample
from dslight.data.shards import ShardError, ShardReader
from dslight.data.views.frames import is_video

_LOOKED_AT = 16  # records of each source


def check_vocabulary(tokenizer: Any, readers: Sequence[ShardReader]) -> None:
    """Refuse a tokenizer that knows nothing of the answers of a training source.

    Args:
        tokenizer: the language model's.
        readers: of the training sources, in their order; what is pulled from elsewhere is not looked at.

    Raises:
        ValueError: naming the source.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    for i, reader in enumerate(readers if unknown is not None else ()):
        answers = [] if reader.remote else list(_answers(reader))
        ids = [one for text in answers for one in tokenizer(text, add_special_tokens=False)["input_ids"]]
        if ids and set(ids) == {unknown}:
            raise ValueError(
                f"data.train[{i}].root: {reader.root}: the tokenizer knows nothing of what is to be learnt "
                f"({answers[0][:40]!r}: {tokenizer.unk_token}, like all of {len(answers)} answers); give the language "
                f"model the one that it was made with (model.language_model.init_args.tokenizer)"
            )


def _answers(reader: ShardReader) -> Iterator[str]:
    """Those of some records, from all over the source."""
    count = len(reader)
    for row in sorted({i * count // _LOOKED_AT for i in range(_LOOKED_AT)} if count else ()):
        try:
            members = reader.read(row)
            sample = None if any(map(is_video, members)) else parse_sample("", members)
        except (BadSample, ShardError):  # said when it is trained on
            continue
        yield from (turn.text for turn in sample.turns if turn.role == "gpt" and turn.learnt) if sample else ()
