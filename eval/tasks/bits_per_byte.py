"""Bits per byte of whole documents: −Σ log P(token) / (ln 2 · UTF-8 bytes of the original text).

Every token of the document counts, byte-fallback pieces included, and so does the end-of-text that closes it:
the sum is the length of a code for the document, whatever the tokenizer, so models with other tokenizers
compare. The first token is predicted from the start token alone, which stays in the context of the others as
long as the document fits into it: for a codemix model that is end-of-text, as in training
(`megatron_codemix.batches.batch`).
"""

from __future__ import annotations

import math
from typing import Any

from eval.engine import Engine
from eval.outcome import Metrics, Outcome
from eval.rows import Row, read_each
from eval.tasks.continuation import check_labels, groups_of
from eval.tasks.options import BitsPerByteTask
from megatron_codemix.errors import UserError

VERSION = 2

_SHOWN_CHARACTERS = 200
"""Of a document in its item: enough to tell which one it is."""


def read(task: BitsPerByteTask) -> list[tuple[Row, str]]:
    """(row, text) of every document. Raises UserError for bad rows, and where the texts hold no byte at all."""

    def document(row: Row) -> tuple[Row, str]:
        check_labels(row, task.id_field, task.group_fields)
        return row, row.text(task.text_field)

    documents = read_each(task.data, document, task.limit)
    if not any(text for _, text in documents):
        raise UserError(f"{task.data}: the documents' '{task.text_field}' hold no text; bits per byte needs at least one byte")
    return documents


def measure(engine: Engine, task: BitsPerByteTask, name: str) -> Outcome:
    """Score every document; an item is {id, input (its beginning), score (bits per byte), nats, bytes, tokens, its groups}."""
    rows, texts = zip(*read(task), strict=True)
    documents = engine.encode(texts)
    nats = engine.rolling_tokens(documents, name)
    items = []
    for row, text, tokens, loss in zip(rows, texts, documents, nats, strict=True):
        size = len(text.encode("utf-8"))
        items.append(
            {
                "id": row.name(task.id_field),
                "input": text[:_SHOWN_CHARACTERS],
                "score": loss / math.log(2) / size if size else None,
                "nats": loss,
                "bytes": size,
                "tokens": len(tokens) + 1,
                **groups_of(row, task.group_fields),
            }
        )
    unknown = sum(tokens.count(engine.unknown_id) for tokens in documents) if engine.unknown_id is not None else 0
    metrics: Metrics = {
        "bits_per_byte": _bits_per_byte(items),
        "nats": math.fsum(nats),
        "bytes": sum(item["bytes"] for item in items),
        "tokens": sum(item["tokens"] for item in items),
        "documents": len(items),
        "unknown_tokens": unknown,
    }
    return Outcome(metrics | _by_group(items, task.group_fields), items)


def _bits_per_byte(items: list[dict[str, Any]]) -> float:
    return math.fsum(item["nats"] for item in items) / math.log(2) / sum(item["bytes"] for item in items)


def _by_group(items: list[dict[str, Any]], fields: list[str]) -> Metrics:
    """bits_per_byte.language=python and how many bytes it is of, for every value of every field that some documents have."""
    found: Metrics = {}
    for field in fields:
        for value in sorted({item[field] for item in items if field in item}):
            mine = [item for item in items if item.get(field) == value]
            if any(item["bytes"] for item in mine):
                found[f"bits_per_byte.{field}={value}"] = _bits_per_byte(mine)
                found[f"bytes.{field}={value}"] = sum(item["bytes"] for item in mine)
    return found
