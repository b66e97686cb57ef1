"""What a model says after it has thought: a ``<think> ... </think>`` block is no part of the answer.

Models that reason write their thoughts in front of the answer. A reader of answers that saw them would find letters and
"no"s there which the model has rejected, so they are cut off before any protocol reads the answer. Some chat templates
open the block in the prompt, so that only its end is generated. A block that does not end (the answer was cut at its
longest) holds no answer: it is :data:`UNFINISHED`, which is wrong by every protocol, also by POPE's, to which silence
is a "yes".
"""

from __future__ import annotations

_BEGIN, _END = "<think>", "</think>"


class Unfinished(str):
    """An empty answer of a model that was still thinking."""

    __slots__ = ()


UNFINISHED = Unfinished()


def spoken(reply: str) -> str:
    """The answer of a reply: what follows its thoughts; :data:`UNFINISHED` if it is all thoughts.

    Example:
        >>> spoken("<think>No, or is it?</think>\\n\\nYes")
        'Yes'
        >>> spoken("no thoughts"), spoken("<think>It may be") is UNFINISHED
        ('no thoughts', True)
    """
    _, end, after = reply.rpartition(_END)
    if end:
        return UNFINISHED if _BEGIN in after else after.strip()
    return UNFINISHED if reply.lstrip().startswith(_BEGIN) else reply
