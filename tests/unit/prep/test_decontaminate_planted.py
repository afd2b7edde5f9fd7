"""Leaks of real benchmarks planted in real files."""

from __future__ import annotations

import ast
import builtins
import gzip
import io
import json
import keyword
import os
import random
import re
import textwrap
import tokenize
from pathlib import Path

import pytest

from data_prep.documents import Document, Drop, Tally
from data_prep.steps import decontaminate
from data_prep.steps.decontaminate import Decontaminator, prepare
from megatron_codemix.config import Decontaminate, SourceSpec

KINDS = {kind: SourceSpec(kind="jsonl", paths=[Path("x")], modality=kind) for kind in ("code", "text")}


def verdict(step: Decontaminator, text: str) -> Document | Drop:
    return step.apply(Document("a", text), Tally())


def _renamed(code: str, drawn: random.Random) -> str:
    """Code whose own names are changed, outside of its docstrings and comments."""
    known = {*keyword.kwlist, *dir(builtins), *re.findall(r"import\s+(\w+)", code)}
    before, names, tokens = "", {}, []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        text = token.string
        if token.type == tokenize.NAME and text not in known and before != ".":
            text = names.setdefault(text, f"{drawn.choice(['value', 'item', 'thing'])}{len(names)}")
        before = token.string
        tokens.append((token.type, text))
    return tokenize.untokenize(tokens)


def _relaid(code: str, drawn: random.Random) -> str:
    lines = []
    for line in code.replace("\r", "").split("\n"):
        body = line.strip()
        indent = len(line) - len(line.lstrip())
        body = re.sub(r" *([=+*/%<>-]+) *", r" \1 " if drawn.random() < 0.5 else r"\1", body.replace("'", '"'))
        lines.append("\t" * (indent // 2) + body + ("\n" if drawn.random() < 0.1 else ""))
    return "\n".join(lines)


def _wrapped(text: str, drawn: random.Random, prefix: str) -> str:
    return "\n".join(prefix + line for line in textwrap.wrap(" ".join(text.split()), drawn.randrange(30, 90)))


def _rows(path: Path) -> list[dict]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif("CODEMIX_DATA" not in os.environ, reason="CODEMIX_DATA names no folder with the corpora and benchmarks")
def test_parts_of_items_are_found(tmp_path: Path) -> None:
    """Names changed in docstrings too and prompts alone: all of them; solutions and tests alone: those that can be told."""
    data, drawn = Path(os.environ["CODEMIX_DATA"]), random.Random(0)
    human, mbpp = data / "benchmarks/humaneval/HumanEval.jsonl.gz", data / "benchmarks/mbpp/mbpp.jsonl"
    sanitized = data / "benchmarks/mbpp/sanitized-mbpp.json"
    chosen = Decontaminate(against=[human, mbpp, sanitized])
    prepare(chosen, tmp_path)
    step = Decontaminator(chosen, KINDS["code"], folder=tmp_path)
    hosts = [row["text"] for row in _rows(data / "corpus/code_python.jsonl.gz")[:3000:10]]
    hosts = [text for text in hosts if len(text) < decontaminate.LONG and not isinstance(verdict(step, text), Drop)]
    planted = {
        "names in docstrings": ([_renamed_throughout(row["prompt"] + row["canonical_solution"]) for row in _rows(human)], 1.0),
        "prompts": ([f"# {row['prompt']}" for row in json.loads(sanitized.read_bytes())], 1.0),
        "questions": ([f"# {row['text']}" for row in _rows(mbpp)], 1.0),
        "solutions of HumanEval": ([row["canonical_solution"] for row in _rows(human)], 0.85),
        "solutions of MBPP": ([row["code"] for row in _rows(mbpp)], 0.92),
        "tests of MBPP": (["\n".join(row["test_list"]) for row in _rows(mbpp)], 0.88),
    }
    found = {}
    for kind, (texts, _) in planted.items():
        leaks = 0
        for text in texts:
            host = drawn.choice(hosts)
            place = host.rfind("\n", 0, drawn.randrange(1, len(host))) + 1
            leaks += isinstance(verdict(step, f"{host[:place]}\n{text}\n{host[place:]}"), Drop)
        found[kind] = leaks / len(texts)
    assert all(found[kind] >= least for kind, (_, least) in planted.items()), found


def _renamed_throughout(code: str) -> str:
    """Code whose own names are changed wherever they stand, also in docstrings."""
    own = set()
    for node in ast.walk(ast.parse(code)):
        own |= {node.arg} if isinstance(node, ast.arg) else {node.name} if isinstance(node, ast.FunctionDef) else set()
        own |= {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    for number, name in enumerate(sorted(own)):
        code = re.sub(rf"\b{name}\b", f"name{chr(97 + number % 26)}{number}", code)
    return code


@pytest.mark.slow
@pytest.mark.skipif("CODEMIX_DATA" not in os.environ, reason="CODEMIX_DATA names no folder with the corpora and benchmarks")
def test_all_planted_leaks_are_found(tmp_path: Path) -> None:
    """HumanEval, MBPP and GSM8K: laid out anew, names changed, embedded in larger files: all of them."""
    data, drawn = Path(os.environ["CODEMIX_DATA"]), random.Random(0)
    human, mbpp = data / "benchmarks/humaneval/HumanEval.jsonl.gz", data / "benchmarks/mbpp/mbpp.jsonl"
    school = data / "benchmarks/nl_reasoning/symbolic_problem_solving/gsm8k_official_test.jsonl.gz"
    chosen = Decontaminate(against=[human, mbpp, school])
    prepare(chosen, tmp_path)
    planted = {
        "code": [
            *(_relaid(_renamed(row["prompt"] + row["canonical_solution"], drawn), drawn) for row in _rows(human)),
            *(_wrapped(row["text"], drawn, "# ") + "\n" + _relaid(_renamed(row["code"], drawn), drawn) for row in _rows(mbpp)),
        ],
        "text": [_wrapped(row["question"] + " " + row["answer"], drawn, "> ") for row in _rows(school)],
    }
    for modality, corpus in (("code", "code_python"), ("text", "nl_techdocs")):
        step = Decontaminator(chosen, KINDS[modality], folder=tmp_path)
        hosts = [row["text"][:8000] for row in _rows(data / f"corpus/{corpus}.jsonl.gz")[:1200]]
        clean = [text for text in hosts if not isinstance(verdict(step, text), Drop)]
        assert len(clean) >= 0.95 * len(hosts), "too much goes that holds nothing"
        missed = []
        for text in planted[modality]:
            host = drawn.choice(clean)
            place = host.rfind("\n", 0, drawn.randrange(1, len(host))) + 1
            if not isinstance(verdict(step, host[:place] + text + "\n" + host[place:]), Drop):
                missed.append(text)
        assert not missed, (len(missed), missed[:3])
