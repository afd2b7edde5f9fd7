"""`codemix eval judge A B --prompts FILE --output DIR`: whose answers a judge likes better."""

from __future__ import annotations

import importlib
import json
import os
import urllib.parse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.judge.answers import Side, read_answers
from eval.judge.arguments import parse
from eval.judge.endpoint import Endpoint
from eval.judge.judging import Pair, ask_all, judged, make_pairs, outstanding, requests_of, with_votes
from eval.judge.ledger import Ledger
from eval.judge.people import Vote, read_votes
from eval.judge.questions import Question, check_references, read_questions
from eval.judge.rates import is_flagged, rates, warnings_of
from eval.judge.report import WHAT_THIS_IS, as_html, as_text
from eval.judge.templates import FENCED, OWN, Template, read_template
from eval.results import going_on, holding
from megatron_codemix.errors import UserError, printable
from megatron_codemix.files import atomic_file, sha256_file, write_json, write_text
from megatron_codemix.progress import say

FORMAT_VERSION = 1


def main(argv: Sequence[str]) -> int:
    """Run `codemix eval judge`; returns the exit code."""
    arguments = parse(argv)
    questions = read_questions(arguments.prompts, arguments.limit, arguments.category_field)
    template = _template(arguments)
    if template.wants_reference and arguments.verdicts is None:
        check_references(questions, template.name)
    votes = read_votes(arguments.verdicts, questions) if arguments.verdicts is not None else None
    endpoint = _endpoint(arguments) if arguments.endpoint is not None else None
    with going_on(), holding(arguments.output):
        _judge(arguments, questions, template, votes, endpoint)
    return 0


def _judge(
    arguments: Namespace,
    questions: Sequence[Question],
    template: Template,
    votes: tuple[dict[str, list[Vote]], dict[str, Any]] | None,
    endpoint: Endpoint | None,
) -> None:
    """Judge and write. Everything is read and checked before a judge is asked."""
    a, b = (_side(path, questions, arguments, name) for path, name in ((arguments.a, "a"), (arguments.b, "b")))
    _tell_other_pair(arguments.output, a, b)
    pairs = make_pairs(questions, a, b)
    if votes is not None:
        pairs, judge = with_votes(pairs, votes[0]), votes[1]
    else:
        pairs, judge = _judged(pairs, template, endpoint, arguments)
    judgement = _judgement(arguments, questions, (a, b), pairs, judge, None if votes is not None else template)
    items = [one.to_item() for one in pairs]
    with atomic_file(arguments.output / "items.jsonl") as handle:
        for item in items:
            handle.write(json.dumps(item, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
    judgement["items"] = {"file": "items.jsonl", "sha256": sha256_file(arguments.output / "items.jsonl")}
    write_json(arguments.output / "judge.json", judgement)
    write_text(arguments.output / "judge.html", as_html(judgement, items))
    print(as_text(judgement))
    print(arguments.output / "judge.html")


def _tell_other_pair(folder: Path, a: Side, b: Side) -> None:
    """Say whose judgement lies here, if it is of other answers."""
    try:
        earlier = json.loads((folder / "judge.json").read_bytes())
        sides = [earlier[name] for name in ("a", "b")]
        same = [side["sha256"] for side in sides] == [a.record["sha256"], b.record["sha256"]]
        paths = " and ".join(str(side["path"]) for side in sides)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # none, or one that cannot be read: it is made anew
    if not same:
        say(f"{folder}: holds a judgement of other answers ({printable(paths)}); it is replaced")


def _template(arguments: Namespace) -> Template:
    if arguments.judge_prompts is not None:
        return read_template(arguments.judge_prompts, arguments.judge_prompt)
    if arguments.judge_prompt not in (None, OWN):
        raise UserError(f"--judge-prompt {arguments.judge_prompt}: is in no file that was given; name its file with --judge-prompts")
    return FENCED


def _endpoint(arguments: Namespace) -> Endpoint:
    key = ""
    if arguments.api_key_env is not None:
        key = os.environ.get(arguments.api_key_env, "").strip()
        if not key:
            raise UserError(f"--api-key-env {arguments.api_key_env}: this environment variable is not set; set it to the endpoint's key")
    endpoint = Endpoint(
        url=arguments.endpoint,
        model=arguments.judge_model,
        key=key,
        timeout=arguments.timeout,
        retries=arguments.retries,
        backoff=arguments.backoff,
        max_tokens=arguments.judge_tokens,
        seed=arguments.seed,
        more=arguments.request,
    )
    parts = urllib.parse.urlsplit(arguments.endpoint)
    if key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        say("warning: --endpoint is http, not https: the key can be read on the way")
    return endpoint


def _settings(arguments: Namespace) -> Any:
    """How a model runs here. Torch is imported only where a model is to run."""
    device = arguments.device
    if device == "auto":
        device = "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"
    cache = None if arguments.no_cache else arguments.cache or arguments.output / ".cache"
    requests = importlib.import_module("eval.engine.requests")
    return requests.Settings(device, arguments.dtype, None, arguments.context, arguments.processes, cache, arguments.generate_with)


def _side(path: Path, questions: Sequence[Question], arguments: Namespace, name: str) -> Side:
    if not path.is_dir():
        return read_answers(path, questions)
    if (path / "answers.jsonl").is_file() and not (path / "config.json").is_file():
        return read_answers(path / "answers.jsonl", questions)
    writing = importlib.import_module("eval.judge.writing")
    decoding = importlib.import_module("eval.engine.requests").Decoding(
        max_new_tokens=arguments.max_new_tokens,
        stop=tuple(arguments.stop),
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    how = writing.Writing(_settings(arguments), decoding, arguments.prompt_form)
    return writing.write_answers(path, questions, how, arguments.output / "answers", name)


def _judged(pairs: list[Pair], template: Template, endpoint: Endpoint | None, arguments: Namespace) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs with the judge's verdicts, and what judge.json says of the judge. What is in verdicts.jsonl is not asked again."""
    local = None
    if endpoint is None:
        module = importlib.import_module("eval.judge.local")
        local = module.LocalJudge(arguments.judge, _settings(arguments), arguments.judge_by, arguments.prompt_form, arguments.judge_tokens)
    judge: dict[str, Any] = (endpoint or local).identity  # type: ignore[union-attr]
    record = judge if local is None else judge | {"path": str(arguments.judge)}
    failed: dict[str, str] = {}
    with Ledger(arguments.output / "verdicts.jsonl") as ledger:
        if ledger.dropped:
            say(f"{ledger.path}: {ledger.dropped} damaged lines are passed over")
        left = outstanding(pairs, template, judge, ledger)
        have = len({asked for pair in pairs for _, asked in requests_of(pair, template)}) - len(left)
        if have:
            say(f"{ledger.path}: {have:,} verdicts are there already; {len(left):,} are asked for")
        if left and local is not None:
            local.judge(left, ledger)
        elif left and endpoint is not None:
            failed = ask_all(left, endpoint, judge, ledger, arguments.concurrency, have)
        return judged(pairs, template, judge, ledger, failed), record


def _judgement(
    arguments: Namespace,
    questions: Sequence[Question],
    sides: tuple[Side, Side],
    pairs: Sequence[Pair],
    judge: dict[str, Any],
    template: Template | None,
) -> dict[str, Any]:
    """judge.json, but for its items."""
    figures = rates(pairs, arguments.resamples, arguments.seed)
    prompt = None if template is None else {"name": template.name, "source": template.source, "sha256": template.sha256}
    return {
        "format_version": FORMAT_VERSION,
        "note": WHAT_THIS_IS,
        "a": sides[0].record,
        "b": sides[1].record,
        "prompts": {"file": arguments.prompts.name, "sha256": sha256_file(arguments.prompts), "rows": len(questions)},
        "judge": judge,
        "judge_prompt": prompt,
        "flagged": is_flagged(figures),
        "warnings": warnings_of(figures),
        **figures,
        "resamples": arguments.resamples,
        "seed": arguments.seed,
    }
