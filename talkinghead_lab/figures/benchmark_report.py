"""A benchmark as one HTML file that opens from disk: table, pictures, videos, failures and sources."""

import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from talkinghead_lab import __version__
from talkinghead_lab.errors import InvalidRequest, TalkingHeadError
from talkinghead_lab.evaluation.published import NOTE, Published, published
from talkinghead_lab.evaluation.scoring import COMPARED
from talkinghead_lab.evaluation.systems import REAL, WRONG, benchmark_name, stored_scores
from talkinghead_lab.evaluation.table import Row, benchmark_table, table_cells, table_notes
from talkinghead_lab.figures import benchmarks
from talkinghead_lab.figures.labels import measure_title, readable_name
from talkinghead_lab.figures.runs import NotebookFigure
from talkinghead_lab.foundation.files import atomic_path, output_errors
from talkinghead_lab.foundation.html_media import data_url, video_html

REPORT = "report.html"
SHOWN_CLIPS = 3  # worst ones, and as many best ones
PREFERRED = ("lse_c", "lip_correlation", "mouth_follows_sound")  # by which clips are ranked, if nobody says
STYLE = """
:root { color-scheme: light; }
body { font: 1rem/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; margin: 0 auto;
  max-width: 72rem; padding: 1rem clamp(.8rem, 3vw, 2.5rem) 3rem; }
h1 { font-size: 1.6rem; margin: .5rem 0 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; } .scroll:focus-visible { outline: 3px solid #1d4ed8; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d7dbe0; }
th:first-child, td.words { text-align: left; } td.words { white-space: normal; }
tbody th { font-weight: 600; } tr.published * { color: #595f69; font-weight: 400; }
.notes { color: #4a5260; font-size: .85rem; } .notes li { margin: .2rem 0; }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
img, video { max-width: 100%; height: auto; } figure { margin: 0; }
"""


def write_report(
    folder: Path, base: str | None = None, measure: str | None = None, against: str | None = None
) -> Path:
    """Write FOLDER/report.html, with everything in it, and its pictures and videos in FOLDER/figures/.

    Args:
        folder: of the benchmark.
        base: the system that others are compared with; its worst and best clips are shown. None: the first
            one by name.
        measure: by which clips are worst and best. None: one of lips and sound.
        against: the measure beside it in the scatter plot. None: identity.

    Raises:
        OutputError: there are no scores, or a file cannot be written.
        InvalidRequest: there is no such system, or no clip has a measure.
    """
    table, scores = benchmark_table(folder, base), stored_scores(folder)
    rows = [row for row in table if row.why_not is None]
    figures = folder / "figures"
    with output_errors("the folder of the figures cannot be created", figures):
        figures.mkdir(exist_ok=True)
    base = base or next((name for name in scores if name not in (REAL, WRONG)), REAL)
    better = {row.measure: row.better for row in rows if row.system == base}
    taken = [name for name in COMPARED if better.get(name, "neither") != "neither"]
    if not taken:
        raise InvalidRequest("no clip of the system has a measure", received=base)
    measure = measure or next((name for name in PREFERRED if name in taken), taken[0])
    others = [name for name in ("identity", *taken) if name in taken and name != measure]
    ranked = benchmarks.ranked_clips(scores[base], measure, better.get(measure, "neither"))

    parts = [_table_section(folder, table)]
    parts += [_strips_section(scores, rows, figures)]
    if against or others:
        figure = benchmarks.scatter(scores, measure, against or others[0])
        words = f"Each clip a dot, each system's mean a large one: {readable_name(against or others[0])}"
        shown = _figure(figure, f"{words} against {readable_name(measure)}.", figures / "scatter.png")
        parts += [f"<h2>Two measures</h2>{shown}"]
    parts += [_clips_section(folder, scores, (base, measure, ranked), figures), _failures_section(scores)]
    name = html.escape(benchmark_name(folder))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Benchmark {name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main><h1>Benchmark {name}</h1>"
        f"<p>{_summary(scores)}</p>{''.join(parts)}{_published_section()}</main></body></html>\n"
    )
    path = folder / REPORT
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def _summary(scores: benchmarks.Scores) -> str:
    systems = [name for name in scores if name not in (REAL, WRONG)]
    clips = {score.clip for found in scores.values() for score in found}
    people = {score.identity for found in scores.values() for score in found}
    return (
        f"Systems: {', '.join(systems) or 'none'}. Clips: {len(clips)}, of {len(people)} people. "
        f"Scored with talkinghead_lab {__version__}."
    )


def _table_section(folder: Path, rows: Sequence[Row]) -> str:
    others = published(benchmark_name(folder))
    header, body = table_cells(rows, others)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table_notes(rows, others))
    ours = len(body) - len(others)
    lines = [(line, "" if number < ours else "published") for number, line in enumerate(body)]
    return f"<h2>Table</h2>{_table(header, lines, 'Systems and measures')}<ul class=notes>{notes}</ul>"


def _table(
    header: Sequence[str], lines: Sequence[tuple[Sequence[str], str]], label: str, words: int = 0
) -> str:
    """A table that scrolls sideways; the last `words` columns are text."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = ""
    for cells, kind in lines:
        across = "".join(
            f"<td{' class=words' if number >= len(cells) - words else ''}>{_linked(cell)}</td>"
            for number, cell in enumerate(cells[1:], 1)
        )
        row = f' class="{kind}"' if kind else ""
        body += f'<tr{row}><th scope="row">{html.escape(cells[0])}</th>{across}</tr>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _linked(cell: str) -> str:
    text = html.escape(cell)
    return f'<a href="{text}">{text}</a>' if cell.startswith("https://") else text


def _strips_section(scores: benchmarks.Scores, rows: Sequence[Row], figures: Path) -> str:
    shown = ""
    for measure in COMPARED:
        of = [row for row in rows if row.measure == measure and row.rule == "excluded"]
        if of:
            means = ", ".join(f"{row.system} {row.interval.value:.3g}" for row in of)
            text = f"{measure_title(measure)}. Means: {means}."
            shown += _figure(benchmarks.strips(scores, rows, measure), text, figures / f"{measure}.png")
    return (
        "<h2>Clips and means</h2><p>Each dot is a clip. A diamond is the mean of a system, the bar its 95 % "
        f'interval over people, where there are ten or more.</p><div class="strips">{shown}</div>'
    )


def _figure(figure: NotebookFigure | Image.Image, text: str, path: Path) -> str:
    """Write a picture as PNG and return it for the page."""
    content = io.BytesIO()
    if isinstance(figure, Image.Image):
        figure.save(content, "PNG")
    else:
        figure.savefig(content, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(content.getvalue())
    address = data_url(content.getvalue(), "image/png")
    return f'<figure><img alt="{html.escape(text)}" src="{address}"></figure>'


def _clips_section(
    folder: Path, scores: benchmarks.Scores, ranking: tuple[str, str, list[str]], figures: Path
) -> str:
    """The worst and the best clips of the base, as pictures, and the worst and the best one as videos."""
    base, measure, ranked = ranking
    chosen = list(dict.fromkeys([*ranked[:SHOWN_CLIPS], *ranked[-SHOWN_CLIPS:]]))
    words = f"{html.escape(readable_name(measure))} of {html.escape(base)}"
    sheet = benchmarks.contact_sheet(folder, scores, measure, chosen)
    text = f"The middle frames of the clips {', '.join(chosen)}: real and by every system."
    parts = [
        f"<h2>Worst and best clips</h2><p>By {words}, the worst first, with the values below.</p>",
        _figure(sheet, text, figures / "clips.png"),
    ]
    systems = [name for name in scores if name not in (REAL, WRONG)]
    for kind, clip in (("worst", ranked[0]), ("best", ranked[-1])):
        parts.append(f"<h3>The {kind} clip: {html.escape(clip)}</h3>")
        try:
            path = benchmarks.clip_video(folder, systems, clip, figures / f"{kind}.mp4")
        except TalkingHeadError as error:
            parts.append(f"<p>No video: {html.escape(str(error))}</p>")
            continue
        label = f'controls preload="auto" aria-label="The {kind} clip, {html.escape(clip)}, side by side"'
        parts.append(
            video_html(path.read_bytes(), label)
            if path
            else "<p>The videos are no longer where they were.</p>"
        )
    return "".join(parts)


def _failures_section(scores: benchmarks.Scores) -> str:
    failed = [
        ([system, score.clip, score.failure], "")
        for system, found in scores.items()
        for score in found
        if score.failure
    ]
    listed = _table(("system", "clip", "reason"), failed, "Failures", words=2) if failed else "<p>None.</p>"
    return f"<h2>Failures</h2>{listed}"


def _published_section() -> str:
    """All published rows, whatever the clips of this benchmark are."""
    rows = published()
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    lines = [(_published_line(row, names), "published") for row in rows]
    header = [
        "system",
        *map(readable_name, names),
        "set",
        "measured by",
        "unknown",
        "source",
    ]
    return (
        f"<h2>Published elsewhere</h2><p>{html.escape(NOTE)}</p>"
        f"{_table(header, lines, 'Published figures', words=4)}"
    )


def _published_line(row: Published, names: Sequence[str]) -> list[str]:
    figures = [f"{row.figures[name]:g}" if name in row.figures else "" for name in names]
    return [row.name, *figures, row.set, row.by, row.unknown, row.source]
