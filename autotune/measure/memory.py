"""How much memory of the host a trial holds at the fullest edge of its blocks."""

from __future__ import annotations

import psutil

from autotune.measure.device import resident_bytes


class MemoryMeter:
    """Memory of this process and its children: looked at quickly after each block, and closely once.

    What a child holds beyond the pages that it still shares with its parent is told only by going through
    all of them, which takes milliseconds for each worker. Between two blocks that would let the workers fill
    their queue, and the next block look faster than it is. So at each edge only the pages in memory are
    summed up, shared ones counted again for each process, to know by how much the fullest edge exceeds the
    last one; and that is added to what the close look after the last block finds.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        """What `finish` found; None before it, and where the system does not tell."""
        self._fullest = 0
        self._processes: list[psutil.Process] = []

    def sample(self) -> None:
        """Look quickly. Nothing raises."""
        self._fullest = max(self._fullest, self._resident())

    def finish(self) -> None:
        """Look closely, with the workers still there."""
        now = self._resident()
        found = resident_bytes()
        self.peak_bytes = None if found is None else found + max(self._fullest - now, 0)

    def _resident(self) -> int:
        total = self._sum()
        return total if total is not None else self._sum() or 0

    def _sum(self) -> int | None:
        """Over processes that are all alive; None where one has gone, and the next call looks for new ones.

        Listing them takes longer than asking them, so it is done when the workers have changed alone.
        """
        try:
            if not self._processes:
                own = psutil.Process()
                self._processes = [own, *own.children(recursive=True)]
            sizes = [int(process.memory_info().rss) for process in self._processes]
        except psutil.Error:
            sizes = [0]
        if all(sizes):  # a process that has ended holds nothing
            return sum(sizes)
        self._processes = []
        return None
