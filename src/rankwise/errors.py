"""What can go wrong, told apart by whose move is next.

Both carry one line for a person: what was wrong, where, and what to do. The command
line prints that line and nothing else; a traceback is a defect.
"""

from __future__ import annotations

from reprlib import Repr

_LONGEST = 200
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 40


class _OneLineError(Exception):
    r"""Names and values in `text` may come from anywhere; what would break its line becomes a space.

    >>> str(UserError("no layer a\nb"))
    'no layer a b'
    """

    def __init__(self, text: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else " " for letter in text))


class UserError(_OneLineError):
    """The input cannot be used as it is; nothing was started. Exit code 2."""


class RunError(_OneLineError):
    """A run that had started could not go on. Exit code 1."""


def reason_of(error: BaseException) -> str:
    r"""What an error of somebody else's says, on one line and not at length.

    >>> reason_of(ValueError("no\n  way")), reason_of(KeyError("config")), reason_of(ValueError())
    ('no way', "KeyError('config')", 'ValueError()')
    """
    says_all = str(error) and not isinstance(error, KeyError)
    return " ".join((str(error) if says_all else repr(error)).split())[:300]


def shortened(value: object) -> str:
    r"""What a message shows of a value that may be of any kind and size, on one line.

    >>> shortened("a\n"), shortened([[[[[[[1]]]]]]]), shortened(16**5000)
    ("'a\\n'", '[[[[...]]]]', 'an int too long to show')
    """
    try:
        shown = _SHORT.repr(value)
        return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    except ValueError:  # Python refuses to write so many digits
        return f"an {type(value).__name__} too long to show"
