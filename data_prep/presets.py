"""Datasets that `codemix prep fetch` knows: where they are, what their rows look like, and what to do where they are not to be had.

docs/data-access.md says what is known of each, and from where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from megatron_codemix.config.prep import RowFields


@dataclass(frozen=True)
class Preset:
    """One dataset."""

    dataset: str
    rows: RowFields
    modality: Literal["code", "text"]
    about: str
    config: str | None = None
    data_dir: str | None = None
    split: str = "train"
    access: Literal["open", "gated", "withdrawn"] = "open"
    only: Mapping[str, list[str]] = field(default_factory=dict)
    """Rows that are taken: `sources.NAME.only` of a prep file."""
    way_out: str = ""
    """What to do when it cannot be had."""


_ACCEPT = "log in on huggingface.co, accept the terms on the dataset's page, then 'hf auth login' here"
_OTHER_CODE = "codeparrot-clean, or your own repositories with kind: git"

PRESETS = {
    "c4": Preset("allenai/c4", "c4", "text", "English C4 (305 GB)", config="en", way_out="give a copy with --from"),
    "slimpajama": Preset(
        "cerebras/SlimPajama-627B",
        "slimpajama",
        "text",
        "SlimPajama (895 GB packed)",
        way_out="users reported in February 2026 that it is gone; give a copy with --from, or take slimpajama-6b, c4 or fineweb instead",
    ),
    "slimpajama-6b": Preset(
        "DKYoon/SlimPajama-6B",
        "slimpajama",
        "text",
        "a sample of SlimPajama, by a third party",
        way_out="give a copy with --from, or take c4",
    ),
    "fineweb": Preset(
        "HuggingFaceFW/fineweb",
        "c4",
        "text",
        "FineWeb, the sample of 10B tokens: stands in for SlimPajama",
        config="sample-10BT",
        way_out="give a copy with --from, or take c4",
    ),
    "pile-github": Preset(
        "EleutherAI/pile",
        "pile-github",
        "code",
        "the GitHub part of the Pile",
        access="withdrawn",
        way_out=f"it is no longer distributed; give a copy that you have with --from, or take pile-uncopyrighted, {_OTHER_CODE}",
    ),
    "pile-uncopyrighted": Preset(
        "monology/pile-uncopyrighted",
        "pile-github",
        "code",
        "a copy of the Pile without the parts that were objected to, by a third party: its GitHub rows",
        only={"meta.pile_set_name": ["Github"]},
        way_out=f"give a copy with --from, or take {_OTHER_CODE}",
    ),
    "codeparrot-clean": Preset(
        "codeparrot/codeparrot-clean",
        "the-stack",
        "code",
        "Python files of GitHub, with repository, path and licence: stands in for the Pile's GitHub part",
        way_out="give a copy with --from, or read your own repositories with kind: git",
    ),
    "the-stack": Preset(
        "bigcode/the-stack",
        "the-stack",
        "code",
        "The Stack v1 (6.4 TB); --data-dir data/python for one language",
        access="gated",
        way_out=f"{_ACCEPT}; or take {_OTHER_CODE}",
    ),
    "the-stack-dedup": Preset(
        "bigcode/the-stack-dedup",
        "the-stack",
        "code",
        "The Stack v1 without near-duplicates (2.9 TB)",
        access="gated",
        way_out=f"{_ACCEPT}; or take {_OTHER_CODE}",
    ),
    "the-stack-smol": Preset(
        "bigcode/the-stack-smol",
        "the-stack",
        "code",
        "a small sample of The Stack v1; --data-dir data/python for one language",
        access="gated",
        way_out=f"{_ACCEPT}; or take {_OTHER_CODE}",
    ),
    "the-stack-v2": Preset(
        "bigcode/the-stack-v2",
        "the-stack",
        "code",
        "The Stack v2: identifiers only",
        access="withdrawn",
        way_out="it holds no file contents: those lie with Software Heritage, in bulk by agreement (datasets@softwareheritage.org); "
        f"give a copy that has them with --from, or take the-stack-dedup or {_OTHER_CODE}",
    ),
}
