"""What assistive software would meet in a page, and how far two colours are apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Self


@dataclass
class Outline(HTMLParser):
    """Language, headings and ids of a page, and its elements that lack a name.

    Attributes:
        language: of the document.
        headings: levels in order.
        ids: every id.
        anchors: targets of links inside the page.
        unlabelled: controls and regions without a name.
        loose_header_cells: header cells that do not say whether they head a row or a column.
    """

    language: str = ""
    headings: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    loose_header_cells: int = 0
    labels: set[str] = field(default_factory=set)
    _open_labels: int = 0

    @classmethod
    def of(cls, page: str) -> Self:
        """Read a page."""
        outline = cls()
        HTMLParser.__init__(outline)
        outline.labels = set()
        outline.feed(page)
        outline.unlabelled = [name for name in outline.unlabelled if name not in outline.labels]
        return outline

    @property
    def repeated_ids(self) -> set[str]:
        """Ids that stand more than once."""
        return {name for name in self.ids if self.ids.count(name) > 1}

    @property
    def dead_anchors(self) -> set[str]:
        """Links to places that are not there."""
        return set(self.anchors) - set(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element says of itself."""
        named = dict(attrs)
        self.language = named.get("lang") or self.language
        if named.get("id"):
            self.ids.append(str(named["id"]))
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        if tag == "a" and str(named.get("href")).startswith("#"):
            self.anchors.append(str(named["href"])[1:])
        if tag == "th" and named.get("scope") not in ("row", "col"):
            self.loose_header_cells += 1
        if tag == "label":
            self._open_labels += 1
            self.labels.add(named.get("for") or "")
        if tag in ("input", "select", "nav") and not (named.get("aria-label") or self._open_labels):
            self.unlabelled.append(named.get("id") or tag)
        if named.get("tabindex") == "0" and not named.get("aria-label"):
            self.unlabelled.append(named.get("id") or tag)

    def handle_endtag(self, tag: str) -> None:
        """Leave a label."""
        if tag == "label":
            self._open_labels -= 1


def contrast(ink: str, ground: str) -> float:
    """Contrast ratio of two hexadecimal colours (WCAG 2.2)."""
    light, dark = sorted((_luminance(ink), _luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
