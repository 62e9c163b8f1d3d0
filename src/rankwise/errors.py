"""What can go wrong, told apart by whose move is next.

Both carry one line for a person: what was wrong, where, and what to do. The command
line prints that line and nothing else; a traceback is a defect.
"""


class UserError(Exception):
    """The input cannot be used as it is; nothing was started. Exit code 2."""


class RunError(Exception):
    """A run that had started could not go on. Exit code 1."""
