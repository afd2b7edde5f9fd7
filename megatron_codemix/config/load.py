"""YAML + dotted overrides → a validated config, or one UserError that lists every mistake with its path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from megatron_codemix.config.section import Section
from megatron_codemix.errors import UserError

Config = TypeVar("Config", bound=Section)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.1 reads a string) and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' is given twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
            |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
            |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
            |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, say
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}{line}: not valid YAML ({problem}); mend that line") from None


def _apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Set one `a.b.0.c=value` in place; returns the problem, if any."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        return f"override '{override}': not of the form path.to.field=value"
    try:
        value = _parse_yaml(text, f"override '{override}'")
    except UserError as error:
        return error.problems[0]
    keys = path.split(".")
    here: Any = raw
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                return f"override '{override}': '{'.'.join(keys[: depth + 1])}' has items 0 to {len(here) - 1}; give one of those numbers"
            index: Any = int(key)
        elif isinstance(here, dict):
            index = key
            if not last and not isinstance(here.get(key), (dict, list)):
                here[key] = {}
        else:
            return f"override '{override}': '{'.'.join(keys[:depth])}' is a value, not a section"
        if last:
            here[index] = value
        else:
            here = here[index]
    return None


def _dotted(location: tuple[int | str, ...]) -> str:
    # pydantic adds the branch of a union ("float", "Ramp", "function-before[…]") to the path: not the user's words
    parts: list[str] = []
    for part in location:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif not re.search(r"[\[\]]|^(float|int|str|Ramp)$", part):
            parts.append(("." if parts else "") + part)
    return "".join(parts)


def _section_in(annotation: Any) -> type[Section] | None:
    """The first config model that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for found in map(_section_in, getattr(annotation, "__args__", ())) if found), None)


def _fields_at(model: type[Section], location: tuple[int | str, ...]) -> list[str]:
    """The field names that are allowed where an unknown key was found."""
    fields = model.model_fields
    for part in location[:-1]:
        field = fields.get(part) if isinstance(part, str) else None
        if field is None:
            continue
        section = _section_in(field.annotation)
        if section is None:
            continue
        fields = section.model_fields
    return list(fields)


def _describe(model: type[Section], error: Any) -> str:
    location, kind = error["loc"], error["type"]
    path = _dotted(location)
    if kind == "extra_forbidden":
        allowed = _fields_at(model, location)
        near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "known here: " + ", ".join(allowed)
        return f"{path}: unknown key; {hint}"
    if kind == "missing":
        return f"{path}: required, but not given; add it"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = "" if isinstance(given, (dict, list)) else f" (given: {given!r})"
    if kind == "literal_error" and isinstance(given, str):
        near = difflib.get_close_matches(given, re.findall(r"'([^']*)'", error["ctx"]["expected"]), n=1)
        shown += f"; did you mean '{near[0]}'?" if near else ""
    return f"{path}: {message}{shown}" if path else message


def parse_config(raw: Any, model: type[Config], where: str) -> Config:
    """Validate a mapping; raises UserError with every mistake, each prefixed by `where` and its path."""
    if not isinstance(raw, dict):
        raise UserError(f"{where}: must be a mapping of keys to values; see docs/config.md")
    raw, problems = model.expanded(raw)
    config: Config | None = None
    try:
        config = model.model_validate(raw)
    except ValidationError as error:
        problems += list(dict.fromkeys(_describe(model, item) for item in error.errors(include_url=False)))
    problems += model.cross_problems(raw)
    if problems or config is None:
        raise UserError(*(f"{where}: {problem}" for problem in problems))
    return config


def load_config(path: Path, model: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b=c` overrides (values are YAML), validate.

    Raises UserError listing every mistake at once: unreadable file, YAML, overrides, fields, cross-checks.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    raw = _parse_yaml(text, str(path))
    if raw is None:
        raise UserError(f"{path}: is empty; see docs/config.md for what belongs in it")
    if isinstance(raw, dict):
        broken = [problem for problem in (_apply_override(raw, item) for item in overrides) if problem]
        if broken:
            raise UserError(*broken)
    return parse_config(raw, model, str(path))


def dump_yaml(config: Section) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
