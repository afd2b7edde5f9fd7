"""`codemix eval samples PROBLEMS SAMPLES`: completions that were written elsewhere are run and scored; no model is needed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from eval.code.estimator import pass_metrics, verdict_metrics
from eval.code.execution import Ran, run_programs, run_written
from eval.code.humaneval import problem_of
from eval.code.infilling import problems_of
from eval.code.mbpp import SLOW
from eval.code.mbpp import checks_of as mbpp_checks
from eval.code.options import HumanEvalTask, InfillingTask
from eval.code.problems import Problem
from eval.harness.sources import read_any
from eval.outcome import Metrics
from eval.results import check_writable
from eval.rows import Row, each
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_file

_USUAL = (1, 10, 100)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="codemix eval samples",
        description="Run completions that were written already, in the sandbox, and estimate pass@k.",
    )
    parser.add_argument("problems", type=Path, metavar="PROBLEMS", help="rows of HumanEval, of infilling with 'suffix', or of MBPP")
    parser.add_argument("samples", type=Path, metavar="SAMPLES", help="rows with task_id and completion (MBPP: a whole program)")
    parser.add_argument("--k", nargs="+", type=_count, metavar="K", help="default: those of 1, 10, 100 for which there are samples enough")
    parser.add_argument("--partial", action="store_true", help="not the benchmark: score a part of its problems, those that have samples")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="processor time of a program (default: 3)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="receives a row for each sample: verdict, detail, assertions that held")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep verdicts there from run to run")
    parser.add_argument("--unsafe-no-sandbox", action="store_true", help="run them with all your rights: never do this")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"--k {text}: give a whole number of at least 1")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """Score samples; returns the exit code."""
    arguments = _parser().parse_args(list(argv))
    if not 0 < arguments.seconds < 1e6:  # no number is neither
        raise UserError(f"--seconds {arguments.seconds}: give more than 0, and less than a million")
    if arguments.output is not None:
        if arguments.output.is_dir():
            raise UserError(f"{arguments.output}: is a folder; --output names a file")
        check_writable(arguments.output.parent)
    problems = read_problems(arguments.problems)
    samples = read_samples(arguments.samples, problems, arguments.problems)
    check_whole(problems, {identity for identity, _ in samples}, arguments.samples, arguments.partial)
    ks = chosen_ks(Counter(identity for identity, _ in samples), arguments.k, arguments.samples)
    jobs = [problems[identity].job(text, arguments.seconds) for identity, text in samples]
    ran = run_written(
        jobs, lambda programs: run_programs(programs, arguments.seconds, arguments.unsafe_no_sandbox, "samples", arguments.cache)
    )
    metrics = score_samples(problems, [identity for identity, _ in samples], ran, ks)
    part = f"{metrics['problems']:,} of {len(problems):,} problems" if metrics["problems"] < len(problems) else ""
    print("\n".join(table(metrics, ks, part)))
    if arguments.output is not None:
        _write(arguments.output, samples, ran, part)
        print(arguments.output)
    return 0


def _write(path: Path, samples: Sequence[tuple[str, str]], ran: Sequence[Ran], part: str) -> None:
    """A row for each sample; `partial` names how much of the benchmark they are, where it is not the whole."""
    with atomic_file(path) as handle:
        for (identity, text), one in zip(samples, ran, strict=True):
            row = {"task_id": identity, "completion": text, **one.to_json(), **({"partial": part} if part else {})}
            handle.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def read_problems(path: Path) -> dict[str, Problem]:
    """Identity → problem. Raises UserError for rows of no known shape and for two of one identity."""
    found: dict[str, Problem] = {}

    def add(row: Row) -> None:
        problem = _shape(row)(row)
        if problem.identity in found:
            raise row.problem(f"the problem '{problem.identity}' is there twice; remove one")
        found[problem.identity] = problem

    each(read_any(path), add)
    return found


def _shape(row: Row) -> Callable[[Row], Problem]:
    if "test_list" in row.value:
        return _mbpp
    if "suffix" in row.value:
        task = InfillingTask(kind="infilling", data=row.path, spans="random_span")
        return lambda row: next(problems_of(row, task))
    if "entry_point" in row.value:
        return lambda row: problem_of(row, HumanEvalTask(kind="humaneval", data=row.path))
    raise row.problem("is no problem: neither HumanEval's (entry_point, test) nor MBPP's (test_list)")


def _mbpp(row: Row) -> Problem:
    identity = row.name("task_id")
    seconds = SLOW.get(int(identity)) if identity.isdecimal() else None
    return Problem(identity, identity, "", "", "", mbpp_checks(row), row.text("code"), (), seconds=seconds).settled(row)


def read_samples(path: Path, problems: dict[str, Problem], where: Path) -> list[tuple[str, str]]:
    """(identity, completion) of every row. Raises UserError for one whose problem is not there."""

    def sample(row: Row) -> tuple[str, str]:
        identity = row.name("task_id")
        if identity not in problems:
            raise row.problem(f"the problem '{identity}' is not in {where}; give the file that holds it")
        return identity, row.text("completion")

    return each(read_any(path), sample)


def chosen_ks(counts: Counter[str], asked: list[int] | None, path: Path) -> list[int]:
    """Which k can be estimated for every problem that has samples. Raises UserError where one that was asked for cannot."""
    fewest, problem = min((count, identity) for identity, count in counts.items())
    if asked and max(asked) > fewest:
        raise UserError(f"{path}: --k {max(asked)}: the problem '{problem}' has {fewest} samples only; give a smaller k or more samples")
    return sorted(set(asked)) if asked else [k for k in _USUAL if k <= fewest]


def check_whole(problems: Mapping[str, Problem], sampled: set[str], path: Path, partial: bool) -> None:
    """Raises UserError where problems have no samples, as the reference harness does: the rest is another benchmark."""
    missing = [identity for identity in problems if identity not in sampled]
    if missing and not partial:
        raise UserError(
            f"{path}: {len(missing)} of {len(problems)} problems have no sample, '{missing[0]}' the first; "
            "give samples for all, or --partial to score those that have some"
        )


def score_samples(problems: Mapping[str, Problem], identities: Sequence[str], ran: Sequence[Ran], ks: Sequence[int]) -> Metrics:
    """pass@k with errors over the problems that have samples, and how many samples ended how."""
    totals = Counter(identities)
    right = Counter(identity for identity, one in zip(identities, ran, strict=True) if one.ok)
    metrics = pass_metrics([(problems[identity].cluster, n, right[identity]) for identity, n in totals.items()], ks)
    metrics |= {"problems": len(totals), "samples": len(ran)}
    return metrics | verdict_metrics(Counter(one.verdict for one in ran))


def table(metrics: Metrics, ks: Sequence[int], part: str = "") -> list[str]:
    """What the command prints: every k with its error and 95 % interval; part: 'N of M problems', where it is not all of them."""
    lines = []
    for name in (f"pass@{k}" for k in ks):
        interval = f"  [{metrics[f'{name}_low']:.4f}, {metrics[f'{name}_high']:.4f}]" if f"{name}_low" in metrics else ""
        lines.append(f"{name}  {metrics[name]}  ± {metrics[f'{name}_stderr']:.4f}{interval}{part and '  ' + part}")
    lines.append(f"problems  {part.removesuffix(' problems') or metrics['problems']}")
    return lines + [f"{name}  {value}" for name, value in metrics.items() if name == "samples" or name.startswith("verdict_")]
