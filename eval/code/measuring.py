"""What all kinds of code tasks share: completions are written, run, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval.code.estimator import incremental_metrics, pass_metrics, verdict_metrics
from eval.code.execution import Ran, run_programs, run_written
from eval.code.options import CodeTask
from eval.code.problems import Problem
from eval.engine import Completion, Decoding, Engine, Prompt
from eval.engine.generation import finish_metrics
from eval.outcome import Metrics, Outcome
from eval.sandbox import Program, open_sandbox
from megatron_codemix.files import sha256_file

MOST_NEW_TOKENS = 512
"""Where a task does not say: what BigCode's harness gives prompt and completion together."""


def new_tokens(engine: Engine, task: CodeTask) -> int:
    """Tokens after which a completion ends."""
    return task.max_new_tokens or max(1, min(MOST_NEW_TOKENS, engine.context // 2))


def check_code(engine: Engine, task: CodeTask, name: str) -> None:
    """Raises UserError where there is no room for a prompt, or no sandbox."""
    engine.check_room(new_tokens(engine, task), name)
    try_sandbox(task.unsafe_no_sandbox)


@lru_cache(maxsize=2)
def try_sandbox(unsafe: bool) -> None:
    """Open a sandbox and close it. Raises UserError where that fails; what worked is not tried again."""
    open_sandbox(unsafe=unsafe).close()


def code_record(files: Sequence[Path], rows: int, schema: str) -> list[dict[str, Any]]:
    """`data` of a task's entry: the rows that are asked are those of the first file."""
    records = [{"file": file.name, "sha256": sha256_file(file), "rows": None, "schema": schema} for file in files]
    records[0]["rows"] = rows
    return records


def write_completions(
    engine: Engine,
    stops: Sequence[tuple[str, ...]],
    prompts: Sequence[Prompt],
    task: CodeTask,
    name: str,
) -> list[list[Completion]]:
    """`task.samples` completions of every prompt, each under the stop strings of its problem."""
    found: dict[int, list[Completion]] = {}
    for stop in dict.fromkeys(stops):
        members = [index for index, one in enumerate(stops) if one == stop]
        decoding = Decoding(
            max_new_tokens=new_tokens(engine, task),
            stop=stop,
            temperature=task.temperature,
            top_p=task.top_p,
            samples=task.samples,
            seed=task.seed,
        )
        found |= dict(zip(members, engine.generate([prompts[index] for index in members], decoding, name), strict=True))
    return [found[index] for index in range(len(prompts))]


def measure_problems(
    engine: Engine,
    problems: Sequence[Problem],
    task: CodeTask,
    name: str,
    incremental: bool = False,
    prompts: Sequence[Prompt] | None = None,
) -> Outcome:
    """Write, run and count. prompts: default, the problems' own texts.

    An item is a prompt: `code_item`.
    """
    asked = [Prompt(one.prompt, one.identity) for one in problems] if prompts is None else list(prompts)
    written = write_completions(engine, [one.stop for one in problems], asked, task, name)
    jobs = [problem.job(completion.text, task.seconds) for problem, some in zip(problems, written, strict=True) for completion in some]
    ran = run_written(jobs, lambda programs: run_programs(programs, task.seconds, task.unsafe_no_sandbox, name, engine.settings.cache))
    results = iter(ran)
    items = []
    for problem, prompt, some in zip(problems, asked, written, strict=True):
        item = code_item(problem.identity, prompt.text, some, [next(results) for _ in some], problem.cluster)
        items.append(item | ({"suffix": problem.suffix} if problem.suffix is not None else {}))
    metrics = code_metrics(items, ran, task, incremental)
    metrics |= {"distinct_programs": len({job for job in jobs if isinstance(job, Program)}), "max_new_tokens": new_tokens(engine, task)}
    return Outcome(metrics | finish_metrics([one for some in written for one in some]), items)


def code_item(identity: str, shown: str, written: Sequence[Completion], ran: Sequence[Ran], cluster: str) -> dict[str, Any]:
    """{id, cluster, input, output (the first completion), score (share of samples that pass), n, c, samples: what became of each}."""
    passed = sum(one.ok for one in ran)
    samples = [
        {"output": one.text, "finish": one.finish, "tokens": one.tokens, **result.to_json()}
        for one, result in zip(written, ran, strict=True)
    ]
    return {
        "id": identity,
        "cluster": cluster,
        "input": shown,
        "output": written[0].text,
        "score": passed / len(ran),
        "n": len(ran),
        "c": passed,
        "cut": int(any(one.cut_prompt for one in written)),
        "samples": samples,
    }


def code_metrics(items: Sequence[dict[str, Any]], ran: Sequence[Ran], task: CodeTask, incremental: bool) -> Metrics:
    """pass@k, and how many samples ended how."""
    counts = [(item["cluster"], item["n"], item["c"]) for item in items]
    metrics = incremental_metrics(counts, task.k) if incremental else pass_metrics(counts, task.k)
    metrics |= {"prompts": len(items), "samples": task.samples}
    metrics["tests_passed_share"] = sum(one.share for one in ran) / max(1, len(ran))
    metrics |= verdict_metrics(Counter(one.verdict for one in ran))
    metrics |= {f"form_{form}": count for form, count in sorted(Counter(one.form for one in ran).items())}
    unconfined = sum(not one.confined for one in ran)
    return metrics | ({"run_without_sandbox": unconfined} if unconfined else {})
