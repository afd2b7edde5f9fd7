"""The reference of all config fields, written from the models themselves: `python -m megatron_codemix.config.reference`.

docs/config.md is its output; a test holds the two equal.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from megatron_codemix.config.prep import PrepConfig
from megatron_codemix.config.run import RunConfig
from megatron_codemix.config.section import Section
from megatron_codemix.config.study import StudyConfig

_INTRODUCTION = """# Configuration reference

One YAML file a command. Any field can be overridden on the command line by its dotted path, list items by number:

    codemix train RUN.yaml stages.0.learning_rate.peak=3e-4 seeds.data=1

Values of overrides are YAML. Unknown keys are refused; every mistake is reported at once with its path. Whole numbers may be
written `132e9` or `1_000`. Shares are numbers or fractions (`'1/3'`). Relative paths are taken from the working directory.

This page is written by `python -m megatron_codemix.config.reference`.
"""


def _sections(annotation: Any) -> list[type[Section]]:
    """The config models that an annotation mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in typing.get_args(annotation) for section in _sections(argument)]


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if arguments:
        return f"{annotation.__origin__.__name__}[{', '.join(map(_type_name, arguments))}]"
    if annotation is type(None):
        return "null"
    return "path" if annotation is Path else getattr(annotation, "__name__", str(annotation))


def _default(field: Any) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    value = field.default if field.default_factory is None else field.default_factory()
    if isinstance(value, Section):
        return "see below"
    return f"`{value}`"


def descriptions(model: type[Section]) -> dict[str, str]:
    """Field → its attribute docstring; inherited ones too."""
    found: dict[str, str] = {}
    for one in reversed([one for one in model.__mro__ if issubclass(one, Section)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, following in pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(following, ast.Expr):
                value = following.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[field.target.id] = inspect.cleandoc(value.value)
    return found


def _table(model: type[Section]) -> list[str]:
    described = descriptions(model)
    lines = [
        f"### {model.__name__}",
        "",
        " ".join((model.__doc__ or "").split()),
        "",
        "| field | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        meaning = " ".join(described.get(name, "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {_type_name(field.annotation)} | {_default(field)} | {meaning} |")
    return [*lines, ""]


def reference() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION]
    done: set[type[Section]] = set()
    for title, root in (
        ("Run files (`codemix check`, `train`)", RunConfig),
        ("Prep files (`codemix prep`)", PrepConfig),
        ("Study files (`codemix study`)", StudyConfig),
    ):
        parts.append(f"## {title}\n")
        queue: list[type[Section]] = [root]
        while queue:
            model = queue.pop(0)
            if model in done:
                continue
            done.add(model)
            parts.append("\n".join(_table(model)))
            for field in model.model_fields.values():
                queue += _sections(field.annotation)
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    print(reference(), end="")
