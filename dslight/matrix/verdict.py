"""What became of one kind of model that was tried."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

WORKS, REFUSED, WRONG, CRASHED = "works", "refused", "wrong", "crashed"


@dataclass
class Verdict:
    """A line of the matrix.

    Attributes:
        kind: its name in the library.
        verdict: one of the words above.
        said: the refusal, or what is wrong.
        notes: what works with a limit.
        checked: letters of what was checked, in their order.
        seconds: that it took.
        trace: of a crash.
    """

    kind: str
    verdict: str = WORKS
    said: str = ""
    notes: list[str] = field(default_factory=list)
    checked: str = ""
    seconds: float = 0.0
    trace: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)
