"""Check a signed receipt of accountsvc, without a network: python verify_receipt.py RECEIPT KEYS"""

import json  # RECEIPT and KEYS are files as they are served; it needs `pip install cryptography`
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey as PublicKey


def need(is_so, otherwise):
    if not is_so:
        raise ValueError(otherwise)


def root_of(entry, place, size, path):  # RFC 9162, section 2.1.3.2
    node, last = sha256(b"\0" + entry.encode()).digest(), size - 1
    for other in map(bytes.fromhex, path):
        while place == last and place and not place % 2:
            place, last = place >> 1, last >> 1
        pair = other + node if place % 2 else node + other
        node, place, last = sha256(b"\1" + pair).digest(), place >> 1, last >> 1
    return node.hex() if place == last == 0 else None


def prove(part, kind, number, keys):
    need(part["seal"], "is not signed yet: download the receipt again in a few minutes")
    text, spelled, path = part["seal"]["header"], part["seal"]["signature"], part["path"]
    entry, header, signed = json.loads(part["entry"]), json.loads(text), urlsafe_b64decode(spelled)
    need(header["key"] in keys, "is signed by a key that is not in KEYS")
    keys[header["key"]].verify(signed, b"accountsvc seal, form 1\n" + text.encode())
    found = root_of(part["entry"], part["index"], header["entries"], path), type(part["index"])
    spellings = urlsafe_b64encode(signed).decode(), [bytes.fromhex(x).hex() for x in path]
    need((*found, *spellings) == (header["root"], int, spelled, path), "is not what was signed")
    need((entry["kind"], entry["public_id"]) == (kind, number), f"is no {kind} of number {number}")
    print(f"{part['entry']}\n  signed in seal {header['number']} of {header['sealed_at']}")


def main(receipt, keys, what="What was given"):
    def strict(members, shapes=("facts form receipt", "entry index path seal", "header signature")):
        need(" ".join(sorted(x for x, _ in members)) in shapes, "has other members than a receipt")
        return dict(members)

    try:
        raw = [urlsafe_b64decode(k["x"] + "=") for k in json.loads(Path(keys).read_bytes())["keys"]]
        known = {sha256(x).hexdigest()[:16]: PublicKey.from_public_bytes(x) for x in raw}
        paper = json.loads(Path(receipt).read_text("utf-8"), object_pairs_hook=strict)
        need(paper["form"] == "accountsvc receipt, form 1", "has a form that is not known here")
        number, places = json.loads(paper["receipt"]["entry"])["public_id"], {}
        for place, part in enumerate([paper["receipt"], *paper["facts"].copy()]):  # of a list
            kind, what = ("fact", f"Fact {place}") if place else ("receipt", "The receipt")
            need(places.setdefault(part["entry"], place) == place, "is in it twice")
            prove(part, kind, number, known)
    except Exception as no:
        return f"{what} {no if type(no) is ValueError else f'is broken: {type(no).__name__}'}."


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 3 else __doc__)
