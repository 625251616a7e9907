"""Calls from several Python threads at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable


def wrong_at_once(threads: int, times: int, right: Callable[[int], bool]) -> list[int]:
    """Let each thread call ``right`` this often with its number, all threads at once; the numbers of calls that gave
    False."""
    wrong = list[int]()

    def work(i: int) -> None:
        wrong.extend(i for _ in range(times) if not right(i))

    working = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    return wrong
