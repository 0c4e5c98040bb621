"""Reading zip archives nobody trusts.

A strict reader of our own: what two zip readers could take for different things is refused, so that
what was checked is what gets extracted, here and elsewhere. Every entry must lie where the directory
says, next to the one before, with nothing hidden between; names must be plain relative paths that mean
one file on every file system; sizes and checksums must be true. Nothing is held in memory but the list
of entries: contents come in pieces. Archives within archives stay files.

Format: APPNOTE.TXT 6.3.9 (PKWARE). Sizes are in bytes.
"""

from __future__ import annotations

import stat
import struct
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO

from agent_runner.errors import ArtifactError

SCRIPT_SUFFIXES = frozenset({".sh", ".py", ".js", ".ts", ".rb", ".pl"})
"""Files which are made executable whatever the archive says (reference: skill-architecture)."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_PATCH = 0x0020
_DESCRIPTOR = 0x0008
_UTF8 = 0x0800
_STORED, _DEFLATED = 0, 8
_DESCRIPTOR_SIZES = (0, 12, 16, 20, 24)
_NEWEST = 63
"""Version 6.3 of the format."""
_DOS_REPARSE_POINT = 0x0400
_UNICODE_PATH = 0x7075
_MAX_SHORT, _MAX_LONG = 0xFFFF, 0xFFFFFFFF
_PIECE = 1 << 16
_SMALL = 1 << 20
"""Up to this size an entry may be compressed as well as it can be."""
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may be.

    Attributes:
        compressed_bytes: size of the archive.
        uncompressed_bytes: of all its files.
        file_bytes: of one file.
        ratio: uncompressed over compressed size of one entry over 1 MiB.
        entries: files and directories.
        name_bytes: length of one path.
        depth: names in one path.
    """

    compressed_bytes: int = 100 << 20
    uncompressed_bytes: int = 500 << 20
    file_bytes: int = 256 << 20
    ratio: int = 100
    entries: int = 10_000
    name_bytes: int = 512
    depth: int = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or directory.

    Attributes:
        name: relative path without `.` or `..`, its parts joined by `/`; no `/` at the end.
        executable: the archive says so, or the suffix is one of a script.
    """

    name: str
    is_dir: bool
    size: int
    executable: bool
    _offset: int = field(repr=False)
    _packed: int = field(repr=False)
    _deflated: bool = field(repr=False)
    _checksum: int = field(repr=False)

    @property
    def mode(self) -> int:
        """Permissions it gets when it is extracted."""
        return 0o755 if self.is_dir or self.executable else 0o644


@dataclass(frozen=True, slots=True)
class _Record:
    """A line of the central directory, as it stands there."""

    name: bytes
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    attributes: int
    offset: int
    extra: bytes


def read_entries(file: BinaryIO, limits: ArchiveLimits) -> list[Entry]:
    """Read the list of entries and check everything but contents.

    Raises:
        ArtifactError: it is no archive, or not one that can be trusted; names the entry.
    """
    size = file.seek(0, 2)
    if size > limits.compressed_bytes:
        raise ArtifactError(f"The archive has more than {limits.compressed_bytes} bytes.")
    count, start, end = _find_directory(file, size, limits)
    entries: list[Entry] = []
    spans: list[tuple[int, int, bool]] = []
    names = _Names(limits)
    total = 0
    for record in _read_directory(file, count, start, end, limits):
        entry, span = _check_record(file, record, start, limits)
        names.add(entry)
        total += entry.size
        if total > limits.uncompressed_bytes:
            raise ArtifactError(
                f"The archive unpacks to more than {limits.uncompressed_bytes} bytes; "
                f"{_shown(entry.name)} is where it gets too large."
            )
        entries.append(entry)
        spans.append(span)
    _check_spans(spans, entries, start)
    return entries


def read_file(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """Yield an entry's content in pieces of at most 64 KiB.

    Raises:
        ArtifactError: it is not what the directory says. What was yielded until then is worthless.
    """
    done = checksum = 0
    for piece in _unpack(file, entry):
        done += len(piece)
        if done > entry.size:
            raise ArtifactError(
                f"{_shown(entry.name)} unpacks to more than the {entry.size} bytes it declares."
            )
        checksum = zlib.crc32(piece, checksum)
        yield piece
    if done != entry.size:
        raise ArtifactError(
            f"{_shown(entry.name)} unpacks to {done} bytes, not the {entry.size} it declares."
        )
    if checksum != entry._checksum:
        raise ArtifactError(f"{_shown(entry.name)} is damaged: its checksum is wrong.")


def check_contents(file: BinaryIO, entries: Sequence[Entry]) -> None:
    """Read every entry through.

    Raises:
        ArtifactError: one is not what the directory says.
    """
    for entry in entries:
        for _ in read_file(file, entry):
            pass


def _unpack(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    offset, left = entry._offset, entry._packed
    while left:
        file.seek(offset)
        packed = file.read(min(left, _PIECE))
        if not packed:
            raise ArtifactError(f"{_shown(entry.name)} is cut off.")
        offset, left = offset + len(packed), left - len(packed)
        if entry._deflated:
            yield from _inflate(inflater, packed, entry)
        else:
            yield packed
    if entry._deflated and not inflater.eof:
        raise ArtifactError(f"{_shown(entry.name)} is cut off.")


def _inflate(inflater: zlib._Decompress, packed: bytes, entry: Entry) -> Iterator[bytes]:
    try:
        while packed:
            if inflater.eof:
                raise ArtifactError(f"{_shown(entry.name)} has bytes after its end.")
            # The limit keeps a bomb from being unpacked at once.
            piece = inflater.decompress(packed, _PIECE)
            packed = inflater.unconsumed_tail or inflater.unused_data
            if piece:
                yield piece
        while not inflater.eof and (piece := inflater.decompress(b"", _PIECE)):
            yield piece
    except zlib.error as error:
        raise ArtifactError(f"{_shown(entry.name)} is damaged: {error}.") from None


def _find_directory(file: BinaryIO, size: int, limits: ArchiveLimits) -> tuple[int, int, int]:
    """(number of entries, start, end) of the central directory."""
    reach = min(size, _END.size + _MAX_SHORT)
    file.seek(size - reach)
    tail = file.read(reach)
    at = tail.rfind(_END_MAGIC)
    if at < 0 or len(tail) - at < _END.size:
        raise ArtifactError("This is no zip archive, or it is cut off: its directory is missing.")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    end = size - reach + at
    if end + _END.size + comment != size:
        raise ArtifactError("The archive has bytes after its end.")
    if _MAX_SHORT in (count, disk) or _MAX_LONG in (length, start):
        raise ArtifactError("The archive is in ZIP64 form, which is for archives over 4 GiB.")
    if disk or first_disk or here != count:
        raise ArtifactError("The archive is one part of several.")
    if count > limits.entries:
        raise ArtifactError(f"The archive has {count} entries; {limits.entries} are the most there may be.")
    if count == 0:
        raise ArtifactError("The archive is empty.")
    if start + length != end:
        raise ArtifactError("The archive's directory is not where it should be.")
    return count, start, end


def _read_directory(
    file: BinaryIO, count: int, start: int, end: int, limits: ArchiveLimits
) -> Iterator[_Record]:
    at = start
    for number in range(1, count + 1):
        file.seek(at)
        head = file.read(_CENTRAL.size)
        if len(head) < _CENTRAL.size or not head.startswith(_CENTRAL_MAGIC):
            raise ArtifactError(f"The archive's directory is damaged at entry {number}.")
        fields = _CENTRAL.unpack(head)
        needs, flags, method = fields[2:5]
        checksum, packed, size, name, extra, comment, disk = fields[7:14]
        attributes, offset = fields[15:]
        if name > limits.name_bytes:
            raise ArtifactError(
                f"The name of entry {number} has {name} bytes; {limits.name_bytes} are the most."
            )
        if disk:
            raise ArtifactError("The archive is one part of several.")
        if needs > _NEWEST:
            raise ArtifactError(f"Entry {number} needs a reader of a later version of the format.")
        yield _Record(
            name=file.read(name),
            flags=flags,
            method=method,
            checksum=checksum,
            packed=packed,
            size=size,
            attributes=attributes,
            offset=offset,
            extra=file.read(extra),
        )
        at += _CENTRAL.size + name + extra + comment
        if at > end:
            raise ArtifactError(f"The archive's directory is damaged at entry {number}.")
    if at != end:
        raise ArtifactError("The archive's directory has more in it than it says.")


def _check_record(
    file: BinaryIO, record: _Record, directory: int, limits: ArchiveLimits
) -> tuple[Entry, tuple[int, int, bool]]:
    """The entry, and where it lies: (start, end, whether a descriptor may follow)."""
    name = _check_name(record, limits)
    shown = _shown(name)
    _check_form(record, shown)
    is_dir = _check_kind(record, name)
    if _MAX_LONG in (record.packed, record.size, record.offset):
        raise ArtifactError(f"{shown} is in ZIP64 form, which is for files over 4 GiB.")
    if record.size > limits.file_bytes:
        raise ArtifactError(
            f"{shown} has {record.size} bytes; {limits.file_bytes} are the most for one file."
        )
    if record.size > _SMALL and record.size > record.packed * limits.ratio:
        raise ArtifactError(
            f"{shown} is packed more than {limits.ratio} to 1, as in an archive meant to burst."
        )
    data = _check_local(file, record, shown)
    end = data + record.packed
    if end > directory:
        raise ArtifactError(f"{shown} reaches beyond the files of the archive.")
    plain = name.rstrip("/")
    entry = Entry(
        name=plain,
        is_dir=is_dir,
        size=record.size,
        executable=not is_dir and _executable(record, plain),
        _offset=data,
        _packed=record.packed,
        _deflated=record.method == _DEFLATED,
        _checksum=record.checksum,
    )
    return entry, (record.offset, end, bool(record.flags & _DESCRIPTOR))


def _check_form(record: _Record, shown: str) -> None:
    if record.flags & _ENCRYPTED:
        raise ArtifactError(f"{shown} is encrypted.")
    if record.flags & _PATCH:
        raise ArtifactError(f"{shown} is a patch rather than a file.")
    if record.method not in (_STORED, _DEFLATED):
        raise ArtifactError(
            f"{shown} is packed by method {record.method}; only deflate or none is understood."
        )
    if record.method == _STORED and record.packed != record.size:
        raise ArtifactError(f"{shown} declares two sizes.")


def _check_kind(record: _Record, name: str) -> bool:
    """Whether it is a directory; only plain files and directories may be in an archive."""
    kind = stat.S_IFMT(record.attributes >> 16)
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    is_dir = name.endswith("/")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArtifactError(f"{_shown(name)} is {kinds.get(kind, 'of an unknown kind')}, not a file.")
    if record.attributes & _DOS_REPARSE_POINT and not kind:
        raise ArtifactError(f"{_shown(name)} is a link, not a file.")
    if (kind == stat.S_IFDIR and not is_dir) or (kind == stat.S_IFREG and is_dir):
        raise ArtifactError(
            f"{_shown(name)} is a file by its name and a directory by its kind, or the reverse."
        )
    if is_dir and record.size:
        raise ArtifactError(f"{_shown(name)} is a directory with content.")
    return is_dir


def _check_local(file: BinaryIO, record: _Record, shown: str) -> int:
    """Compare the header before the content with the directory; returns where the content begins."""
    file.seek(record.offset)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(_LOCAL_MAGIC):
        raise ArtifactError(f"{shown} is not where the directory says.")
    _, _, flags, method, _, _, checksum, packed, size, name, extra = _LOCAL.unpack(head)
    same = name == len(record.name) and file.read(name) == record.name
    if not same or method != record.method or flags & (_ENCRYPTED | _PATCH):
        raise ArtifactError(f"{shown} has another name or form in its own header.")
    described = flags & _DESCRIPTOR and record.flags & _DESCRIPTOR
    if not described and (checksum, packed, size) != (record.checksum, record.packed, record.size):
        raise ArtifactError(f"{shown} has another size or checksum in its own header.")
    return int(record.offset + _LOCAL.size + name + extra)


def _check_spans(spans: list[tuple[int, int, bool]], entries: list[Entry], directory: int) -> None:
    """Every byte before the directory belongs to exactly one entry."""
    order = sorted(range(len(spans)), key=lambda i: spans[i][0])
    at = 0
    slack: tuple[int, ...] = (0,)
    for i in order:
        start, end, described = spans[i]
        gap = start - at
        if gap < 0:
            raise ArtifactError(f"{_shown(entries[i].name)} overlaps another entry.")
        if gap not in slack:
            raise ArtifactError(f"There are hidden bytes before {_shown(entries[i].name)}.")
        at, slack = end, _DESCRIPTOR_SIZES if described else (0,)
    if directory - at not in slack:
        raise ArtifactError("There are hidden bytes before the archive's directory.")


def _check_name(record: _Record, limits: ArchiveLimits) -> str:
    """Decode a name and refuse what is no plain relative path. A directory's keeps its `/`."""
    raw = record.name
    try:
        # Some systems write UTF-8 without saying so; anything else is a guess, and guesses differ.
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactError(f"The name {raw[:80]!r} is not UTF-8.") from None
    if _other_path(record.extra) not in (None, raw):
        raise ArtifactError(f"{_shown(name)} has a second name.")
    if problem := name_problem(name.removesuffix("/"), limits):
        raise ArtifactError(f"{_shown(name)} {problem}.")
    return name


def name_problem(name: str, limits: ArchiveLimits) -> str:
    """What is wrong with a path in an archive, as the end of a sentence; empty when nothing."""
    if not name:
        return "is an empty name"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDIRECTIONAL for c in name):
        return "has control characters in its name"
    if "\\" in name:
        return "has a backslash in its name"
    if name.startswith("/") or (len(name) > 1 and name[1] == ":" and name[0].isascii() and name[0].isalpha()):
        return "is an absolute path"
    parts = name.split("/")
    if ".." in parts or "." in parts:
        return "leaves its directory, or names it in a roundabout way"
    if "" in parts:
        return "has an empty part in its path"
    if len(parts) > limits.depth:
        return f"is more than {limits.depth} directories deep"
    if max(len(part.encode()) for part in parts) > 255:
        return "has a part of more than 255 bytes in its path"
    return ""


class _Names:
    """Finds two names which mean one file on some file system: `A` and `a`, or `é` in two spellings."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limit = 2 * limits.entries
        # (number of the parent, name made comparable) to (own number, name, is it a directory, was it listed)
        self._nodes: dict[tuple[int, str], tuple[int, str, bool, bool]] = {}

    def add(self, entry: Entry) -> None:
        """Raises ArtifactError when the name was taken."""
        parent = 0
        parts = entry.name.split("/")
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            is_dir = entry.is_dir or not last
            key = (parent, comparable(part))
            number, before, was_dir, listed = self._nodes.get(key, (0, part, is_dir, False))
            clash = before != part or was_dir != is_dir or (last and (listed or (number and not is_dir)))
            if clash:
                other = "/".join([*parts[:i], before])
                raise ArtifactError(f"{_shown(entry.name)} and {_shown(other)} are one name on some systems.")
            if len(self._nodes) >= self._limit:
                raise ArtifactError(f"{_shown(entry.name)} is one directory too many.")
            number = number or len(self._nodes) + 1
            self._nodes[key] = (number, part, is_dir, listed or last)
            parent = number


def comparable(name: str) -> str:
    """The same text for names which differ by case or by the spelling of characters alone."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _other_path(extra: bytes) -> bytes | None:
    """The name in Info-ZIP's Unicode path field, which some readers prefer."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH:
            return extra[4 + 5 : 4 + length]
        extra = extra[4 + length :]
    return None


def _executable(record: _Record, name: str) -> bool:
    return bool((record.attributes >> 16) & 0o111) or PurePosixPath(name).suffix.lower() in SCRIPT_SUFFIXES


def _shown(name: str) -> str:
    """A name for an error message: quoted, without control characters, not too long."""
    return ascii(name if len(name) <= 120 else f"{name[:117]}...")
