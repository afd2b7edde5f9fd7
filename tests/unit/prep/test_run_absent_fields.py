"""A field that the prep file names and no row has is told at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_codemix.cli import main


@pytest.mark.parametrize(
    "more", [{}, {"deduplicate": {"exact": True}}, {"split": {"validation": 0}}], ids=["straight", "clean", "undivided"]
)
def test_fields_that_no_row_has_are_told(
    ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], more: dict
) -> None:
    rows = [json.loads(line) for line in (ready / "a.jsonl").read_text().splitlines()]
    rows[-1]["lang"] = "python"
    (ready / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = {"path_field": "pth", "license_field": "lic", "language_field": "lang"}
    assert main(["prep", "shards", str(prep_file(ready, source=wrong, **more))]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    named = "its path_field 'pth', its license_field 'lic'"
    assert warnings == [f"warning: sources.code: no row has {named}; mend the name, or leave it out"]
    assert main(["prep", "shards", str(prep_file(ready, source={"language_field": "lang"}, **more)), "--force"]) == 0
    assert "warning" not in capsys.readouterr().out
