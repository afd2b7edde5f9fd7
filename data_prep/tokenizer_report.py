"""What a tokenizer makes of the documents it was made for: report.json, report.md and a chart beside the model.

write_report(tokenizer, {"code": [("Python", "def f(): ..."), ...]}, folder)
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from megatron_codemix.files import write_bytes, write_json, write_text
from megatron_codemix.progress import progress
from megatron_codemix.tokenizer import Tokenizer

JSON_NAME, MARKDOWN_NAME, CHART_NAME = "report.json", "report.md", "bytes_per_token.png"
_BATCH_BYTES = 1 << 20
_NEWLINE, _TAB, _SPACE = 10, 9, 32
_MAX_BARS = 40


@dataclass(slots=True)
class Measure:
    """Counts over documents; what is reported are quotients of them."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    fallback_tokens: int = 0
    """Tokens that are single bytes for want of a piece (`Vocabulary.byte_ids`)."""
    fallback_bytes: int = 0
    whitespace_tokens: int = 0
    """Tokens that are whitespace and nothing else."""
    whitespace_bytes: int = 0
    """Bytes in these."""
    indentations: int = 0
    """Runs of spaces and tabs at the beginning of a line that has something else."""
    indentation_tokens: int = 0
    """Tokens that begin in these."""

    def add(self, other: Measure) -> None:
        """Count what `other` counted."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_json(self) -> dict[str, Any]:
        """The counts, and their quotients (null where there is nothing to divide by)."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "bytes_per_token": _quotient(self.bytes, self.tokens),
            "byte_fallback_share": _quotient(self.fallback_tokens, self.tokens),
            "byte_fallback_share_of_bytes": _quotient(self.fallback_bytes, self.bytes),
            "whitespace_bytes_per_token": _quotient(self.whitespace_bytes, self.whitespace_tokens),
            "tokens_per_indentation": _quotient(self.indentation_tokens, self.indentations),
        }


def _quotient(above: int, below: int) -> float | None:
    return above / below if below else None


class _Tables:
    """What is known of each id, and which ids were seen."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.reference.vocabulary
        self.num_bytes = tokenizer.token_num_bytes
        self.fallback = np.zeros(tokenizer.vocab_size, bool)
        self.fallback[vocabulary.byte_ids] = True
        self.whitespace = np.array([bool(content) and content.isspace() for content in vocabulary.token_bytes])
        self.seen = np.zeros(tokenizer.vocab_size, bool)

    def measure(self, text: str, ids: np.ndarray) -> Measure:
        """One document's counts. ids: 1-d, without end of text."""
        self.seen[ids] = True
        sizes = self.num_bytes[ids]
        fallback, whitespace = self.fallback[ids], self.whitespace[ids]
        starts, ends = indentations(text)
        firsts = np.cumsum(sizes) - sizes
        inside = np.searchsorted(firsts, ends) - np.searchsorted(firsts, starts)
        return Measure(
            documents=1,
            bytes=int(sizes.sum()),
            tokens=int(ids.size),
            fallback_tokens=int(fallback.sum()),
            fallback_bytes=int(sizes[fallback].sum()),
            whitespace_tokens=int(whitespace.sum()),
            whitespace_bytes=int(sizes[whitespace].sum()),
            indentations=int(starts.size),
            indentation_tokens=int(inside.sum()),
        )


def indentations(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of spaces and tabs at the beginning of a line begin and end, in UTF-8 bytes; not of lines with nothing else."""
    content = np.frombuffer(text.encode("utf-8"), np.uint8)
    blank = np.concatenate([[False], (content == _SPACE) | (content == _TAB), [False]])
    starts, ends = np.flatnonzero(blank[1:-1] & ~blank[:-2]), np.flatnonzero(blank[1:-1] & ~blank[2:]) + 1
    before = np.concatenate([[_NEWLINE], content])[starts]
    behind = np.concatenate([content, [_NEWLINE]])[ends]
    kept = (before == _NEWLINE) & (behind != _NEWLINE) & (behind != 13)
    return starts[kept], ends[kept]


def write_report(tokenizer: Tokenizer, samples: Mapping[str, Iterable[tuple[str | None, str]]], folder: Path) -> dict[str, Any]:
    """Measure the tokenizer on (language, text) pairs of each source; write the report's files into `folder`.

    Returns what report.json holds. The figures are of documents the tokenizer may have learned from.
    """
    tables = _Tables(tokenizer)
    sources: dict[str, Measure] = {}
    languages: dict[str, Measure] = {}
    with progress("measure the tokenizer", unit="bytes") as bar:
        for source, documents in samples.items():
            total = sources[source] = Measure()
            for batch in _batches(documents):
                for (language, text), ids in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
                    measured = tables.measure(text, ids)
                    total.add(measured)
                    languages.setdefault(language or "(unknown)", Measure()).add(measured)
                    bar.advance(measured.bytes)
    report = {
        "format_version": 1,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "ids_seen": int(tables.seen.sum()),
        "reference": tokenizer.reference.library,
        "engine": tokenizer.library,
        "sources": {name: measure.as_json() for name, measure in sources.items()},
        "languages": {name: measure.as_json() for name, measure in sorted(languages.items(), key=lambda item: (-item[1].bytes, item[0]))},
    }
    write_json(folder / JSON_NAME, report)
    write_text(folder / MARKDOWN_NAME, _markdown(report))
    write_bytes(folder / CHART_NAME, _chart(report))
    return report


def _batches(documents: Iterable[tuple[str | None, str]]) -> Iterable[list[tuple[str | None, str]]]:
    batch: list[tuple[str | None, str]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Tokenizer",
        "",
        f"{report['vocab_size']:,} ids, {report['ids_seen']:,} of them seen here. Reference: {report['reference']}; "
        f"engine: {report['engine']}. sha256 `{report['fingerprint']}`.",
        "",
        "Measured on documents of the training splits, which a trained tokenizer learned from.",
    ]
    columns = ["documents", "MB", "bytes per token", "byte fallback, % of tokens", "bytes per whitespace token", "tokens per indentation"]
    for title, rows in (("source", report["sources"]), ("language", report["languages"])):
        lines += [
            "",
            f"| {title} | {' | '.join(columns)} |",
            "|---|---|---|---|---|---|---|",
            *(_row(name, row) for name, row in rows.items()),
        ]
    lines += [
        "",
        f"![bytes per token]({CHART_NAME})",
        "",
        "*Byte fallback*: tokens that are single bytes for want of a piece; in a byte-level vocabulary, tokens that are no whole "
        "characters. *Whitespace token*: one of whitespace alone. *Indentation*: spaces and tabs at the beginning of a line that "
        "has something else; counted are the tokens that begin in it, so a token that takes a newline with it makes less than 1.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, row: dict[str, Any]) -> str:
    share = row["byte_fallback_share"]
    figures = [
        _shown(row["bytes_per_token"], ".2f"),
        _shown(None if share is None else 100 * share, ".3f"),
        _shown(row["whitespace_bytes_per_token"], ".2f"),
        _shown(row["tokens_per_indentation"], ".2f"),
    ]
    escaped = name.replace("|", "\\|").replace("\n", " ")
    return f"| {escaped} | {row['documents']:,} | {row['bytes'] / 1e6:,.2f} | {' | '.join(figures)} |"


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _chart(report: dict[str, Any]) -> bytes:
    """Bytes per token as a PNG: sources, then the languages with the most bytes."""
    bars = [(name, row["bytes_per_token"] or 0.0, "#1f5fa8") for name, row in report["sources"].items()]
    bars += [(name, row["bytes_per_token"] or 0.0, "#8aa9c9") for name, row in report["languages"].items()][: max(0, _MAX_BARS - len(bars))]
    figure = Figure(figsize=(7, 1.2 + 0.24 * len(bars)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(bars)), [value for _, value, _ in bars], color=[colour for *_, colour in bars])
    # names are data: a '$' in one begins no formula
    axes.set_yticks(range(len(bars)), [name.replace("$", r"\$") for name, *_ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("UTF-8 bytes per token (dark: sources, light: languages)")
    for place, (_, value, _) in enumerate(bars):
        axes.annotate(f"{value:.2f}", (value, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()
