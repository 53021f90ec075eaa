"""Parquet files that carry a checksum of all their bytes, so that damage shows before parsing.

The checksum is a value of the file's own metadata, which other readers of Parquet ignore. It is
taken over the whole file with zeros in its place.
"""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

_KEY = b"strace-lens-sha256"
_BLANK = b"0" * 64
# Thrift's compact protocol puts two bytes between a key and its value: type, and length 64.
_BETWEEN = b"\x18\x40"


class SealError(ValueError):
    """Bytes whose checksum is missing or wrong, with the reason."""


def sealed(table: pa.Table) -> bytes:
    """A table as a Parquet file with a checksum."""
    metadata = {**(table.schema.metadata or {}), _KEY: _BLANK}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    data = buffer.getvalue()
    place = _place(data)
    if place is None or data[place : place + 64] != _BLANK:
        raise RuntimeError(f"pyarrow {pa.__version__} writes metadata in a form unknown here")
    return data[:place] + _digest(data, place) + data[place + 64 :]


def unsealed(data: bytes) -> pa.Table:
    """The table of a file of `sealed`.

    Raises:
        SealError: the file carries no checksum, or not the one of its bytes.
    """
    place = _place(data)
    if place is None:
        raise SealError("it carries no checksum, so it is cut short or no part that a sweep wrote")
    if data[place : place + 64] != _digest(data, place):
        raise SealError("its checksum is not that of its content")
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise SealError(str(error).splitlines()[0]) from error


def _place(data: bytes) -> int | None:
    """Where the checksum stands: metadata is the last thing in a file that can hold the key."""
    key = data.rfind(_KEY + _BETWEEN)
    return None if key < 0 else key + len(_KEY + _BETWEEN)


def _digest(data: bytes, place: int) -> bytes:
    digest = hashlib.sha256(data[:place])
    digest.update(_BLANK)
    digest.update(data[place + 64 :])
    return digest.hexdigest().encode()
