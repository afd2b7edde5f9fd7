"""Jupyter notebooks of any age as Markdown: text as it stands, code and its textual outputs in fenced blocks.

The formats: nbformat 4 has `cells`; 2 and 3 have `worksheets` of cells, whose code is `input`; 1 has `cells` with `code` and `text`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from data_prep.documents import cut
from data_prep.rendering.shared import Count, Unrenderable, fenced, valid_text

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_OBJECT = re.compile(r"<[^<>\n]{1,200} at 0x[0-9a-fA-F]+>")
"""How Python names an object that has no text."""
_LANGUAGE = re.compile(r"[A-Za-z0-9+#_.-]{1,40}")
_INLINE_IMAGE = re.compile(r"\bdata:image/[a-z.+-]{1,40};base64,[A-Za-z0-9+/=]+")
_PROSE = ("markdown", "html", "text", "rst", "raw", "heading")
_SOURCES = ("source", "input", "code", "text")
_IMAGES = ("png", "jpeg", "svg")
"""Keys of an output's images in formats 2 and 3."""


def render_notebook(text: str, outputs: bool, max_output_bytes: int, count: Count) -> str:
    """Markdown of a notebook's JSON.

    outputs: keep textual outputs. max_output_bytes: UTF-8 bytes at which a cell's output is cut. count: told what was left out.
    Raises Unrenderable for what is no notebook, or one without content.
    """
    notebook = _parse(text)
    language = _language(notebook)
    parts = []
    for cell in _cells(notebook):
        kind, source = cell.get("cell_type"), _source(cell)
        if kind == "code":
            named = cell.get("language")
            if source.strip():
                parts.append(fenced(source, named if isinstance(named, str) and _LANGUAGE.fullmatch(named) else language))
            if outputs and (shown := _outputs(cell, max_output_bytes, count)):
                parts.append(fenced(shown, "output"))
        elif kind in _PROSE:
            source, images = _INLINE_IMAGE.subn("data:", source)
            if images:
                count("inline images", images)
            if source.strip():
                parts.append(f"{'#' * _level(cell)} {source.strip()}" if kind == "heading" else source.strip("\n"))
        elif isinstance(kind, str):
            count("cells of unknown types")  # of a format to come: what is known of it is kept
        else:
            raise Unrenderable("malformed notebook", "a cell without a type")
    if not parts:
        raise Unrenderable("empty notebook")
    return valid_text("\n\n".join(parts)) + "\n"


def _parse(text: str) -> dict[str, Any]:
    try:
        notebook = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        try:
            # Notebooks are written by Python, which writes NaN, and by JavaScript, which writes lone surrogates.
            notebook = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unrenderable("not JSON", str(error)[:80]) from None
    if not isinstance(notebook, dict) or not notebook.keys() & {"cells", "worksheets", "nbformat"}:
        raise Unrenderable("not a notebook")
    return notebook


def _cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    if "cells" in notebook:
        cells = notebook["cells"]
    else:
        sheets = notebook.get("worksheets", [])
        if not isinstance(sheets, list) or not all(
            isinstance(sheet, dict) and isinstance(sheet.get("cells", []), list) for sheet in sheets
        ):
            raise Unrenderable("malformed notebook", "its worksheets")
        cells = [cell for sheet in sheets for cell in sheet.get("cells", [])]
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise Unrenderable("malformed notebook", "its cells")
    return cells


def _language(notebook: dict[str, Any]) -> str:
    metadata = notebook.get("metadata")
    for section, key in (("language_info", "name"), ("kernelspec", "language")):
        values = metadata.get(section) if isinstance(metadata, dict) else None
        name = values.get(key) if isinstance(values, dict) else None
        if isinstance(name, str) and _LANGUAGE.fullmatch(name):
            return name.lower()
    return "python"


def _level(cell: dict[str, Any]) -> int:
    level = cell.get("level")
    return min(max(level, 1), 6) if isinstance(level, int) else 1


def _source(cell: dict[str, Any]) -> str:
    for name in _SOURCES:
        if cell.get(name) is not None:
            return _joined(cell[name])
    return ""


def _joined(value: Any) -> str:
    """A text that may be written as a list of lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "".join(value)
    if not isinstance(value, str):
        raise Unrenderable("malformed notebook", "a text that is none")
    return value


def _outputs(cell: dict[str, Any], max_bytes: int, count: Count) -> str:
    """The cell's textual outputs, '' if there are none."""
    found = cell.get("outputs", [])
    if not isinstance(found, list):
        raise Unrenderable("malformed notebook", "its outputs")
    text = ""
    for output in found:
        if not isinstance(output, dict):
            raise Unrenderable("malformed notebook", "its outputs")
        shown = _output(output)
        if shown is None:
            count("outputs that are no text")
        elif shown:
            # Streams continue each other; anything else begins a line.
            text += shown if output.get("output_type") == "stream" or not text or text.endswith("\n") else f"\n{shown}"
    text = _as_on_a_terminal(text).strip("\n")
    short, encoded = cut(valid_text(text), max_bytes)
    if len(short) < len(text):
        count("outputs cut")
        short += "…"
    return short if encoded.strip() else ""


def _output(output: dict[str, Any]) -> str | None:
    """An output's text; None for one that shows something else, such as a picture."""
    if output.get("output_type") in ("error", "pyerr"):
        name, value = output.get("ename", output.get("etype")), output.get("evalue")  # etype: format 2
        return f"{name}: {value}" if isinstance(name, str) and isinstance(value, str) else ""
    data = output.get("data")
    if isinstance(data, dict):
        if any(mime.startswith("image/") for mime in data):
            return None  # its text is the name of the figure's class
        text = next((data[mime] for mime in ("text/plain", "text/markdown", "text/latex") if mime in data), None)
    else:
        if any(key in output for key in _IMAGES):
            return None
        text = output.get("text")
    shown = "" if text is None else _joined(text)
    return None if text is None or _OBJECT.fullmatch(shown.strip()) else shown


def _as_on_a_terminal(text: str) -> str:
    """Without colours, and of a line that was written over (a progress bar) what stood last."""
    text = _ANSI.sub("", text)
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
