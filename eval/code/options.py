"""Options of the kinds whose answers are programs that are run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eval.tasks.options import DataTask
from megatron_codemix.config.section import Count, CountOrZero, FilePath

Stop = Annotated[str, Field(min_length=1)]

HUMANEVAL_STOP = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
"""arXiv 2107.03374, section 3.1; lm-evaluation-harness has the same. BigCode adds "\\n@", "\\n```" and "<file_sep>"."""

DOCSTRING_STOP = ["\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"]
"""MBPP as InCoder and BigCode's harness ask it."""

ORIGINAL_STOP = ["[DONE]"]
"""MBPP as its paper asks it."""


class CodeTask(DataTask):
    """What every kind of them has: how completions are written and run."""

    samples: Count = 1
    """Completions of each prompt, n of pass@k."""
    k: list[Count] = Field(default=[1], min_length=1)
    """pass@k is reported for each of these; none may exceed `samples`."""
    temperature: float = Field(default=0.0, ge=0.0)
    """Of sampling; 0: the most likely token, with one sample."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus of sampling."""
    seed: CountOrZero = 0
    """Of sampling."""
    max_new_tokens: Count | None = None
    """Tokens after which a completion ends; null: 512, or half the model's context where that is less."""
    seconds: float = Field(default=3.0, gt=0.0, lt=1e6)
    """Processor time that a program may use, its tests included."""
    unsafe_no_sandbox: bool = False
    """Run programs with all rights of this process; `--unsafe-no-sandbox` sets it."""


class HumanEvalTask(CodeTask):
    """HumanEval, or rows of its shape: prompt, test, entry_point, canonical_solution."""

    kind: Literal["humaneval"]
    """humaneval."""
    id_field: str | None = "task_id"
    """Key of a problem's identity."""
    stop: list[Stop] = HUMANEVAL_STOP
    """A completion ends before the first of these; one that the reference solution holds is left out for its problem."""
    strip_prompt: bool = False
    """Take whitespace off the prompt's ends, as BigCode's `humaneval` does (its `humaneval-unstripped` does not)."""
    incremental: bool = False
    """Incremental pass@k (arXiv 2402.05783): a prompt for each beginning of the reference solution."""


class MbppTask(CodeTask):
    """MBPP, whole or sanitized."""

    kind: Literal["mbpp"]
    """mbpp."""
    id_field: str | None = "task_id"
    """Key of a problem's identity; the splits are ranges of it."""
    style: Literal["docstring", "original"] = "docstring"
    """docstring: description and first test as a docstring (InCoder, BigCode). original: three solved problems, [BEGIN] and [DONE]."""
    shots: FilePath | None = None
    """Rows that hold problems 2, 3 and 4, the solved ones of `original`; null: `data` holds them."""
    split: Literal["test", "prompt", "validation", "train", "all"] = "test"
    """Which problems: 11 to 510, 1 to 10, 511 to 600, 601 to 974, all."""
    stop: list[Stop] | None = None
    """As for HumanEval; null: those of the style."""
    incremental: bool = False
    """As for HumanEval; the first prompt reveals the reference's function header. docstring style only."""

    @property
    def files(self) -> list[Path]:
        """The files that decide the task's numbers."""
        return [self.data] if self.shots is None else [self.data, self.shots]


class InfillingTask(CodeTask):
    """A part of HumanEval's reference solutions is left out and written anew between what stands around it (arXiv 2207.14255)."""

    kind: Literal["infilling"]
    """infilling."""
    id_field: str | None = "task_id"
    """Key of a problem's identity."""
    spans: Literal["single_line", "multi_line", "random_span"] = "single_line"
    """Every line, every run of lines, or random spans of characters. Rows that have a `suffix` are taken as they are."""
    spans_per_problem: Count = 10
    """Random spans of each problem."""
    spans_seed: CountOrZero = 0
    """Decides them."""
    order: Literal["psm", "spm"] = "psm"
    """Prefix, suffix, middle; or suffix, prefix, middle. As the model was trained."""
    stop: list[Stop] | None = None
    """null: a newline for single lines, nothing but end-of-text otherwise."""


class ProgramsTask(CodeTask):
    """Problems of other languages, in the shape of MultiPL-E or of HumanEval-X, judged by a program's exit status."""

    kind: Literal["programs"]
    """programs."""
    id_field: str | None = None
    """Key of a problem's identity; null: `name` or `task_id`."""
    languages: list[str] = []
    """Only rows of these languages; empty: all."""
    seconds: float = Field(default=20.0, gt=0.0, lt=1e6)
    """Processor time of compiler and program together."""
    jar: FilePath | None = None
    """A library for Java's class path: MultiPL-E's programs import org.javatuples."""

    @property
    def files(self) -> list[Path]:
        """The files that decide the task's numbers."""
        return [self.data] if self.jar is None else [self.data, self.jar]
