"""What is to be done with one object, and in what pieces.

Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_kvcache.cache.identity import Identity
    from pytest_kvcache.cache.index import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """How operations are carried out.

    ``object_bytes`` is the logical size of an object where a request does not say another
    one, ``stored_bytes`` the same padded to whole pages; results count logical bytes. A
    block is stored as ``objects_per_block`` of them: one, or one per layer. A transfer
    moves at most ``transfer_bytes``. ``blind``: the backend stores nothing, so what is read
    is stamped as if it had been stored, then verified as ever, and what that finds is not
    heard.
    """

    queue_depth: int
    object_bytes: int
    stored_bytes: int
    transfer_bytes: int
    sync: bool
    verify: str
    blind: bool = False
    objects_per_block: int = 1

    @property
    def transfers(self) -> int:
        """Transfers of such an object."""
        return -(-self.stored_bytes // self.transfer_bytes)


def object_key_of(slot: Slot, part: int | None) -> str:
    """What a backend stores an object of a block under; None: the only one."""
    return slot.object_key if part is None else f"{slot.object_key}.{part}"


class Operation:
    """One get, put or delete of an object; ``owner`` is whoever asked for it.

    ``part`` is which object of the slot's block; None where it is the only one. It moves
    ``stored_bytes``, of which ``object_bytes`` count, in ``left`` transfers, of which those
    below ``staged_bytes`` were staged.
    """

    __slots__ = (
        "done_ns", "failed", "identity", "kind", "left", "object_bytes", "object_key", "owner",
        "slot", "staged_bytes", "stamping_ns", "started_ns", "stored_bytes", "submitted_ns",
        "transfers",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917  made once per object, on the timed path
        self, kind: int, slot: Slot, part: int | None, owner: Any, submitted_ns: int,
        object_bytes: int, stored_bytes: int, transfers: int,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.slot = slot
        if part is None:
            self.object_key = slot.object_key
            self.identity: Identity = slot.identity
        else:
            self.object_key = object_key_of(slot, part)
            self.identity = slot.identity._replace(part=part)
        self.owner = owner
        self.submitted_ns = submitted_ns
        self.object_bytes = object_bytes
        self.stored_bytes = stored_bytes
        self.transfers = transfers
        self.left = transfers
        self.staged_bytes = 0
        self.stamping_ns = 0
        self.started_ns = 0
        self.done_ns = 0
        self.failed = False
