"""The exceptions that end a command with a line in place of a traceback.

Ground floor: imports nothing of the project.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Text in one line, without what a terminal would obey: names in files from elsewhere may hold control characters."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in " ".join(text.split()))


class UserError(Exception):
    """One or more mistakes in the user's input; the command prints a line for each and exits with 2.

    Each problem is one line that says what is wrong, where, and how to mend it. Nothing but
    `cli.main` turns it into output, so library users can catch it.
    """

    def __init__(self, *problems: str) -> None:
        if not problems:
            raise AssertionError("a UserError needs at least one problem")
        self.problems = tuple(map(printable, problems))
        super().__init__("\n".join(self.problems))


class PassingError(UserError):
    """A UserError that a later start may not meet, since nothing in the input causes it: a folder that another process is about to
    leave, a disk that does not answer. A scheduler may try again."""


class JobError(Exception):
    """The work ended for a known reason that is not the input's: one line, exit code 1, no traceback.

    A rank that has not come, a disk that is full, a loss that is no longer a number.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(printable(problem))
