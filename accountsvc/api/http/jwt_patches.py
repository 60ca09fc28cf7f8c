"""What PyJWT has no public name for, in one place; tests say what breaks without it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jwt.api_jws import PyJWS

# So many tokens are remembered: one for each thread that has just begun a request.
_REMEMBERED = 32
_PATCHED = "_accountsvc_takes_apart_once"


def take_apart_once() -> None:
    """Have PyJWT take the same token apart once, where Flask-JWT-Extended asks it four times.

    It looks at a token without its key first, then with it, and at the head each time; to decode
    the parts, sign by sign, took a sixth of a short request. What is remembered is a function of
    the token's letters alone: whether a signature is right is found out each time.
    """
    if _PATCHED in vars(PyJWS):
        return
    take_apart = lru_cache(maxsize=_REMEMBERED)(PyJWS()._load)

    def load(_jws: PyJWS, jwt: str | bytes) -> tuple[bytes, bytes, dict[str, Any], bytes]:
        payload, signing_input, head, signature = take_apart(jwt)
        # Whoever gets it may change it.
        return payload, signing_input, dict(head), signature

    PyJWS._load = load  # type: ignore[method-assign,assignment]
    setattr(PyJWS, _PATCHED, True)
