"""Receipts for whoever has their number, and the public keys by which anybody checks them."""

from __future__ import annotations

from apiflask import APIBlueprint, Schema
from flask import Response
from marshmallow.fields import Integer, List, Nested, String

from .. import documents
from ..adapters.signedreceipts import KEYS_PATH, key_set
from ..adapters.throttle import RECEIPT
from ..db import rows
from ..errors import ReceiptNotFound, Throttled
from ..web import about, client, services
from .http.describe import raises, sends
from .http.wire import json_response

bp = APIBlueprint("receipts", __name__, tag="Receipts")

# An hour: so long may a program go on with the keys that it has, after one was added.
CACHED_SECONDS = 3600


class SealOfEntry(Schema):
    """A seal: the text that was signed, and the Ed25519 signature in base64url."""

    header = String(required=True)
    signature = String(required=True)


class SealedEntry(Schema):
    """An entry as the text that its seal covers, with its inclusion proof (RFC 9162).

    ``index`` and ``seal`` are null, and ``path`` is empty, until a seal covers it: for minutes.
    """

    entry = String(required=True)
    path = List(String(), required=True)
    index = Integer(required=True, allow_none=True)
    seal = Nested(SealOfEntry, required=True, allow_none=True)


class SignedReceipt(Schema):
    """``receipt`` is of the moment in which the account was erased; ``facts`` are of later."""

    form = String(required=True)
    receipt = Nested(SealedEntry, required=True)
    facts = List(Nested(SealedEntry), required=True)


class PublicKey(Schema):
    """A key as RFC 8037 has it; ``kid`` is what a seal's header names as ``key``."""

    kty = String(required=True)
    crv = String(required=True)
    x = String(required=True)
    kid = String(required=True)
    use = String(required=True)
    alg = String(required=True)


class KeySet(Schema):
    """A JSON Web Key Set (RFC 7517)."""

    keys = List(Nested(PublicKey), required=True)


@bp.get("/api/receipts/<number>/")
@bp.output(SignedReceipt)
@raises(ReceiptNotFound, Throttled)
def receipt(number: str) -> Response:
    """Show the signed receipt of a purged account to whoever has its number

    It names nobody. What it proves can be checked without this service, by the keys at
    `/.well-known/accountsvc-keys.json`: `accountsvc verify-receipt` does it, and so does a script
    in the documents. Each look counts against the address that it comes from.

    The number is taken as people type it, in capitals and without its hyphens too; the answer has
    it in lower case and with them.
    """
    services().throttle.spend(RECEIPT, address=client())
    public_id = rows.read_number(number)
    if public_id is None:
        raise ReceiptNotFound
    about(public_id)
    with services().reading() as session:
        found = documents.signed_receipt(session, public_id)
    if found is None:
        raise ReceiptNotFound
    return json_response(found.document)


@bp.get(KEYS_PATH)
@bp.output(KeySet)
@sends(200, Cache_Control=f"public, max-age={CACHED_SECONDS}")
def keys() -> Response:
    """Show the public keys of all seals that count, the newest first

    An older key stays for as long as receipts that it has signed are to be checked.
    """
    response = json_response(key_set(services().settings.ledger_public_keys))
    response.headers["Cache-Control"] = f"public, max-age={CACHED_SECONDS}"
    return response
