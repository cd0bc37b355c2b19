"""Formats of predictions: text, tables, JSON Lines, subtitles, a page of pictures."""

import csv
import html
import io
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from errors import extra

Record = dict[str, Any]
SUBTITLES = ("srt", "vtt")
LINE_CHARACTERS = 42
"""Maximum number of characters of a subtitle's line; a subtitle has at most two lines."""
CUE_SECONDS = 7.0
NO_CLASSES = ("file", "index", "prediction", "image", "saliency")
"""Keys of an image's record that are not the names of classes."""
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Predictions</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #222; }
  figure { display: flex; flex-wrap: wrap; gap: 1rem; margin: 0 0 2rem; }
  figcaption { width: 100%; overflow-wrap: anywhere; }
  img { image-rendering: pixelated; max-width: 45%; }
  td { padding: 0 .7rem 0 0; }
  .chosen { font-weight: 600; }
</style>
<h1>Predictions</h1>
<p>Left: the image as the classifier reads it. Right: how much each pixel contributed to the
predicted class (magnitude of integrated gradients).</p>
"""


def header(format: str, records: list[Record]) -> str:
    """Return what a file starts with, given its first records."""
    if format == "html":
        return PAGE
    return csv_line(rows(records[0])[0]) if format == "csv" and records else ""


def render(format: str, record: Record, *, named: bool) -> str:
    """Return a record's part of a file.

    Args:
        format: txt, csv, jsonl, srt, vtt or html.
        record: a transcript of `Transcriber`, or a flat dictionary of `ImagePredictor`.
        named: whether a text starts with the name of its file.
    """
    if format == "jsonl":
        return json.dumps(record, ensure_ascii=False) + "\n"
    if format == "csv":
        return "".join(csv_line(row) for row in rows(record)[1:])
    if format == "txt":
        name = "\t".join(str(record[key]) for key in ("file", "channel") if key in record)
        return f"{name}\t{record['text']}\n" if named else f"{record['text']}\n"
    return render_figure(record) if format == "html" else render_subtitles(format, record)


def rows(record: Record) -> list[list[Any]]:
    """Return the names of a record's columns, and its rows: one for each segment."""
    if "segments" not in record:
        return [list(record), list(record.values())]
    common = {key: record[key] for key in ("file", "channel") if key in record}
    columns = ["start", "end", "text"]
    table = [[*common.values(), *(s[name] for name in columns)] for s in record["segments"]]
    return [[*common, *columns], *table]


def csv_line(row: list[Any]) -> str:
    """Return a line of a CSV file."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(row)
    return line.getvalue()


def render_figure(record: Record) -> str:
    """Return an image, its saliency map and its probabilities as HTML."""
    pictures = [record[name] for name in ("image", "saliency") if record[name] is not None]
    names = [name for name in record if name not in NO_CLASSES]
    lines = [f"<figure><figcaption>{html.escape(record['file'])}, image {record['index']}"]
    lines[0] += "</figcaption>"
    lines += [
        f'<img alt="{alt}" src="data:image/png;base64,{picture}">'
        for alt, picture in zip(("image", "saliency"), pictures, strict=False)
    ]
    lines.append("<table>")
    for name in sorted(names, key=lambda name: -record[name]):
        chosen = ' class="chosen"' if name == record["prediction"] else ""
        lines.append(f"<tr{chosen}><td>{html.escape(name)}<td>{record[name]:.3f}")
    return "\n".join([*lines, "</table></figure>"]) + "\n"


def render_subtitles(format: str, record: Record) -> str:
    """Return SubRip or WebVTT subtitles of a transcript.

    Raises:
        UserError: if pysubs2 is not installed.
    """
    with extra("media", "a subtitle file"):
        import pysubs2
    subtitles = pysubs2.SSAFile()
    for start, end, text in cues(record):
        first, last = (pysubs2.make_time(s=seconds) for seconds in (start, end))
        lines = "\\N".join(textwrap.wrap(text, LINE_CHARACTERS))
        subtitles.append(pysubs2.SSAEvent(start=first, end=last, text=lines))
    document: str = subtitles.to_string(format)
    return document if document.endswith("\n") else f"{document}\n"


def cues(record: Record) -> Iterator[tuple[float, float, str]]:
    """Yield start, end and text of each subtitle; long segments are divided between words."""
    for segment in record["segments"]:
        words = segment.get("words")
        if words is None or any(word["start"] is None for word in words):
            words = spread(segment)
        group: list[Record] = []
        for word in words:
            text = " ".join(w["word"] for w in [*group, word])
            is_long = len(textwrap.wrap(text, LINE_CHARACTERS)) > 2
            if group and (is_long or word["end"] - group[0]["start"] > CUE_SECONDS):
                yield as_cue(group)
                group = []
            group.append(word)
        if group:
            yield as_cue(group)


def spread(segment: Record) -> list[Record]:
    """Return the words of a segment with times in proportion to their position in its text."""
    rate = (segment["end"] - segment["start"]) / len(segment["text"])
    return [
        {
            "word": match.group(),
            "start": segment["start"] + rate * match.start(),
            "end": segment["start"] + rate * match.end(),
        }
        for match in re.finditer(r"\S+", segment["text"])
    ]


def as_cue(words: list[Record]) -> tuple[float, float, str]:
    """Return the start, the end and the text of words."""
    return words[0]["start"], words[-1]["end"], " ".join(word["word"] for word in words)
