"""The examples of the OpenAPI document: members of bodies, errors, and their schemas."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ... import errors
from ...errors import AccountError

TIME = "2026-12-07T09:30:00Z"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIuLi4ifQ.c2ln"
# A member has its example by its name, which means the same in every body: with two meanings, one
# of them would have a misleading example.
EXAMPLES: dict[str, Any] = {
    "access": TOKEN,
    "action": "account.deactivated",
    "alg": "EdDSA",
    "actor": "5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0",
    "actor_kind": "owner",
    "at": TIME,
    "attempts": 0,
    "avatar": "/media/avatars/f0090e27ab25c12f4e0a760c800e6341.webp",
    "blocked_by": "hold",
    "can_reactivate": True,
    "code": "throttled",
    "confirm": "ann",
    "created_at": TIME,
    "crv": "Ed25519",
    "date_joined": TIME,
    "deactivated_at": "2026-11-23T09:29:59Z",
    "deactivated_by": "owner",
    "detail": "Not found.",
    "email": "ann@example.org",
    "entry": '{"deactivated_at":"2026-11-23T09:29:59.000000Z","deactivated_by":"owner","files":1,'
    '"kind":"receipt","public_id":"5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0",…}',
    "error": "Not authorized",
    "first_name": "Ann",
    "form": "accountsvc receipt, form 1",
    "header": '{"chain":"…","entries":512,"key":"…","number":12,"root":"…",…}',
    "id": 1,
    "index": 3,
    "is_staff": False,
    "kid": "56475aa75463474c",
    "kty": "OKP",
    "last_name": "Lee",
    "message": "password saved successfully",
    "name_pages": "Example",
    "new_password": "nine purple otters sing",
    "number_phone": "+49 30 123456",
    "output": "zX7-mQ2_vB9!kL4+tR8?",
    "path": ["6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"],
    "pending_email": None,
    "password": "correct horse battery staple",
    "password_saved": "zX7-mQ2_vB9!kL4+tR8?",
    "placed_at": TIME,
    "purge_at": TIME,
    "reason": "Proceedings 12/2026",
    "recovery_token": TOKEN,
    "refresh": TOKEN,
    "released_at": None,
    "signature": "…",
    "state": "deactivated",
    "subject": "5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0",
    "title": "Account not found",
    "token": TOKEN,
    "type": "urn:problem-type:accountsvc:account_not_found",
    "updated_at": TIME,
    "url": "https://example.org/",
    "use": "sig",
    "user_id": 1,
    "username": "ann",
    "x": "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg",
}
HEADERS: dict[str, dict[str, Any]] = {
    "RequestID": {
        "description": "Names this request in the log; a client may choose it",
        "schema": {"type": "string"},
        "example": "9f86d081884c7d659a2feaa0c55ad015",
    }
}
# What a header of an answer is for, by its name.
MEANINGS = {
    "ETag": 'Names this state. A proxy that compresses makes it `W/"…"`: send it back as it came.',
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "Deactivated": {
        "type": "object",
        "properties": {
            "error": {"type": "string"},
            "code": {"type": "string"},
            "purge_at": {"type": "string", "format": "date-time"},
            "recovery_token": {"type": "string"},
        },
        "required": ["error", "code", "purge_at", "recovery_token"],
    },
    "Error": {
        "type": "object",
        "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
        "required": ["error"],
    },
    "Detail": {
        "type": "object",
        "properties": {"detail": {"type": "string"}, "code": {"type": "string"}},
        "required": ["detail"],
    },
    "FieldErrors": {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "minProperties": 1,
    },
    "Problem": {
        "type": "object",
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string"},
            "errors": {"$ref": "#/components/schemas/FieldErrors"},
        },
        "required": ["type", "title", "status", "detail", "code"],
    },
}


def sample(error: type[AccountError]) -> AccountError:
    """Return an *error* as a view could raise it."""
    if error is errors.InvalidInput:
        return errors.InvalidInput({"email": ["Enter a valid email address."]})
    if error is errors.Throttled:
        return errors.Throttled(30, limit="password pair")
    if error is errors.ConfirmationRequired:
        return errors.ConfirmationRequired(900)
    if error is errors.AccountDeactivated:
        told = errors.AccountDeactivated(account_id=1, purge_at=datetime.fromisoformat(TIME))
        return told.by_page("https://accounts.example.org/keep-account/")
    return error()
