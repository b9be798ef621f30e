from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.cache.identity import (
    HEAD_BYTES,
    MAX_ORIGINS,
    Head,
    Identity,
    pack_head,
    parse_head,
)

KEY, OTHER = bytes(range(16)), bytes(range(1, 17))

identities = st.builds(
    Identity,
    key=st.binary(min_size=16, max_size=16),
    version=st.integers(0, 2**48 - 1),
    part=st.integers(0, 2**15 - 1),
    origin=st.integers(0, MAX_ORIGINS),
)
words = st.integers(0, 2**64 - 1)


@given(words, identities, words, words)
def test_a_head_says_what_it_was_packed_from(
    tag: int, identity: Identity, object_bytes: int, seed_id: int
) -> None:
    head = pack_head(tag, identity, object_bytes, seed_id)
    assert len(head) == HEAD_BYTES
    assert parse_head(head) == Head(tag, identity, object_bytes, seed_id)


@given(identities, st.integers(0, HEAD_BYTES * 8 - 1))
def test_a_head_with_a_flipped_bit_says_nothing(identity: Identity, bit: int) -> None:
    head = bytearray(pack_head(identity.tag, identity, 4096, 7))
    head[bit // 8] ^= 1 << bit % 8
    assert parse_head(bytes(head)) is None


@given(identities, st.integers(0, 2**48 - 1), st.integers(0, 2**15 - 1))
def test_generations_and_parts_of_a_key_never_share_a_tag(
    one: Identity, version: int, part: int
) -> None:
    other = Identity(one.key, version, part, one.origin)
    assert (one.tag == other.tag) == (one == other)
    assert 0 <= one.tag < 2**64


@given(identities, st.data())
def test_an_older_generation_is_known_by_its_tag(identity: Identity, data: st.DataObject) -> None:
    older = identity._replace(version=data.draw(st.integers(0, identity.version)))
    assert identity.older_of_tag(older.tag) == (None if older == identity else older)


def test_what_is_no_older_generation_is_not_taken_for_one() -> None:
    identity = Identity(KEY, 9, 2)
    for other in (Identity(OTHER, 3, 2), Identity(KEY, 3, 1), Identity(KEY, 10, 2)):
        assert identity.older_of_tag(other.tag) is None


@pytest.mark.parametrize(("part", "text"), [(0, f"{KEY.hex()}.5"), (3, f"{KEY.hex()}.5 (part 3)")])
def test_an_object_is_called_by_its_name(part: int, text: str) -> None:
    assert str(Identity(KEY, 5, part)) == text
