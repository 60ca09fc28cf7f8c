"""The tree is that of RFC 9162, to its known hashes, and each leaf is proved by its path alone."""

from __future__ import annotations

import hashlib
import random

import pytest

from accountsvc.adapters import merkle

# The entries and the roots of the first 1 to 8 of them with which implementations of Certificate
# Transparency are tested (RFC 6962 and 9162 have the same tree).
ENTRIES = [
    bytes.fromhex(digits)
    for digits in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
LEAVES = [merkle.leaf_hash(entry) for entry in ENTRIES]
# (index, size, hashes): inclusion paths from the same set of vectors, for the whole tree of eight,
# and for one whose last level is not full.
PATHS = (
    (
        0,
        8,
        (
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ),
    ),
    (
        5,
        8,
        (
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ),
    ),
    (2, 3, ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",)),
    (
        1,
        5,
        (
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ),
    ),
)


def test_the_root_is_that_of_the_known_vectors() -> None:
    roots = [merkle.root(LEAVES[:size]).hex() for size in range(1, 9)]

    assert tuple(roots) == ROOTS
    assert merkle.root([]) == hashlib.sha256().digest()


@pytest.mark.parametrize(("index", "size", "expected"), PATHS)
def test_a_path_is_that_of_the_known_vectors(
    index: int, size: int, expected: tuple[str, ...]
) -> None:
    path = merkle.path(LEAVES[:size], index)

    assert tuple(step.hex() for step in path) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 21, 64, 100])
def test_each_leaf_is_proved_by_its_path_and_by_nothing_else(size: int) -> None:
    leaves = [merkle.leaf_hash(str(number).encode()) for number in range(size)]
    root = merkle.root(leaves)

    for index, leaf in enumerate(leaves):
        path = merkle.path(leaves, index)
        proof = {"index": index, "size": size, "path": path, "root": root}

        assert merkle.is_included(leaf, **proof)
        assert not merkle.is_included(merkle.leaf_hash(b"another"), **proof)
        assert not merkle.is_included(leaf, **{**proof, "path": [*path, root]})
        assert not merkle.is_included(leaf, **{**proof, "index": size})
        if path:
            assert not merkle.is_included(leaf, **{**proof, "path": path[:-1]})
            assert not merkle.is_included(leaf, **{**proof, "index": (index + 1) % size})


def test_a_node_passes_for_no_entry() -> None:
    left, right = LEAVES[:2]

    leaf = merkle.leaf_hash(left + right)

    assert leaf != merkle.root([left, right])


def test_every_flipped_bit_of_a_path_is_refused() -> None:
    leaves = [merkle.leaf_hash(str(number).encode()) for number in range(50)]
    root, path = merkle.root(leaves), merkle.path(leaves, 17)
    drawn = random.Random(13)

    for _ in range(100):
        step, bit = drawn.randrange(len(path)), drawn.randrange(256)
        forged = list(path)
        forged[step] = (int.from_bytes(path[step]) ^ 1 << bit).to_bytes(32)

        assert not merkle.is_included(leaves[17], index=17, size=50, path=forged, root=root)
