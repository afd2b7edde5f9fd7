"""How fast the steps of `clean` are, each alone, and what they leave out: MB of UTF-8 per CPU-second.

    python benchmarks/filters.py FILE.jsonl.gz [FILE …] [--limit-mb 20] [--steps language,secrets]

A document goes through a step as it came from the file, whatever the others would have done to it. The time is that of this process
alone (`time.process_time`), so a loaded machine matters little, but its caches do: compare figures of one run.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections import Counter
from pathlib import Path

import orjson
from detect_secrets.settings import default_settings, get_plugins

from data_prep.documents import Document, Drop, Step, Tally
from data_prep.steps.code_quality import CodeQualityFilter
from data_prep.steps.language import LanguageFilter
from data_prep.steps.license import LicenseFilter
from data_prep.steps.personal_data import PersonalDataMask
from data_prep.steps.secrets import SecretFilter
from data_prep.steps.text_quality import TextQualityFilter
from megatron_codemix.config import CodeQuality, LanguageStep, LicenseStep, PersonalData, Secrets, SourceSpec, TextQuality


def read(file: Path, limit: float) -> list[Document]:
    """The documents of a JSONL file, evenly drawn, until `limit` MB."""
    with gzip.open(file) as handle:
        rows = [orjson.loads(line) for line in handle]
    total = sum(len(row["text"]) for row in rows) / 1e6
    rows = rows[:: max(1, round(total / limit))]
    return [
        Document(f"{file.name}:{number}", row["text"], language=row.get("lang"), license=row.get("license"), path=row.get("path"))
        for number, row in enumerate(rows)
    ]


def steps(spec: SourceSpec) -> list[Step]:
    """One of each."""
    return [
        LanguageFilter(LanguageStep(allow=["en"], detect=True), spec),
        LicenseFilter(LicenseStep(allow=["permissive"]), spec),
        TextQualityFilter(TextQuality(rules=["gopher"]), spec),
        TextQualityFilter(TextQuality(rules=["gopher_repetition"]), spec),
        TextQualityFilter(TextQuality(rules=["c4"]), spec),
        CodeQualityFilter(CodeQuality(), spec),
        CodeQualityFilter(CodeQuality(min_comments=0.01, max_comments=0.8), spec),
        SecretFilter(Secrets(), spec),
        PersonalDataMask(PersonalData(phone=True), spec),
    ]


LABELS = ["language", "license", "gopher", "gopher_repetition", "c4", "code_quality", "code_quality+comments", "secrets", "personal_data"]


def measure(step: Step, documents: list[Document], repeats: int) -> tuple[float, Tally]:
    """(least CPU-seconds of some passes, what was counted in one)."""
    best, tally = float("inf"), Tally()
    for _ in range(repeats):
        tally = Tally()
        started = time.process_time()
        for document in documents:
            result = step.apply(document, tally)
            if isinstance(result, Drop):
                tally.dropped[step.name, result.reason] += 1
        best = min(best, time.process_time() - started)
    return best, tally


def peer(documents: list[Document]) -> tuple[float, float]:
    """(MB, CPU-seconds) of detect-secrets alone, all its default detectors on every line, on documents of about half a MB."""
    size, lines = 0, []
    for document in documents[:: max(1, len(documents) // 50)]:
        if size < 500_000:
            size += len(document.text.encode())
            lines += [(document.path or "", line) for line in document.text.split("\n")]
    with default_settings():
        plugins = get_plugins()
        started = time.process_time()
        for path, line in lines:
            for plugin in plugins:
                plugin.analyze_line(filename=path, line=line)
    return size / 1e6, time.process_time() - started


def main() -> None:
    """Print a table per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--limit-mb", type=float, default=20.0, help="characters to take of each file, in millions")
    parser.add_argument("--steps", default=",".join(LABELS))
    parser.add_argument("--peer", action="store_true", help="also detect-secrets without a prefilter")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    wanted = arguments.steps.split(",")
    made = dict(zip(LABELS, steps(SourceSpec(kind="stdlib", part="code", modality="code")), strict=True))
    for file in arguments.files:
        documents = read(file, arguments.limit_mb)
        megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
        print(f"{file.name}: {len(documents)} documents, {megabytes:.1f} MB")
        for label in wanted:
            measure(made[label], documents[:5], 1)  # tables and regular expressions are made once
            seconds, tally = measure(made[label], documents, arguments.repeats)
            seen = Counter({reason: count for (_, reason), count in (tally.dropped + tally.changed).items()})
            print(
                f"  {label:22} {megabytes / seconds:8.1f} MB/CPU-s {1e3 * seconds / megabytes:7.2f} ms/MB  "
                f"dropped {sum(tally.dropped.values())}  {dict(seen.most_common(8))}"
            )
        if arguments.peer:
            size, seconds = peer(documents)
            print(f"  {'detect-secrets alone':22} {size / seconds:8.1f} MB/CPU-s {1e3 * seconds / size:7.0f} ms/MB")


if __name__ == "__main__":
    main()
