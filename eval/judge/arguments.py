"""The arguments of `codemix eval judge`."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.results import check_place
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError


def parse(argv: Sequence[str]) -> Namespace:
    """Arguments that go together. Raises UserError."""
    arguments = _parser().parse_args(list(argv))
    check_place(arguments.output)
    if arguments.endpoint is not None and not arguments.judge_model:
        raise UserError("--endpoint: needs --judge-model NAME, the name of the model that is to judge")
    for name in ("judge_model", "api_key_env", "request"):
        if arguments.endpoint is None and getattr(arguments, name):
            raise UserError(f"--{name.replace('_', '-')}: is for --endpoint URL; leave it out")
    if arguments.judge_prompt is not None and arguments.verdicts is not None:
        raise UserError("--judge-prompt: people who gave --verdicts are not asked; leave it out")
    return arguments


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="codemix eval judge",
        description="Win rate of B's answers to open-ended prompts over A's, in a judge's opinion (docs/judge.md).",
    )
    parser.add_argument(
        "a", type=Path, metavar="A", help="answers of the first model (rows {id, output}), or its HF_DIR, which then answers"
    )
    parser.add_argument("b", type=Path, metavar="B", help="the same of the second; the win rate is B's")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="jsonl of instructions: MT-bench, Dolly, self-instruct")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="receives judge.json, judge.html, items.jsonl")
    judge = parser.add_argument_group("the judge, one of these").add_mutually_exclusive_group(required=True)
    judge.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible API (uses the network), such as http://localhost:8000/v1")
    judge.add_argument("--judge", type=Path, metavar="HF_DIR", help="a model on this machine")
    judge.add_argument("--verdicts", type=Path, metavar="FILE", help="what people said: rows {id, verdict: A|B|tie, first: A|B}")
    _add_judging(parser)
    _add_writing(parser)
    parser.add_argument("--limit", type=_whole("--limit", 1), metavar="N", help="first N prompts, for a trial")
    parser.add_argument("--category-field", default="category", metavar="NAME", help="field of the prompts for figures by category")
    parser.add_argument(
        "--resamples", type=_whole("--resamples", 100), default=10_000, metavar="N", help="bootstrap draws (default: 10000)"
    )
    parser.add_argument("--seed", type=_whole("--seed", 0), default=0, metavar="N", help="of draws, sampling and the endpoint (default: 0)")
    return parser


def _add_judging(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("judging")
    group.add_argument("--judge-prompts", type=Path, metavar="FILE", help="judge prompts in the form of MT-bench's judge_prompts.jsonl")
    group.add_argument("--judge-prompt", metavar="NAME", help="which of them (default: the first that fits; without a file fenced-v1)")
    group.add_argument("--judge-tokens", type=_whole("--judge-tokens", 1), default=1024, metavar="N", help="of one reply (default: 1024)")
    group.add_argument("--judge-by", choices=("probability", "reply"), default="probability", help="--judge: what its verdict is")
    group.add_argument("--judge-model", metavar="NAME", help="--endpoint: model to ask for")
    group.add_argument("--api-key-env", metavar="NAME", help="--endpoint: environment variable that holds the key; it is stored nowhere")
    group.add_argument("--request", type=_object, default={}, metavar="JSON", help="--endpoint: fields to add or change; null removes one")
    group.add_argument("--timeout", type=_number("--timeout"), default=120.0, metavar="S", help="--endpoint: of a try (default: 120)")
    group.add_argument("--retries", type=_whole("--retries", 0), default=5, metavar="N", help="--endpoint: after a failed try (default: 5)")
    group.add_argument("--backoff", type=_number("--backoff"), default=1.0, metavar="S", help="--endpoint: first wait (default: 1)")
    group.add_argument("--concurrency", type=_whole("--concurrency", 1), default=8, metavar="N", help="--endpoint: at a time (default: 8)")


def _add_writing(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("models that run here (A, B or --judge as HF_DIR)")
    group.add_argument("--max-new-tokens", type=_whole("--max-new-tokens", 1), default=512, metavar="N", help="of an answer (default: 512)")
    group.add_argument(
        "--temperature", type=_number("--temperature", True), default=0.0, metavar="T", help="of answers; 0 (default): greedy"
    )
    group.add_argument("--top-p", type=_share, default=1.0, metavar="P", help="of answers, where they are sampled")
    group.add_argument("--stop", nargs="+", action="extend", default=[], metavar="TEXT", help="answers end before one of these")
    group.add_argument(
        "--prompt-form", choices=("auto", "chat", "plain"), default="auto", help="auto: the directory's chat template, if it has one"
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")
    group.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="weights and activations (default: fp32)")
    group.add_argument("--processes", type=_whole("--processes", 1), default=1, metavar="N", help="that share the work; changes no result")
    group.add_argument("--context", type=_whole("--context", 2), metavar="N", help="inputs at once (default: what config.json allows)")
    group.add_argument("--generate-with", choices=("transformers", "vllm"), default="transformers", help="what writes completions")
    caching = group.add_mutually_exclusive_group()
    caching.add_argument("--cache", type=Path, metavar="DIR", help="keep the models' single answers there (default: OUTPUT/.cache)")
    caching.add_argument("--no-cache", action="store_true", help="keep no single answers")


def _whole(name: str, least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise UserError(f"{name} {text}: give a whole number of at least {least}")
        return int(text)

    return read


def _number(name: str, zero: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0.0 < value < 1e6 or (zero and value == 0.0)):
            raise UserError(f"{name} {text}: give a number above 0" + (", or 0" if zero else ""))
        return value

    return read


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value <= 1.0:
        raise UserError(f"--top-p {text}: give a number above 0, 1 at most")
    return value


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--request: is not JSON ({error}); give an object, such as '{{\"max_tokens\": null}}'") from None
    if not isinstance(value, dict):
        raise UserError("--request: must be a JSON object, such as '{\"max_tokens\": null}'")
    return value
