"""What Python's garbage collection needn't look through: it holds all threads up meanwhile."""

from __future__ import annotations

import gc


def keep() -> None:
    """What is here now stays: it is collected once more, and then never looked through again."""
    gc.collect()
    gc.freeze()


def keep_also() -> None:
    """The same for what has come since, if anything is kept."""
    if gc.get_freeze_count():
        keep()


def release() -> bool:
    """Collect what was kept, too. Returns whether anything was."""
    kept = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    return kept
