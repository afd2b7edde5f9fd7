"""What every config model shares: strictness, and field types that YAML writes in more than one way."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TypeGuard

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


class Section(BaseModel):
    """A strict, frozen piece of configuration; an unknown key is an error, never ignored."""

    # Attribute docstrings are read by `reference` alone: pydantic would parse every source whenever a command or a worker starts.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def expanded(cls, raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The raw mapping with shorthands written out, before it is validated, and their mistakes, as `cross_problems` has them.

        Must tolerate any raw value, and change nothing in place.
        """
        return raw, []

    @classmethod
    def cross_problems(cls, raw: dict[str, Any]) -> list[str]:
        """Mistakes between sections, found on the raw mapping so that they are reported with all others.

        Must tolerate any raw value: what is malformed is reported by the field itself. Each item is
        `path: what is wrong; remedy`.
        """
        return []


def whole(value: Any) -> Any:
    """Accept 132e9 and 1_000_000.0 where a whole number is meant."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a raw value, after `whole`, is what `Count` accepts; for `cross_problems`."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


AS_SECTION, AS_VALUE = "[section]", "[value]"
"""Tags of the two forms of a field that is a section or a plain value; the brackets keep them out of the paths in messages."""


def form_of(value: Any) -> str:
    """Which of the two forms a raw or a read value has, so that its mistakes are told for that form alone."""
    return AS_SECTION if isinstance(value, (dict, Section)) else AS_VALUE


def _path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and value else value


def exact_share(value: float | int | str) -> Fraction:
    """The share as the rational the user wrote: 0.1 is 1/10, "1/3" is a third.

    Raises ValueError for what is not a number.
    """
    return Fraction(str(value).strip())


def _share(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("a share is a number from 0 to 1, or a fraction such as '1/3'")
    try:
        exact = exact_share(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError("a share is a number from 0 to 1, or a fraction such as '1/3'") from None
    if not 0 <= exact <= 1:
        raise ValueError("a share lies between 0 and 1")
    return str(value) if isinstance(value, str) else float(value)


Count = Annotated[int, BeforeValidator(whole), Field(ge=1)]
"""A whole number of at least 1; 132e9 is accepted."""

CountOrZero = Annotated[int, BeforeValidator(whole), Field(ge=0)]
"""A whole number of at least 0; 132e9 is accepted."""

FilePath = Annotated[Path, BeforeValidator(_path), PlainSerializer(str, return_type=str)]
"""A path; relative ones are taken from the working directory."""

Share = Annotated[float | str, BeforeValidator(_share)]
"""A number from 0 to 1, or a fraction written "1/3"; `exact_share` gives the rational."""
