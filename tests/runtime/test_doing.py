"""One line says what is being done, and disappears; without a terminal nothing is written."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from topkast.runtime import doing as module
from topkast.runtime.doing import doing


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=80, legacy_windows=False, _environ={})
    monkeypatch.setattr(module, "_console", lambda: console)
    return text


def test_inner_work_stands_after_outer_work_and_all_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, True)
    with pytest.raises(ValueError, match="stop"), doing("compiling"):
        assert "topkast: compiling ..." in text.getvalue()
        with doing("timing products"):
            assert "topkast: compiling, timing products ..." in text.getvalue()
        raise ValueError("stop")
    assert text.getvalue().rstrip("\x1b[?25h").endswith("\x1b[2K"), "the last thing is to erase the line"
    assert not module._shown and not module._now


def test_nothing_without_a_terminal_or_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, False)
    with doing("exporting"):
        pass
    assert text.getvalue() == ""
    text = shown(monkeypatch, True)

    @doing("exporting")
    def work() -> None:
        assert not module._now

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert text.getvalue() == ""
