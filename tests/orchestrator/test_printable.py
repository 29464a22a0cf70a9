"""What comes from outside reaches a terminal as text: no markup is found in it, and nothing in it is obeyed."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from orchestrator.console import Console, Terminal
from orchestrator.printable import printable, printable_log

HOSTILE = (
    "[INST] hello [/INST]",
    "/data/[old]/x",
    "[/]",
    "[bold",
    "[link=file:///etc/passwd]x[/link]",
    ":smile:",
    "\\[x]",
)


def printed(*values: str) -> str:
    """What a terminal gets for lines and a table of these values."""
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=True, color_system=None, width=200)
    table = Table(title=values[0])
    for value in values:
        terminal.print(value, soft_wrap=True)
        table.add_row(value)
    table.caption = values[-1]
    terminal.print(table)
    return file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_brackets_are_text(text: str) -> None:
    assert printed(text).count(text) == 4


@given(st.text(alphabet=st.characters(codec=None), max_size=30))
def test_nothing_is_obeyed(text: str) -> None:
    shown = printable(text)
    assert all(char in "\t\n" or ord(char) >= 32 for char in shown)
    assert not {"\x1b", "\x9b", "\x7f", "\r", "\u202e", "\u2066"} & set(shown)
    shown.encode()  # no half of a surrogate pair
    assert printable(shown) == shown
    assert not {"\x1b", "\x9b", "\x7f", "\r"} & set(printed(text or "x"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb", "a\\rb"),
        ("\x1b[2J\x1b[31mred", "\\x1b[2J\\x1b[31mred"),
        ("\u202eevil", "\\u202eevil"),
        ("\udc80", "\\udc80"),
        ("tab\tand\nline, ü, 漢字, 😀", "tab\tand\nline, ü, 漢字, 😀"),
    ],
)
def test_what_is_shown_instead(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert shown.splitlines()[0].expandtabs() in printed(text)


def test_logs_keep_their_colours_and_nothing_else() -> None:
    log = "\x1b[36m(pid=7)\x1b[0m step 1\r\n\x1b[1;31mred\x1b[0m\x1b[2J\x1b]0;title\x07"
    assert printable_log(log) == "\x1b[36m(pid=7)\x1b[0m step 1\r\n\x1b[1;31mred\x1b[0m\\x1b[2J\\x1b]0;title\\x07"


def test_generated_text_keeps_its_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    Console().verbatim("def f():\n\treturn\x1b[2J\n")
    assert capsys.readouterr().out == "def f():\n\treturn\\x1b[2J\n"
