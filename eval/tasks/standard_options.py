"""Options of the kinds that measure published tasks: standard definitions, BIG-bench, arithmetic, minimal pairs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from eval.tasks.options import DataTask, GroupFields, TaskOptions
from megatron_codemix.config.section import Count, CountOrZero, FilePath


class StandardTask(TaskOptions):
    """A task by its lm-evaluation-harness definition (or one of ours in its language), through our engine."""

    kind: Literal["standard"]
    """standard."""
    definition: str
    """Name of the definition: one of `codemix eval list`, or `lm_eval:NAME` for any other YAML task of that package."""
    data: FilePath | None = None
    """The rows that are measured (.jsonl, .json, .parquet, packed or not); none: from the hub, where `hub` allows it."""
    shots: FilePath | None = None
    """Rows that few-shot examples are drawn from, for definitions that draw any."""
    hub: bool = False
    """Fetch the dataset that the definition names, where `data` is not given: uses the network."""
    num_fewshot: CountOrZero | None = None
    """Examples before each question; null: as the definition says."""
    max_new_tokens: Count | None = None
    """Tokens after which generation ends; null: as the definition says, else lm-evaluation-harness's 256."""
    start_token: bool = True
    """Put the model's start token before every text (docs/evaluation.md); false: nothing, as `lm_eval --model hf` does by default."""
    rows: Literal["auto", "hub", "rendered"] = "auto"
    """How the rows of `data` are written: the hub's own columns, or ready-rendered {query, choices, gold}; auto: by their keys."""

    @property
    def files(self) -> list[FilePath]:
        """The files that decide the task's numbers."""
        return [file for file in (self.data, self.shots) if file is not None]


class ContinuationTask(DataTask):
    """One right continuation of each context: is every token of it the most likely one, and how likely is it?"""

    kind: Literal["continuation"]
    """continuation."""
    context_field: str = "context"
    """Key of the context."""
    continuation_field: str = "continuation"
    """Key of the continuation."""
    delimiter: str = " "
    """Stands between the two; left out where the continuation begins with a space or the context ends with one."""
    group_fields: GroupFields = []
    """Keys by whose values accuracy is reported too."""


class BigBenchTask(DataTask):
    """A BIG-bench JSON task (`examples` in one JSON object), zero-shot, scored by its preferred score."""

    kind: Literal["bigbench"]
    """bigbench."""
    score: Literal["preferred", "multiple_choice_grade", "exact_str_match"] = "preferred"
    """Which of the task's metrics; preferred: as the task says."""
    low: Annotated[float, Field(ge=0.0, le=100.0)] | Literal["chance"] = "chance"
    """The raw score that counts as 0 when normalised; chance: that of a uniform guess (0 for generated answers)."""
    high: float = Field(default=100.0, gt=0.0, le=100.0)
    """The raw score that counts as 100."""
    max_new_tokens: Count | None = None
    """Tokens after which a generated answer ends; null: 8 more than the longest right one has."""


class ArithmeticTask(TaskOptions):
    """Generated sums, differences, products and quotients, stratified by digits and carries."""

    kind: Literal["arithmetic"]
    """arithmetic."""
    operations: list[Literal["add", "subtract", "multiply", "divide"]] = Field(
        default=["add", "subtract", "multiply", "divide"], min_length=1
    )
    """Which operations. divide: exact quotients only."""
    digits: list[Annotated[int, Field(ge=1, le=12)]] = Field(default=[1, 2, 3, 4, 5], min_length=1)
    """Digits of both operands (of divisor and quotient for divide)."""
    problems_per_stratum: Count = 50
    """Problems for each operation, number of digits and number of carries (add) or borrows (subtract); fewer where there are no more."""
    shots: CountOrZero = 4
    """Solved problems of the same operation and digits before each one; never one that is asked."""
    signs: dict[Literal["add", "subtract", "multiply", "divide"], str] = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
    """How the operations are written."""
    template: str = "{left} {sign} {right} ="
    """A problem; {left}, {sign}, {right}."""
    answer_prefix: str = " "
    """Stands between problem and answer."""
    separator: str = "\n"
    """Stands behind a solved problem; generation ends before it."""
    seed: CountOrZero = 0
    """Decides the problems."""

    @property
    def files(self) -> list[FilePath]:
        """None: the problems follow from the options."""
        return []


class MinimalPairsTask(DataTask):
    """Which text of a pair that differs in one thing does the model find more likely? BLiMP, or pairs of code."""

    kind: Literal["minimal_pairs"]
    """minimal_pairs."""
    good_field: str = "sentence_good"
    """Key of the acceptable text."""
    bad_field: str = "sentence_bad"
    """Key of the unacceptable one."""
    prefix_field: str | None = None
    """Key of a text that stands before both and is not scored; null: there is none."""
    group_fields: GroupFields = ["field", "linguistics_term", "UID"]
    """Keys by whose values accuracy is reported too, where rows have them."""
