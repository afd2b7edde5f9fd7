"""An argument parser whose mistakes are one line with exit code 2, as everywhere in codemix.

Ground floor: imports nothing of the project but `errors`.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

from megatron_codemix.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse with `UserError` instead of a usage dump, and without abbreviated options.

    Abbreviations are off because a new option must never change the meaning of an old command.
    """

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'")
