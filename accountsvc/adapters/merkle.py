"""Merkle trees as RFC 9162 has them (section 2.1), so that one entry of many can be proved alone.

The hash of a leaf is SHA-256(0x00 ‖ entry), that of a node SHA-256(0x01 ‖ left ‖ right). The two
first bytes differ, or a node could be shown as an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

HASH_BYTES = 32


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of the leaf that holds *entry*."""
    return hashlib.sha256(b"\x00" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the hash of the tree over *leaves*, which are hashes of leaves, in their order.

    Of no leaves it is the hash of nothing (RFC 9162, section 2.1.1).
    """
    if not leaves:
        return hashlib.sha256().digest()
    return _levels(leaves)[-1][0]


def path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the hashes that lead from leaf *index* to the root (RFC 9162, section 2.1.3.1).

    Raises IndexError if there is no such leaf.
    """
    return paths(leaves, [index])[index]


def paths(leaves: Sequence[bytes], indexes: Iterable[int]) -> dict[int, list[bytes]]:
    """Return the path of each of *indexes*, as :func:`path` does, for the work of one tree."""
    levels = _levels(leaves)[:-1]
    return {index: _path(levels, index, len(leaves)) for index in indexes}


def _path(levels: Sequence[Sequence[bytes]], index: int, size: int) -> list[bytes]:
    if not 0 <= index < size:
        raise IndexError("no such leaf")
    hashes = []
    for level in levels:
        sibling = index ^ 1
        # The last hash of an odd level has none beside it, and goes up as it is.
        if sibling < len(level):
            hashes.append(level[sibling])
        index >>= 1
    return hashes


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Return the tree level by level; the RFC's split at powers of two is the same tree."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        above = [_node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        if len(below) % 2:
            above.append(below[-1])
        levels.append(above)
    return levels


def is_included(leaf: bytes, *, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Say whether *leaf* is number *index* of the *size* leaves below *root*.

    The steps are those of RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size:
        return False
    position, last, reached = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if position % 2 or position == last:
            reached = _node(sibling, reached)
            while position % 2 == 0 and position:
                position, last = position >> 1, last >> 1
        else:
            reached = _node(reached, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and reached == root
