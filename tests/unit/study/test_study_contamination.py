"""A study asks whether training data was compared with its evaluation data: by content, source by source."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest
import yaml

from megatron_codemix.config import StudyConfig, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, sha256_file, write_json
from megatron_codemix.shards import Manifest
from megatron_codemix.study.command import main
from megatron_codemix.study.contamination import check_contamination, unchecked_evaluation
from megatron_codemix.study.expand import make_plan
from megatron_codemix.study.sections import corpus_section


@pytest.fixture
def copy(corpus, tmp_path):
    """The corpus in a folder of its own, to be altered."""
    return shutil.copytree(corpus, tmp_path / "corpus")


@pytest.fixture
def plan(copy, raw, corpus, tmp_path):
    """`plan(tasks)`: the plan of a study over the copied corpus, with these task files."""

    def make(tasks=(), **changes):
        config = json.loads(json.dumps(raw(tmp_path / "study")).replace(str(corpus), str(copy)))
        if tasks:
            named = {path.stem: {"kind": "multiple_choice", "data": str(path)} for path in tasks}
            (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": named}))
            config["evaluation"]["tasks"] = str(tmp_path / "tasks.yaml")
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(config | changes))
        return make_plan(parse_config(config, StudyConfig, "study"))

    return make


def alter(split, **values):
    document = read_json(split / "manifest.json", "manifest")
    prep = values.pop("prep", {})
    write_json(split / "manifest.json", document | values | {"prep": document["prep"] | prep})


def compare_held_out(corpus):
    """As 'prep run' records that held-out documents were compared with training."""
    trains = {name: Manifest.load(corpus / name / "train").fingerprint for name in ("code", "text")}
    for name in trains:
        digest = sha256_file(corpus / name / "valid" / "documents.jsonl.gz")
        alter(corpus / name / "valid", prep={"checked_against": trains, "documents_sha256": digest})


@pytest.fixture
def benchmark(tmp_path):
    path = tmp_path / "piqa.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"query": "q", "choices": ["a", "b"], "gold": 0}\n'))
    return path


def test_held_out_documents_count_where_they_were_compared(plan, copy):
    assert {(found.file, *found.sources) for found in unchecked_evaluation(plan())} == {
        (str(copy / name / "valid" / "documents.jsonl.gz"), "code", "text") for name in ("code", "text")
    }
    compare_held_out(copy)
    assert unchecked_evaluation(plan()) == []
    # training data made anew since: compared with the former
    alter(copy / "code" / "train", created_by="another")
    assert {tuple(found.sources) for found in unchecked_evaluation(plan())} == {("code",)}


def test_held_out_documents_that_were_altered_do_not_count(plan, copy):
    compare_held_out(copy)
    (copy / "code" / "valid" / "documents.jsonl.gz").write_bytes(gzip.compress(b'{"text": "other"}\n'))
    assert [(found.file, found.sources) for found in unchecked_evaluation(plan())] == [
        (str(copy / "code" / "valid" / "documents.jsonl.gz"), ["code", "text"])
    ]


def test_benchmarks_are_known_by_their_content(plan, copy, benchmark):
    compare_held_out(copy)
    assert [(found.file, found.sources) for found in unchecked_evaluation(plan([benchmark]))] == [(str(benchmark), ["code", "text"])]
    record = f"elsewhere/named-otherwise.jsonl.gz sha256:{sha256_file(benchmark)}"
    alter(copy / "code" / "train", decontaminated_against=["humaneval.jsonl sha256:00", record])
    compare_held_out(copy)
    assert [found.sources for found in unchecked_evaluation(plan([benchmark]))] == [["text"]]
    alter(copy / "text" / "train", decontaminated_against=[record])
    compare_held_out(copy)
    assert unchecked_evaluation(plan([benchmark])) == []
    benchmark.write_bytes(gzip.compress(b'{"query": "another", "choices": ["a", "b"], "gold": 0}\n'))
    assert [found.sources for found in unchecked_evaluation(plan([benchmark]))] == [["code", "text"]]


def test_it_is_said_or_refused(plan, copy, benchmark, tmp_path, capsys):
    compare_held_out(copy)
    made = plan([benchmark])
    check_contamination(made, refuse=False)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"codemix study: caution: {benchmark}: training data of code, text was not compared with it")
    with pytest.raises(UserError, match=r"decontaminate\.against"):
        check_contamination(made, refuse=True)
    assert main(["plan", str(tmp_path / "study.yaml")]) == 0
    assert "caution" in capsys.readouterr().err
    with pytest.raises(UserError, match="was not compared with it"):
        main(["plan", str(tmp_path / "study.yaml"), "unchecked_evaluation=refuse"])


def test_the_report_says_so_too():
    corpus = {"code": {"splits": {}, "modality": "code"}}
    shown = "".join(corpus_section({"corpus": corpus, "unchecked_evaluation": [{"file": "piqa.jsonl", "sources": ["code"]}]}))
    assert "piqa.jsonl" in shown
    assert "not compared by source" in shown
    assert "not compared by source" not in "".join(corpus_section({"corpus": corpus, "unchecked_evaluation": []}))
