"""Colours as text."""

import re
from collections.abc import Collection

from PIL import ImageColor

COLOR = re.compile("|".join(("#[0-9a-f]{6}", *ImageColor.colormap)), re.IGNORECASE)


def checked_color(text: str | None, others: Collection[str] = ()) -> str | None:
    """Return an opaque colour that Pillow's ImageColor knows, one of the other values, or None unchanged.

    Raises:
        ValueError: the text is none of them.
    """
    if text is None or text in others or COLOR.fullmatch(text):
        return text
    allowed = ", ".join((*others, "#rrggbb or a CSS colour name"))
    raise ValueError(f"must be {allowed}; quote #rrggbb in YAML")
