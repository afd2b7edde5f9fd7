"""An argument parser whose mistakes are one line with exit code 2, as everywhere in codemix.

Ground floor: imports nothing of the project but `errors`.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from megatron_codemix.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse with `UserError` instead of a usage dump, hints for misspelt options, verbs and choices, and without abbreviations.

    Abbreviations are off because a new option must never change the meaning of an old command.
    """

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        see = "? See" if message.endswith("?") else "; see"
        raise UserError(f"{message.removesuffix('?')}{see} '{self.prog} --help'")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """argparse's; options that are unknown are told first, since what else is missing may follow from them."""
        self._refuse_unknown(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_known_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """The same, where options may stand between positional arguments."""
        self._refuse_unknown(sys.argv[1:] if args is None else args)
        return super().parse_known_intermixed_args(args, namespace)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        verbs = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        known = self._option_string_actions
        unknown: list[str] = []
        for word in words:
            if word == "--" or (verbs and not word.startswith("-")):
                break  # values follow, or a verb, whose own parser looks at the rest
            name = word.partition("=")[0]
            # argparse takes a word that holds a space for a value
            if name.startswith("--") and " " not in word and name not in known and name not in unknown:
                unknown.append(name)
        if unknown:
            named = ", ".join(unknown)
            hints = [hint for name in unknown if (hint := nearest(name, known)) is not None]
            did_you_mean = f"; did you mean {', '.join(hints)}?" if hints else ""
            self.error(f"unknown option{'s' if len(unknown) > 1 else ''} {named}{did_you_mean}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = nearest(str(value), [str(choice) for choice in action.choices or ()])
            if near is None:
                raise
            raise argparse.ArgumentError(action, f"{error.message}; did you mean '{near}'?") from None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is a misspelling or the only beginning of; None where none is near. Dashes in front do not count."""
    bare = {name.lstrip("-"): name for name in known}
    word = word.lstrip("-").lower().replace("_", "-")
    begun = [name for name in bare if len(word) > 1 and name.startswith(word)]
    near = begun if len(begun) == 1 else difflib.get_close_matches(word, bare, n=1)
    return bare[near[0]] if near else None
