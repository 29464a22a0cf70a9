"""Pages of HTML as tests read them."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

VOID = {"meta", "input", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Reads a page; elements that are not closed in order are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def shown(text: str) -> str:
    """Text as a page shows it: without control characters."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)


def places(page: str) -> list[float]:
    """All numbers that say where something is drawn in the charts of a page."""
    found = []
    for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        numbers = re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy|r|width|height|points|viewBox)="([^"]*)"', drawn)
        found += [float(number) for number in " ".join(numbers).replace(",", " ").split()]
    return found


def has_nothing_from_elsewhere(page: Page) -> bool:
    """Whether a page has one script, its own, and no element or attribute that could fetch or run anything."""
    foreign = {"img", "link", "iframe", "object", "foreignobject", "embed", "base", "form", "a"}
    names = {name for _, attributes in page.elements for name in attributes}
    return (
        [tag for tag, _ in page.elements].count("script") == 1
        and not foreign & {tag for tag, _ in page.elements}
        and not {"href", "src", "xlink:href", "srcset", "action"} & names
        and not {name for name in names if name.startswith("on")}
    )


def assert_closed(text: str) -> None:
    """A page that fetches nothing, and lets no script run but its own."""
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(http" not in text
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy
