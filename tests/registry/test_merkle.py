"""The Merkle tree against RFC 6962's own definition and the vectors of Certificate Transparency."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.merkle import CompactRange, Tree, leaf_hash, root_by_proof

# Inputs and roots of the reference implementation (certificate-transparency, merkletree/testdata).
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 §2.1, as it stands there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


def test_the_roots_are_those_of_certificate_transparency() -> None:
    grown = CompactRange()
    for data, root in zip(INPUTS, ROOTS, strict=True):
        grown.append(leaf_hash(bytes.fromhex(data)))
        assert grown.root().hex() == root


@settings(deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=70))
def test_a_root_that_grew_is_the_root_by_definition(leaves: list[bytes]) -> None:
    grown = CompactRange()
    for leaf in leaves:
        grown.append(leaf_hash(leaf))
    assert grown.root() == by_definition(leaves)
    assert len(grown.hashes) == len(leaves).bit_count()


@settings(deadline=None)
@given(st.integers(1, 70), st.data())
def test_a_proof_leads_to_the_root_for_its_own_leaf_and_place_only(size: int, data: st.DataObject) -> None:
    hashes = [leaf_hash(bytes([number])) for number in range(size)]
    index = data.draw(st.integers(0, size - 1))
    tree, root = Tree(hashes), by_definition([bytes([number]) for number in range(size)])
    proof = tree.inclusion_proof(index)
    assert root_by_proof(hashes[index], index=index, size=size, proof=proof) == root
    assert root_by_proof(leaf_hash(b"another"), index=index, size=size, proof=proof) != root
    for other in {0, size - 1, size // 2} - {index}:
        try:
            assert root_by_proof(hashes[index], index=other, size=size, proof=proof) != root
        except ValueError:
            continue  # of another length than a proof of that place


def test_a_proof_of_another_length_is_refused() -> None:
    hashes = [leaf_hash(bytes([number])) for number in range(5)]
    proof = Tree(hashes).inclusion_proof(1)
    for wrong in (proof[:-1], [*proof, proof[0]]):
        with pytest.raises(ValueError, match="proof is too"):
            root_by_proof(hashes[1], index=1, size=5, proof=wrong)
