"""Programs run once each: equal ones once, those that an earlier run has judged not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eval.engine.cache import AnswerCache, answer_key
from eval.sandbox import CommandResult, Limits, Program, Result, Sandbox, open_sandbox
from megatron_codemix.progress import progress

VERSION = 2
"""Raised where the same program would be judged otherwise, which makes kept verdicts unreachable."""

EMPTY = "empty completion"
"""Verdict on a completion of no more than whitespace: who wrote nothing has not solved it, even where no test needs what is missing."""

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")

Job = TypeVar("Job")


@dataclass(frozen=True)
class Ran:
    """What became of a program; nothing of it depends on the clock, unless a limit of time was reached."""

    verdict: str
    detail: str
    form: str
    passed: int
    """Assertions that held."""
    total: int
    """Assertions there are."""
    confined: bool
    """False: run without a sandbox."""

    @classmethod
    def of(cls, result: Result | CommandResult) -> Ran:
        """The lasting part of a sandbox's result. A command's verdict counts as one assertion."""
        if isinstance(result, Result):
            passed, total = result.passed, result.total
        else:
            passed, total = int(result.verdict == "passed"), 1
        detail = _ADDRESS.sub("0x…", result.detail)
        return cls(str(result.verdict), detail, str(result.form), passed, total, result.confined)

    @classmethod
    def of_nothing(cls, form: str, total: int) -> Ran:
        """Of an empty completion. total: assertions there would have been."""
        return cls(EMPTY, "nothing but whitespace was written; not run", form, 0, total, confined=True)

    @property
    def ok(self) -> bool:
        """Whether the program is right."""
        return self.verdict == "passed"

    @property
    def share(self) -> float:
        """Of assertions that held."""
        return self.passed / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """As an item holds it."""
        found: dict[str, Any] = {"verdict": self.verdict, "detail": self.detail, "form": self.form}
        found |= {"passed": self.passed, "total": self.total, "share": round(self.share, 6)}
        return found if self.confined else found | {"confined": False}


def num_workers() -> int:
    """Programs that run at a time: as many as this process may use processors."""
    return max(1, len(os.sched_getaffinity(0)))


def run_written(jobs: Sequence[Job | Ran], run: Callable[[list[Job]], list[Ran]]) -> list[Ran]:
    """`run` over the jobs of which nothing is known yet; those that are settled without a run are taken as they are."""
    ran = iter(run([job for job in jobs if not isinstance(job, Ran)]))
    return [job if isinstance(job, Ran) else next(ran) for job in jobs]


def run_programs(programs: Sequence[Program], seconds: float, unsafe: bool, name: str, folder: Path | None) -> list[Ran]:
    """The verdict on every program, in order. folder: where verdicts are kept from run to run; None: nowhere.

    Raises UserError where there is no sandbox.
    """
    limits = Limits(seconds=seconds)
    with open_sandbox(limits, num_workers(), unsafe) as sandbox:
        keys = [program_key(program, sandbox) for program in programs]
        return run_each(programs, keys, sandbox.run_many, name, folder)


def program_key(program: Program, sandbox: Sandbox) -> bytes:
    """All that decides a program's verdict."""
    parts = {
        "program": dataclasses.asdict(program),
        "limits": dataclasses.asdict(sandbox.limits),
        "python": sandbox.python,
        "confined": sandbox.confined,
        "version": VERSION,
    }
    return answer_key("program", json.dumps(parts, sort_keys=True))


def run_each(
    jobs: Sequence[Job],
    keys: Sequence[bytes],
    run: Callable[[Iterable[Job]], Iterable[Result | CommandResult]],
    name: str,
    folder: Path | None,
) -> list[Ran]:
    """`run` over the jobs whose key is not known yet, each key once; results are kept as they come."""
    cache = AnswerCache(folder / "programs.answers") if folder is not None else None
    found: dict[bytes, Ran] = {}
    for key in keys if cache is not None else ():
        if cache is not None and (payload := cache.get(key)) is not None:
            found[key] = Ran(**json.loads(payload))
    waiting = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
    with progress(f"{name}: running", len(waiting), "programs") as bar:
        for key, result in zip(waiting, run(waiting.values()), strict=True):
            found[key] = Ran.of(result)
            if cache is not None:
                cache.put([(key, json.dumps(dataclasses.asdict(found[key])).encode())])
            bar.advance()
    return [found[key] for key in keys]
