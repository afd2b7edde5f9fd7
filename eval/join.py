"""`codemix eval join PART… --output DIR`: results of one model that were measured apart become what one command would have written.

A job array measures each suite in a folder of its own (docs/slurm.md). Here their items and entries go together, in the order in
which the parts are given. Nothing is measured, and no torch is loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.results import Results, ResultsFolder, open_results
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_file

_MODEL = ("sha256", "definition_sha256")


def main(argv: Sequence[str]) -> int:
    """Join parts; returns the exit code. Raises UserError where they do not belong together, or one is not finished."""
    parser = ArgumentParser(prog="codemix eval join", description="Results of one model, measured in parts → one results folder.")
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART", help="results folders of one model ('codemix eval --output')")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="receives results.json and items/TASK.jsonl")
    arguments = parser.parse_intermixed_args(list(argv))
    joined = join(arguments.parts, arguments.output)
    print(f"{len(joined['tasks'])} tasks of {len(arguments.parts)} parts")
    print(arguments.output / "results.json")
    return 0


def join(parts: Sequence[Path], output: Path) -> dict[str, Any]:
    """Write results.json and items of all parts into `output`; returns the content. Raises UserError with all mistakes of a kind."""
    opened = _opened(parts)
    if any(one.folder.resolve() == output.resolve() for one in opened):
        raise UserError(f"--output {output}: is one of the parts; give another folder")
    settings = _common_settings(opened)
    owners = _owners(opened)
    tasks: dict[str, Any] = {name: part.value["tasks"][name] for name, part in owners.items()}
    folder = ResultsFolder(output)
    with folder.held():
        folder.tell_other_model(opened[0].value["model"])
        folder.drop_others(set(tasks))
        for name, part in owners.items():
            part.items(name)  # whole, and as they were written
            with open(part.folder / tasks[name]["items"], "rb") as source, atomic_file(output / tasks[name]["items"]) as target:
                shutil.copyfileobj(source, target)
        return folder.write(opened[0].value["model"], settings, tasks, whole=True)


def _opened(parts: Sequence[Path]) -> list[Results]:
    opened: list[Results] = []
    problems: list[str] = []
    for part in parts:
        try:
            opened.append(open_results(part))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return opened


def _common_settings(parts: Sequence[Results]) -> dict[str, Any]:
    """The parts' settings, with the tasks of all. Raises UserError where the parts are of several models, or were measured differently."""
    first = parts[0]
    problems: list[str] = []
    for part in parts[1:]:
        if any(part.value["model"].get(key) != first.value["model"].get(key) for key in _MODEL):
            problems.append(
                f"{part.folder}: was measured on other weights, config or tokenizer than {first.folder}; measure one of them again"
            )
            continue
        for key in sorted({*first.value["settings"], *part.value["settings"]} - {"tasks"}):
            here, there = part.value["settings"].get(key), first.value["settings"].get(key)
            if here != there:
                problems.append(
                    f"{part.folder}: settings.{key} is {here}, but {there} in {first.folder}; measure both with the same (--{key})"
                )
    if problems:
        raise UserError(*problems)
    tasks = {name: options for part in parts for name, options in part.value["settings"]["tasks"].items()}
    return {**first.value["settings"], "tasks": tasks}


def _owners(parts: Sequence[Results]) -> dict[str, Results]:
    """Task → the first part that holds it. Raises UserError where another one's task of this name is another task."""
    owners: dict[str, Results] = {}
    problems: list[str] = []
    for part in parts:
        for name, entry in part.value["tasks"].items():
            owner = owners.setdefault(name, part)
            if owner.value["tasks"][name]["fingerprint"] != entry["fingerprint"]:
                problems.append(f"{part.folder}: {name} is another task than the one of this name in {owner.folder}; rename one of them")
    if problems:
        raise UserError(*problems)
    return owners
