"""Why the staff or an operator does something to an account: free text, which stays on its row."""

from __future__ import annotations

from dataclasses import dataclass

from ..db.text import text_problem
from ..errors import InvalidInput

# A reason may have so many characters; the staff's lists show it whole.
REASON_LENGTH = 1000


@dataclass(frozen=True)
class Return:
    """How an account is given back: for which reason, if one is to be stored, and whether if due.

    *although_due* is for an operator, while nobody can be purged: after a restore somebody is due
    again who had come back.
    """

    reason: str | None = None
    although_due: bool = False


PLAIN_RETURN = Return()


def check_reason(reason: str, *, may_be_blank: bool = True) -> None:
    """Raise InvalidInput for a *reason* that is too long, or holds what a screen obeys."""
    if len(reason) > REASON_LENGTH:
        raise InvalidInput({"reason": [f"Use at most {REASON_LENGTH} characters."]})
    # A reason may have several lines. Any other control character is refused: it could clear or
    # rewrite the screen of the operator who has the account shown.
    if problem := text_problem(reason, allowed="\t\n\r"):
        raise InvalidInput({"reason": [problem]})
    if not may_be_blank and not reason.strip():
        raise InvalidInput({"reason": ["This field may not be blank."]})
