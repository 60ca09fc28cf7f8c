"""Check a signed receipt of accountsvc, without a network: python verify_receipt.py RECEIPT KEYS"""

# RECEIPT and KEYS are files as the service serves them; it needs `pip install cryptography`.
import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey as PublicKey


def root_of(entry, place, size, path):  # RFC 9162, section 2.1.3.2
    node, last = hashlib.sha256(b"\0" + entry.encode()).digest(), size - 1
    for other in map(bytes.fromhex, path):
        pair = other + node if place % 2 or place == last else node + other
        node = hashlib.sha256(b"\1" + pair).digest()
        while place == last and place and not place % 2:
            place, last = place >> 1, last >> 1
        place, last = place >> 1, last >> 1
    return node.hex() if place == last == 0 else None


def prove(part, kind, number, keys):
    if part["seal"] is None:
        raise ValueError("is not signed yet: download the receipt again in a few minutes")
    text, spelled, path = part["seal"]["header"], part["seal"]["signature"], part["path"]
    entry, header = json.loads(part["entry"]), json.loads(text)
    signature = base64.urlsafe_b64decode(spelled)
    if header["key"] not in keys:
        raise ValueError("is signed by a key that is not in KEYS")
    keys[header["key"]].verify(signature, b"accountsvc seal, form 1\n" + text.encode())
    root = root_of(part["entry"], part["index"], header["entries"], path)
    spellings = base64.urlsafe_b64encode(signature).decode(), [bytes.fromhex(x).hex() for x in path]
    if (root, *spellings) != (header["root"], spelled, path):
        raise ValueError("is not what was signed")
    if (entry["kind"], entry["public_id"]) != (kind, number):
        raise ValueError(f"is no {kind} of the number {number}")
    print(f"{part['entry']}\n  signed in seal {header['number']} of {header['sealed_at']}")


def main(receipt, keys, what="What was given"):
    try:
        listed = json.loads(Path(keys).read_bytes())["keys"]
        raw = [base64.urlsafe_b64decode(key["x"] + "=") for key in listed]
        known = {hashlib.sha256(x).hexdigest()[:16]: PublicKey.from_public_bytes(x) for x in raw}
        paper = json.loads(Path(receipt).read_bytes())
        if paper["form"] != "accountsvc receipt, form 1":
            raise ValueError("has a form that this script does not know")
        number = json.loads(paper["receipt"]["entry"])["public_id"]
        for place, part in enumerate([paper["receipt"], *paper["facts"]]):
            kind, what = ("fact", f"Fact {place}") if place else ("receipt", "The receipt")
            prove(part, kind, number, known)
    except Exception as fault:
        why = fault if type(fault) is ValueError else f"is broken: {type(fault).__name__}"
        return f"{what} {why}."


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 3 else __doc__)
