"""What `prune` tells whoever started it: on a terminal a line that moves, and a last line."""

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable

from service.database.prune import Progress

INTERVAL = 0.2  # seconds between two looks
BAR = 24  # characters

REASONS = {
    "gone": "whose event is gone",
    "old": "whose event is older",
    "user": "of the user",
}


async def shown(work: Callable[[], Awaitable[None]], progress: Progress) -> None:
    """Do the work; on a terminal, with a line that says how far it is, which goes in the end."""
    if not sys.stdout.isatty():
        await work()
        return
    drawing = asyncio.create_task(_draw(progress))
    try:
        await work()
    finally:
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
        sys.stdout.write("\r\x1b[K")


async def _draw(progress: Progress) -> None:
    while True:
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write(f"\r{_line(progress)[:width]}\x1b[K")
        sys.stdout.flush()
        await asyncio.sleep(INTERVAL)


def _line(progress: Progress) -> str:
    found = progress.found.total()
    text = f"{progress.looked:,} looked at, {found:,} found, {progress.deleted:,} deleted"
    if not progress.rows:
        return text
    part = min(progress.looked / progress.rows, 1)  # statistics may be old
    return f"[{'#' * round(part * BAR):{BAR}}] {part:4.0%}  {text}"


def summary(progress: Progress, *, dry_run: bool) -> str:
    """Say in a line what was found, and what became of it."""
    found = ", ".join(
        f"{progress.found[name]:,} {text}" for name, text in REASONS.items() if progress.found[name]
    )
    parts = [f"read rows: {progress.looked:,} looked at" if progress.looked else "read rows"]
    parts.append(f"found {found or 'none to delete'}")
    parts.append("dry run, deleted none" if dry_run else f"deleted {progress.deleted:,}")
    if progress.left:
        parts.append(f"left {progress.left:,} that others hold locked, run it again")
    return "; ".join(parts)
