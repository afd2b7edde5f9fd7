"""What may be done to the documents of a source, one module per step; the prep file says which of them.

A step is a class that a worker process makes from its settings: `Step(settings, spec)`, with what it needs beyond them by
keyword (`_MORE`). It has a `name` and `apply(document, tally)`: see `data_prep.documents.Step`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from data_prep.documents import Step
from megatron_codemix.config import PrepConfig, SourceSpec
from megatron_codemix.errors import UserError

__all__ = ["clean_steps", "is_deduplicated", "needs_fields", "pairs_are_compared", "prepare_steps", "shape_steps", "work_folder"]

# In the order in which they are done: what decides by a property of the whole document stands before what looks into its text, and
# personal data is masked last, because an address inside of a secret belongs to the secret.
_CLEAN = {
    "render": "Renderer",
    "language": "LanguageFilter",
    "license": "LicenseFilter",
    "text_quality": "TextQualityFilter",
    "code_quality": "CodeQualityFilter",
    "decontaminate": "Decontaminator",
    "secrets": "SecretFilter",
    "personal_data": "PersonalDataMask",
}
"""Step (also its module and its field in the prep file) → class."""

# `repositories` is not among them: it looks at all documents of a group at once (data_prep.repositories).
_SHAPE = {"control": "Control", "pairs": "PairMaker", "segments": "Segmenter"}


def clean_steps(config: PrepConfig, source: str, work: Path | None = None) -> list[Step]:
    """The steps that documents of a source go through before duplicates are looked for, in order.

    work: the folder that `prepare_steps` was given; default: the one of the prep file. Call it in the worker: steps are not pickled.
    """
    spec = config.sources[source]
    steps = []
    for name, class_name in _CLEAN.items():
        settings = config.decontaminate if name == "decontaminate" else getattr(spec.clean, name)
        if settings is not None:
            more: dict[str, Any] = {"folder": work or work_folder(config)} if name == "decontaminate" else {}
            steps.append(_step_class(name, class_name)(settings, spec, **more))
    if pairs_are_compared(config, source):
        steps.append(_step_class("pairs", _SHAPE["pairs"])(spec.shape.pairs, spec))
    return steps


def is_deduplicated(config: PrepConfig, source: str) -> bool:
    """Whether duplicates of a source's documents are looked for."""
    chosen = config.deduplicate
    return chosen is not None and (not chosen.sources or source in chosen.sources)


def pairs_are_compared(config: PrepConfig, source: str) -> bool:
    """Whether it is pairs of which duplicates are looked for: they are then made as the last clean step."""
    return config.sources[source].shape.pairs is not None and is_deduplicated(config, source)


def shape_steps(config: PrepConfig, source: str) -> list[Step]:
    """The steps that turn clean documents of a source into what is trained on, in order; without `shape.repositories`."""
    spec = config.sources[source]
    steps = []
    for name, class_name in _SHAPE.items():
        settings = getattr(spec.shape, name)
        if settings and not (name == "pairs" and pairs_are_compared(config, source)):
            # what is drawn at random is keyed by the seed of the prep file and the document's name
            more: dict[str, Any] = {"seed": config.split.seed} if name == "control" else {}
            steps.append(_step_class(name, class_name)(settings, spec, **more))
    return steps


def needs_fields(config: PrepConfig, source: str) -> bool:
    """Whether a step of this source reads other fields of a row than the text (`Document.fields`)."""
    return _reads_fields(config.sources[source])


def prepare_steps(config: PrepConfig, work: Path) -> None:
    """Make what the steps of all workers share, below `work`, once before they start; what is there already is not made again.

    Raises UserError where a step's input is missing or cannot be read, and for settings that only a step can judge.
    """
    problems: list[str] = []
    for source, spec in config.sources.items():
        for name in ("language", "license"):
            settings = getattr(spec.clean, name)
            try:
                if settings is not None:
                    _step_class(name, _CLEAN[name])(settings, spec)
            except UserError as error:
                problems += [f"sources.{source}.{problem}" for problem in error.problems]
    if problems:
        raise UserError(*problems)
    if config.decontaminate is not None:
        importlib.import_module("data_prep.steps.decontaminate").prepare(config.decontaminate, work)


def work_folder(config: PrepConfig) -> Path:
    """Where a prep file's intermediate results lie: OUTPUT/.work."""
    return config.output / ".work"


def _reads_fields(spec: SourceSpec) -> bool:
    render = spec.clean.render
    return render is not None and render.form != "notebook"


def _step_class(name: str, class_name: str) -> Any:
    # Imported only where the prep file asks for it: a worker then starts without parsers and detectors that it does not use
    # (detect-secrets and the grammars take longer to import than many a chunk to read).
    return getattr(importlib.import_module(f"data_prep.steps.{name}"), class_name)
