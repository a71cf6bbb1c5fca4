"""Tables for a terminal."""

import textwrap
from collections.abc import Collection, Sequence

from talkinghead_lab.pipeline.inventory import printable

GAP = "  "


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Collection[int] = (), widest: int = 40
) -> str:
    """Rows as aligned columns under a head; longer cells are wrapped.

    Args:
        head: names of the columns.
        rows: cells, as many as the head has.
        numeric: numbers of the columns that are aligned to the right.
        widest: characters of the widest column.
    """
    wrapped = [[textwrap.wrap(printable(cell), widest) or [""] for cell in row] for row in [head, *rows]]
    widths = [max(len(line) for row in wrapped for line in row[column]) for column in range(len(head))]
    lines = []
    for row in wrapped:
        for number in range(max(len(cell) for cell in row)):
            words = [cell[number] if number < len(cell) else "" for cell in row]
            aligned = [
                word.rjust(width) if column in numeric else word.ljust(width)
                for column, (word, width) in enumerate(zip(words, widths, strict=True))
            ]
            lines.append(GAP.join(aligned).rstrip())
    return "\n".join(lines)
