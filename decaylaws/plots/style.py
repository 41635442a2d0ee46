"""The house style of the figures, and how a figure becomes a part of a page."""

from __future__ import annotations

import functools
import io
import json
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7A6A00", "#444444")
INK, SOFT, FAINT = "#1f2933", "#52606d", "#c5ccd3"
CANDIDATE_COLOURS = {
    "recommended": "#D55E00",
    "control": "#444444",
    "token_proportional": "#56B4E9",
    "best_of_sweep": "#009E73",
}

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": "#e6eaee",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "decaylaws",
}

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_TIPS = "tips"

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the house style, whatever the caller's own settings of matplotlib are."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def figure(*, width: float = 7.2, height: float = 3.4, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, never shown on a screen by itself.

    Args:
        width: inches.
        height: inches.
        columns: panels side by side.
    """
    drawn = Figure(figsize=(width, height), layout="constrained")
    return drawn, [drawn.add_subplot(1, columns, index + 1) for index in range(columns)]


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in order."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on a colour (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def label(name: str) -> str:
    """A name as people read it."""
    return name.replace("_", " ")


def tips(artist: Artist, texts: Sequence[str]) -> None:
    """Give each mark of an artist a text, in drawing order; a page shows it under the pointer and to the keyboard."""
    artist.set_gid(json.dumps([_TIPS, *texts]))


def to_svg(drawn: Figure) -> str:
    """The figure as an ``<svg>`` element; equal figures give equal text.

    Marks with :func:`tips` get the class ``mark``, their text as ``data-tip`` and a ``<title>``.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    root = ET.fromstring(text[text.index("<svg") :])
    for metadata in root.findall(f"{{{_SVG}}}metadata"):  # says nothing, and names web addresses
        root.remove(metadata)
    for group in root.iter(f"{{{_SVG}}}g"):
        if group.get("id", "").startswith(f'["{_TIPS}"'):
            _write_tips(group)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return _own_ids(root)


def _write_tips(group: ET.Element) -> None:
    texts = json.loads(group.attrib.pop("id"))[1:]
    marks = list(group.iter(f"{{{_SVG}}}use")) or list(group.iter(f"{{{_SVG}}}path"))
    for mark, text in zip(marks, texts, strict=True):
        mark.set("class", "mark")
        mark.set("data-tip", text)
        ET.SubElement(mark, f"{{{_SVG}}}title").text = text


def _own_ids(root: ET.Element) -> str:
    """Text of a figure with only the ids that it refers to, under names that no other figure of a page has."""
    reference = r"""(url\(#|href="#)([\w-]+)"""
    text = ET.tostring(root, encoding="unicode")
    used = {name for _, name in re.findall(reference, text)}
    prefix = f"f{zlib.crc32(text.encode()):08x}-"
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name is not None and name in used:
            element.set("id", prefix + name)
    return re.sub(reference, rf"\g<1>{prefix}\g<2>", ET.tostring(root, encoding="unicode"))
