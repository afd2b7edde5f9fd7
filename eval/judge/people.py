"""Verdicts that people gave, from a file: rows {id, verdict}, verdict the better model (A, B) or tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.judge.questions import Question
from eval.rows import Row, read_each
from megatron_codemix.errors import UserError
from megatron_codemix.files import sha256_file

_WINNERS = {"a": "A", "b": "B", "tie": "tie", "c": "tie"}


@dataclass(frozen=True)
class Vote:
    """One person's verdict on one pair. winner: A, B (the models) or tie; first: whose answer stood first, None where not recorded."""

    winner: str
    first: str | None


def read_votes(path: Path, questions: Sequence[Question]) -> tuple[dict[str, list[Vote]], dict[str, Any]]:
    """(question id → votes in the file's order, what judge.json says of the judge). Raises UserError for a bad row."""
    known = {question.id for question in questions}
    votes: dict[str, list[Vote]] = {question.id: [] for question in questions}
    unknown = 0

    def read(row: Row) -> tuple[str, Vote]:
        identity = row.name(next((key for key in ("question_id", "id") if key in row.value), None))
        return identity, Vote(_winner(row), _first(row))

    rows = read_each(path, read)
    for identity, vote in rows:
        if identity in known:
            votes[identity].append(vote)
        else:
            unknown += 1
    if unknown == len(rows):
        raise UserError(f"{path}: none of its rows has the id of a prompt; ids must be those of --prompts")
    return votes, {"kind": "verdicts", "file": path.name, "sha256": sha256_file(path), "rows": len(rows), "of_other_prompts": unknown}


def _winner(row: Row) -> str:
    verdict = row.text("verdict").strip().lower()
    if verdict not in _WINNERS:
        raise row.problem("'verdict' must be A, B (the better model) or tie; mend or remove the row")
    return _WINNERS[verdict]


def _first(row: Row) -> str | None:
    first = row.value.get("first")
    if first not in (None, "A", "B"):
        raise row.problem("'first' must be A or B, the model whose answer was shown first; mend it or leave it out")
    return first
