"""Answers that several routes give, as the bytes of CONTRACT sections 1 and 2."""

from __future__ import annotations

NO_TOKEN = b'{"detail": "Authentication credentials were not provided."}'
NOT_VALID = (
    b'{"detail": "Given token not valid for any token type. Sign in again.", '
    b'"code": "token_not_valid"}'
)
NOT_FOUND = b'{"detail": "Not found."}'
NOT_AUTHORIZED = b'{"error": "Not authorized"}'
WRONG_CREDENTIALS = b'{"error": "Invalid email or password"}'
WRONG_PASSWORD = b'{"error": "Invalid password", "code": "invalid_password"}'
CONFIRM = b'{"detail": "Password confirmation required.", "code": "confirmation_required"}'
