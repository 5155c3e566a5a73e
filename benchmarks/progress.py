"""How far a series of runs is."""

from __future__ import annotations


def progress(done: int, total: int, seconds: float) -> str:
    """Return the number of the next run, and how long the others will take if they are like those done.

    `done` and `total` are numbers of runs, `seconds` is how long the runs done have taken.
    """
    left = f", about {seconds / done * (total - done) / 60:.0f} min left" if done else ""
    return f"[{done + 1}/{total}{left}]"
