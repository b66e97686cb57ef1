"""Lightning's own count of a run's epochs and batches, kept in step with the position in the plan.

The plan's position is exact, and the same on all ranks. Lightning counts beside it, and decides by its count when an
epoch and the run are over. Its count is put right here, because after a resume it is not:

* It is of micro-batches of one rank. Saved at one world size, it means another place at another one.
* A checkpoint of an epoch's last batch counts that epoch as begun, not as done. Resumed from it, Lightning trains the
  next epoch without counting its beginning; whatever is saved in that epoch then looks like the end of one.
* A batch in hand, when an exception or a callback saves inside of it, is not trained on.
"""

from __future__ import annotations

from typing import Any


class FitProgress:
    """The counts of a trainer's ``fit_loop`` (of Lightning 2.6; they are not public)."""

    def __init__(self, loop: Any) -> None:
        self._epochs, self._batches = loop.epoch_progress, loop.epoch_loop.batch_progress

    @property
    def in_hand(self) -> int:
        """Micro-batches of this rank that it was given and has not trained on: 1 inside of a batch."""
        return self._batches.current.ready - self._batches.current.processed

    def resume(self, batches: int) -> None:
        """Count ``batches`` of this epoch, at this world size, as done; again is the same as once."""
        current, epoch = self._batches.current, self._epochs.current
        unfinished = current.processed - current.completed  # 1 if saved at the end of a batch; Lightning completes it
        if unfinished and self._batches.is_last_batch and epoch.ready > epoch.processed:
            self._epochs.increment_processed()
            self._epochs.increment_completed()
            self._batches.is_last_batch = False  # or Lightning would count the end of the epoch once more
        current.ready = current.started = current.processed = batches
        current.completed = batches - unfinished
