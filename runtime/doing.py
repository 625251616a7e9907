"""Show what is being done, in one line on the terminal that disappears when the work is done.

Without a terminal nothing is shown. The line goes to standard error, so the output of a program stays as it is.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

_now: list[str] = []  # what is being done, the outermost first
_shown: list[Any] = []  # the line, while there is one


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Show a few words while the ``with`` runs; inside another one, after the words of that one.

    Args:
        what: such as "compiling".
    """
    if threading.current_thread() is not threading.main_thread() or not _console().is_terminal:
        yield
        return
    _now.append(what)
    _show()
    try:
        yield
    finally:
        _now.pop()
        _show()


def _show() -> None:
    from rich.live import Live
    from rich.text import Text

    words = Text(f"topkast: {', '.join(_now)} ...", overflow="ellipsis", no_wrap=True)
    if not _now:
        while _shown:
            _shown.pop().stop()
    elif _shown:
        _shown[0].update(words, refresh=True)
    else:
        # No thread and no redirection: a compiler may start processes, and a program may print, at any time.
        line = Live(
            words,
            console=_console(),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        _shown.append(line)
        _shown[0].start(refresh=True)


@functools.cache
def _console() -> Any:
    from rich.console import Console  # here, because it takes a while to import

    return Console(stderr=True)
