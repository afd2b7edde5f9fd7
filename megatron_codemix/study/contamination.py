"""Was the training data compared with what models are evaluated on? The manifests say with what it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.files import sha256_file
from megatron_codemix.progress import say
from megatron_codemix.shards import MANIFEST_NAME, Manifest, load_manifest
from megatron_codemix.study.plan import StudyPlan
from megatron_codemix.study.stages import evaluation_data

_MOST_LINES = 12


class Unchecked(NamedTuple):
    """A file that models are evaluated on, and the sources that may hold its items."""

    file: str
    sources: list[str]

    def tell(self) -> str:
        """In a line, with the remedy."""
        return (
            f"{self.file}: training data of {', '.join(self.sources)} was not compared with it, so its items may have been trained on; "
            "name it in 'decontaminate.against' of the prep file and make the shards anew"
        )


def unchecked_evaluation(plan: StudyPlan) -> list[Unchecked]:
    """Evaluation files that the training split of a source was not compared with, by their content.

    One was where its sha256 stands in the manifest's `decontaminated_against`, or where it is the documents of a held-out split
    that was compared with that very training split. Files that are missing are left to others to tell.
    """
    trains = _training_splits(plan)
    files = [Path(path) for path in dict.fromkeys(evaluation_data(plan)) if Path(path).is_file()]
    return list(_unchecked(files, trains))


def _training_splits(plan: StudyPlan) -> dict[str, Manifest]:
    runs = [parse_config(arm.config, RunConfig, f"arm {arm.name}") for arm in plan.trained]
    places = {name: source.path / source.train_split for run in runs for name, source in run.sources.items()}
    return {name: load_manifest(place) for name, place in places.items()}


def _unchecked(files: Iterable[Path], trains: Mapping[str, Manifest]) -> Iterable[Unchecked]:
    compared = {name: {entry.rpartition("sha256:")[2] for entry in train.decontaminated_against} for name, train in trains.items()}
    for file in files:
        digest = sha256_file(file)
        checked = _held_out_against(file, digest)
        sources = [name for name, train in trains.items() if digest not in compared[name] and train.fingerprint not in checked]
        if sources:
            yield Unchecked(str(file), sources)


def _held_out_against(file: Path, digest: str) -> frozenset[str]:
    """Fingerprints of the training splits that the held-out documents in `file` were compared with; none for any other file."""
    if not (file.parent / MANIFEST_NAME).is_file():
        return frozenset()
    prep = Manifest.load(file.parent).prep
    checked = prep.get("checked_against")
    if prep.get("documents_sha256") != digest or not isinstance(checked, dict):
        return frozenset()
    return frozenset(map(str, checked.values()))


def check_contamination(plan: StudyPlan, refuse: bool) -> None:
    """Warn on stderr about evaluation files that training data was not compared with; with `refuse`, raise UserError instead."""
    lines = [found.tell() for found in unchecked_evaluation(plan)]
    if lines and refuse:
        raise UserError(*lines)
    for line in lines[:_MOST_LINES]:
        say(f"codemix study: caution: {line}")
    if len(lines) > _MOST_LINES:
        say(f"codemix study: caution: so it is with {len(lines) - _MOST_LINES} further files of the evaluation")
