"""The Merkle tree of RFC 6962 §2.1: roots that grow leaf by leaf, and proofs that a leaf is under a root.

A leaf is hashed after a zero byte, a node after a one byte, so that neither can pass for the other. Of a tree of n
leaves a `CompactRange` keeps the O(log n) hashes from which the next roots follow, and none of the leaves.

Reference: RFC 6962 §2.1 (hashes, audit paths); RFC 9162 §2.1.3.2 (checking a path).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


def leaf_hash(data: bytes) -> bytes:
    """Hash the bytes of a leaf, 32 bytes."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two nodes into the one above them, 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(slots=True, kw_only=True)
class CompactRange:
    """The first `size` leaves of a tree; `hashes` are its perfect subtrees, the largest first."""

    size: int = 0
    hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.hashes) != self.size.bit_count():
            raise ValueError(f"a tree of {self.size} leaves does not have {len(self.hashes)} perfect subtrees")

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        rest = self.size
        while rest & 1:
            leaf = node_hash(self.hashes.pop(), leaf)
            rest >>= 1
        self.hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Hash of the whole tree; of an empty one, the hash of nothing."""
        if not self.hashes:
            return hashlib.sha256(b"").digest()
        *others, root = self.hashes
        for left in reversed(others):
            root = node_hash(left, root)
        return root


class Tree:
    """All hashes of a tree, for proofs; about 130 bytes of memory a leaf."""

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(below := self._levels[-1]) > 1:
            pairs = [node_hash(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
            self._levels.append(pairs + below[len(below) & ~1 :])  # an odd one out rises as it is

    def inclusion_proof(self, index: int) -> list[bytes]:
        """Siblings from the leaf at `index` (from 0) up to the root. Raises IndexError outside the tree."""
        if not 0 <= index < len(self._levels[0]):
            raise IndexError(f"the tree has no leaf {index}")
        proof = []
        for level in self._levels:
            if (index ^ 1) < len(level):
                proof.append(level[index ^ 1])
            index >>= 1
        return proof


def root_by_proof(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Work out the root of a tree of `size` from one leaf hash and its proof. Raises ValueError for another length."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    root, node, last = leaf, index, size - 1
    for sibling in proof:
        if last == 0:
            raise ValueError("the proof is too long")
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ValueError("the proof is too short")
    return root
