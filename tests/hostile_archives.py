"""Zip archives that mean harm, or are broken, each with what its refusal must say."""

from __future__ import annotations

import random
import stat
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

GOOD = b"---\nname: good\ndescription: Does good.\n---\n# Good\n"
UTF8 = 0x0800


@dataclass
class Item:
    """One entry; what is None is computed, what is set is written as it is, true or not."""

    name: bytes | str
    data: bytes = b""
    deflate: bool = True
    mode: int = stat.S_IFREG | 0o644
    flags: int = UTF8
    method: int | None = None
    size: int | None = None
    packed: bytes | None = None
    packed_size: int | None = None
    checksum: int | None = None
    local_name: bytes | None = None
    local_size: int | None = None
    local_method: int | None = None
    offset: int | None = None
    attributes: int | None = None
    extra: bytes = b""
    system: int = 3
    before: bytes = b""
    after: bytes = b""
    disk: int = 0
    needs: int = 20

    def __post_init__(self) -> None:
        self.name = self.name.encode() if isinstance(self.name, str) else self.name

    def bytes(self) -> bytes:
        if self.packed is not None:
            return self.packed
        if not self.deflate:
            return self.data
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(self.data) + packer.flush()


@dataclass
class Zip:
    """A whole archive."""

    items: Sequence[Item] = field(default_factory=list)
    prefix: bytes = b""
    suffix: bytes = b""
    comment: bytes = b""
    count: int | None = None
    directory_shift: int = 0
    between: bytes = b""
    disk: int = 0

    def build(self) -> bytes:
        body, directory = bytearray(self.prefix), bytearray()
        for item in self.items:
            body += item.before
            offset = len(body) if item.offset is None else item.offset
            body += local(item) + item.bytes() + item.after
            directory += central(item, offset)
        start = len(body)
        count = len(self.items) if self.count is None else self.count
        end = struct.pack(
            "<4s4H2IH",
            b"PK\x05\x06",
            self.disk,
            self.disk,
            count & 0xFFFF,
            count & 0xFFFF,
            len(directory),
            start + self.directory_shift,
            len(self.comment),
        )
        return bytes(body + directory + self.between + end + self.comment + self.suffix)


def numbers(item: Item) -> tuple[int, int, int, int]:
    """(method, checksum, packed size, size)"""
    method = (8 if item.deflate else 0) if item.method is None else item.method
    checksum = zlib.crc32(item.data) if item.checksum is None else item.checksum
    packed = len(item.bytes()) if item.packed_size is None else item.packed_size
    return method, checksum, packed, len(item.data) if item.size is None else item.size


def local(item: Item) -> bytes:
    method, checksum, packed, size = numbers(item)
    name = item.name if item.local_name is None else item.local_name
    assert isinstance(name, bytes)
    return (
        struct.pack(
            "<4s5H3I2H",
            b"PK\x03\x04",
            20,
            item.flags,
            method if item.local_method is None else item.local_method,
            0,
            0x21,
            checksum,
            packed,
            size if item.local_size is None else item.local_size,
            len(name),
            0,
        )
        + name
    )


def central(item: Item, offset: int) -> bytes:
    method, checksum, packed, size = numbers(item)
    assert isinstance(item.name, bytes)
    attributes = item.mode << 16 if item.attributes is None else item.attributes
    return (
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02",
            item.system << 8 | 20,
            item.needs,
            item.flags,
            method,
            0,
            0x21,
            checksum,
            packed,
            size,
            len(item.name),
            len(item.extra),
            0,
            item.disk,
            0,
            attributes,
            offset,
        )
        + item.name
        + item.extra
    )


def skill(*items: Item, text: bytes = GOOD, **options: object) -> bytes:
    return Zip([Item("SKILL.md", text), *items], **options).build()  # type: ignore[arg-type]


def named(name: bytes | str, **options: object) -> bytes:
    return skill(Item(name, b"x", **options))  # type: ignore[arg-type]


def of_kind(kind: int) -> Callable[[], bytes]:
    return lambda: skill(Item("thing", b"/etc/passwd", mode=kind | 0o777))


def noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


def overlapping() -> bytes:
    """A bomb of the usual form: 50 entries whose content is the same bytes."""
    kernel = Item("kernel", b"\0" * (1 << 20))
    first = Zip([Item("SKILL.md", GOOD), kernel])
    start = len(local(first.items[0]) + first.items[0].bytes())
    more = [Item(f"copy{i}", b"\0" * (1 << 20), offset=start, packed=b"") for i in range(50)]
    for item in more:
        item.packed, item.packed_size = b"", len(kernel.bytes())
    body = b"".join(local(i) + i.bytes() for i in first.items)
    directory = central(first.items[0], 0) + central(kernel, start)
    directory += b"".join(central(item, start) for item in more)
    count = 2 + len(more)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def halfway_into_another() -> bytes:
    inner = local(Item("inner", b"x", deflate=False)) + b"x"
    outer = Item("outer", inner, deflate=False)
    whole = Zip([Item("SKILL.md", GOOD), outer])
    first = len(local(whole.items[0]) + whole.items[0].bytes())
    at = first + len(local(outer))
    body = b"".join(local(i) + i.bytes() for i in whole.items)
    directory = central(whole.items[0], 0) + central(outer, first)
    directory += central(Item("inner", b"x", deflate=False), at)
    return body + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 3, 3, len(directory), len(body), 0)


def lying_about_size() -> bytes:
    """Declares 100 bytes, unpacks to 50 MiB."""
    return skill(Item("small.txt", b"\0" * (50 << 20), size=100, checksum=0))


def bomb(total: int) -> bytes:
    return skill(Item("bomb.bin", b"\0" * total))


def many_bombs() -> bytes:
    """Each within the limits, together over 500 MiB."""
    piece = noise(40 << 10) + b"\0" * (4 << 20)
    one = Item("x", piece)
    packed, checksum = one.bytes(), zlib.crc32(piece)
    items = [Item(f"f{i}", b"", packed=packed, size=len(piece), checksum=checksum) for i in range(130)]
    return skill(*items)


def deep(levels: int) -> bytes:
    return named("/".join("d" * 1 for _ in range(levels)) + "/f")


def huge_directory() -> bytes:
    """10,000 entries with names of 60,000 bytes would take 600 MB; 700 are enough to see."""
    return skill(*[Item(b"n" * 60_000 + str(i).encode(), b"") for i in range(700)])


def many_directories() -> bytes:
    return skill(*[Item("/".join(f"{i}-{j}" for j in range(12)) + "/f", b"") for i in range(9000)])


def zip64_end() -> bytes:
    whole = bytearray(skill())
    at = whole.rfind(b"PK\x05\x06")
    struct.pack_into("<I", whole, at + 16, 0xFFFFFFFF)
    return bytes(whole)


def unicode_path(other: bytes) -> bytes:
    field = struct.pack("<BI", 1, zlib.crc32(b"plain.txt")) + other
    return skill(Item("plain.txt", b"x", extra=struct.pack("<HH", 0x7075, len(field)) + field))


def damaged(data: bytes, at: int, value: int = 0xFF) -> bytes:
    return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]


# -- name, archive, what the refusal says -----------------------------------------------------------

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    # names
    "absolute path": (lambda: named("/etc/passwd"), "'/etc/passwd' is an absolute path"),
    "parent directory": (lambda: named("../../etc/passwd"), r"leaves its directory"),
    "parent directory inside": (lambda: named("a/../../b"), r"'a/../../b' leaves its directory"),
    "parent directory at the end": (lambda: named("a/.."), r"leaves its directory"),
    "dot directory": (lambda: named("./a"), r"roundabout"),
    "empty part": (lambda: named("a//b"), "empty part"),
    "backslashes": (lambda: named("..\\..\\boot.ini"), "backslash"),
    "drive letter": (lambda: named("C:/boot.ini"), "absolute path"),
    "drive without slash": (lambda: named("c:boot.ini"), "absolute path"),
    "NUL in a name": (lambda: named(b"run.sh\0.txt"), "control characters"),
    "newline in a name": (lambda: named("a\nb"), "control characters"),
    "escape in a name": (lambda: named("a\x1b[2Jb"), "control characters"),
    "text turned around": (lambda: named("a\u202egnp.exe"), "control characters"),
    "line separator": (lambda: named("a\u2028b"), "control characters"),
    "empty name": (lambda: named(b""), "empty name"),
    "only a slash": (lambda: named("/", mode=stat.S_IFDIR | 0o755), "empty name|absolute"),
    "not UTF-8": (lambda: named(b"\xff\xfe.txt"), "not UTF-8"),
    "overlong UTF-8": (lambda: named(b"\xc0\xae\xc0\xae/x"), "not UTF-8"),
    "name too long": (lambda: named("n" * 600), "600 bytes"),
    "part too long": (lambda: named("n" * 300), "255 bytes"),
    "too deep": (lambda: deep(30), "deep"),
    "same name twice": (lambda: skill(Item("a", b"1"), Item("a", b"2")), "'a' and 'a' are one name"),
    "SKILL.md twice": (lambda: skill(Item("SKILL.md", b"evil")), "one name"),
    "case clash": (lambda: skill(Item("run.sh", b"1"), Item("RUN.SH", b"2")), "'RUN.SH' and 'run.sh'"),
    "case clash of SKILL.md": (lambda: skill(Item("skill.md", b"evil")), "one name"),
    "case clash of directories": (lambda: skill(Item("Lib/a", b"1"), Item("lib/b", b"2")), "one name"),
    "unicode clash": (lambda: skill(Item("caf\u00e9", b"1"), Item("cafe\u0301", b"2")), "one name"),
    "unicode clash by width": (lambda: skill(Item("a", b"1"), Item("\uff41", b"2")), "one name"),
    "sharp s clash": (lambda: skill(Item("stra\u00dfe", b"1"), Item("STRASSE", b"2")), "one name"),
    "file and directory": (lambda: skill(Item("a", b"1"), Item("a/b", b"2")), "one name"),
    "directory and file": (lambda: skill(Item("a/b", b"1"), Item("a", b"2")), "one name"),
    "second name": (lambda: unicode_path(b"../evil"), "'plain.txt' has a second name"),
    # kinds
    "symbolic link": (of_kind(stat.S_IFLNK), "'thing' is a symbolic link"),
    "symbolic link from another system": (
        lambda: skill(Item("thing", b"/etc", mode=stat.S_IFLNK | 0o777, system=19)),
        "symbolic link",
    ),
    "link and file below it": (
        lambda: skill(Item("d", b"/etc", mode=stat.S_IFLNK | 0o777), Item("d/passwd", b"x")),
        "symbolic link",
    ),
    "character device": (of_kind(stat.S_IFCHR), "a device"),
    "block device": (of_kind(stat.S_IFBLK), "a device"),
    "pipe": (of_kind(stat.S_IFIFO), "a pipe"),
    "socket": (of_kind(stat.S_IFSOCK), "a socket"),
    "unknown kind": (of_kind(0o150000), "unknown kind"),
    "reparse point": (lambda: named("l", attributes=0x400, system=0), "is a link"),
    "directory with content": (
        lambda: skill(Item("d/", b"x", mode=stat.S_IFDIR | 0o755)),
        "directory with content",
    ),
    "file named as a directory": (lambda: skill(Item("d/", b"")), "or the reverse"),
    "directory named as a file": (lambda: skill(Item("d", b"", mode=stat.S_IFDIR | 0o755)), "or the reverse"),
    # sizes
    "bomb": (lambda: bomb(60 << 20), "'bomb.bin' is packed more than 100 to 1"),
    "file over the limit": (
        lambda: skill(Item("big", b"", size=300 << 20, packed=noise(4 << 20), method=8)),
        "'big' has 314572800 bytes",
    ),
    "all files over the limit": (many_bombs, "unpacks to more than 524288000 bytes"),
    "more than it declares": (lying_about_size, "'small.txt' unpacks to more than the 100 bytes"),
    "less than it declares": (lambda: skill(Item("f", b"abc", size=5)), "unpacks to 3 bytes, not the 5"),
    "many entries of one content": (overlapping, "another name"),
    "entry inside another": (halfway_into_another, "overlaps"),
    "10,001 entries": (lambda: skill(*[Item(f"f{i}", b"") for i in range(10_000)]), "10001 entries"),
    "more directories than entries": (many_directories, "one directory too many"),
    "directory of names": (huge_directory, "name of entry 2 has 60001 bytes|not where it should be"),
    "count says fewer": (lambda: skill(Item("f", b"x"), count=1), "more in it than it says"),
    "count says more": (lambda: skill(Item("f", b"x"), count=5), "damaged at entry 3"),
    # forms
    "encrypted": (lambda: named("f", flags=UTF8 | 1), "'f' is encrypted"),
    "strongly encrypted": (lambda: named("f", flags=UTF8 | 0x41), "'f' is encrypted"),
    "encrypted directory": (lambda: named("f", flags=UTF8 | 0x2000), "'f' is encrypted"),
    "patch": (lambda: named("f", flags=UTF8 | 0x20), "patch"),
    "unknown packing": (lambda: named("f", method=12), "method 12"),
    "stored with two sizes": (lambda: skill(Item("f", b"abc", deflate=False, size=9)), "two sizes"),
    "other name in its header": (lambda: named("f", local_name=b"../f"), "another name"),
    "other size in its header": (lambda: named("f", local_size=900), "another size"),
    "other packing in its header": (lambda: named("f", local_method=0), "another name or form"),
    "wrong place": (lambda: named("f", offset=7), "not where the directory says|overlaps"),
    "place beyond the end": (lambda: named("f", offset=99_999_999), "not where"),
    "packed size beyond the end": (
        lambda: named("f", packed_size=1 << 30, flags=UTF8 | 8),
        "beyond the files",
    ),
    "ZIP64 sizes": (lambda: named("f", size=0xFFFFFFFF, packed_size=0xFFFFFFFF), "ZIP64|beyond"),
    "ZIP64 directory": (zip64_end, "ZIP64"),
    "several disks": (lambda: skill(disk=1), "one part of several"),
    "a later version of the format": (lambda: named("f", needs=255), "later version of the format"),
    "entry on another disk": (lambda: named("f", disk=3), "one part of several"),
    "bytes before": (lambda: skill(prefix=b"#!/bin/sh\necho evil\n"), "hidden bytes|no zip"),
    "bytes between entries": (
        lambda: skill(Item("f", b"x", before=b"hidden" * 9)),
        "hidden bytes before 'f'",
    ),
    "bytes before the directory": (lambda: skill(Item("f", b"x", after=b"hidden" * 9)), "hidden bytes"),
    "hidden entry": (
        lambda: skill(Item("f", b"x", before=local(Item("evil", b"y")) + Item("evil", b"y").bytes())),
        "hidden bytes",
    ),
    "bytes after": (lambda: skill(suffix=b"trailing"), "after its end"),
    "second end in the comment": (
        lambda: skill(comment=b"PK\x05\x06" + b"\0" * 18),
        "after its end|empty|not where",
    ),
    "bytes between directory and end": (
        lambda: skill(between=b"PK\x06\x07" + b"\0" * 16),
        "not where it should be",
    ),
    "shifted directory": (lambda: skill(directory_shift=-3), "not where it should be|damaged"),
    # damage
    "not a zip": (lambda: b"Hello, this is text.", "no zip"),
    "gzip": (lambda: b"\x1f\x8b\x08" + b"\0" * 50, "no zip"),
    "cut off": (lambda: skill(Item("f", noise(5000)))[:-400], "cut off|no zip"),
    "cut off in the end record": (lambda: skill()[:-5], "cut off|after its end"),
    "no bytes": (lambda: b"", "empty|no zip"),
    "no entries": (lambda: Zip([]).build(), "empty|no zip"),
    "wrong checksum": (lambda: named("f", checksum=1), "'f' is damaged: its checksum"),
    "damaged content": (lambda: named("f", packed=b"\xff" * 30), "'f' is damaged"),
    "content cut off": (
        lambda: skill(Item("f", noise(3000), packed=Item("f", noise(3000)).bytes()[:1000])),
        "'f' (is cut off|unpacks to)",
    ),
    "bytes after the content": (
        lambda: skill(Item("f", b"x", packed=Item("f", b"x").bytes() + b"hidden")),
        "'f' has bytes after its end",
    ),
    # SKILL.md
    "no SKILL.md": (lambda: Zip([Item("README.md", b"x")]).build(), "no SKILL.md"),
    "SKILL.md in a directory": (lambda: Zip([Item("my/SKILL.md", GOOD)]).build(), "'my/SKILL.md'"),
    "SKILL.md in small letters": (lambda: Zip([Item("skill.md", GOOD)]).build(), "'skill.md'"),
    "SKILL.md is a directory": (
        lambda: Zip([Item("SKILL.md/", b"", mode=stat.S_IFDIR | 0o755)]).build(),
        "no SKILL.md",
    ),
    "SKILL.md is a link": (
        lambda: Zip([Item("SKILL.md", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)]).build(),
        "symbolic link",
    ),
    "SKILL.md empty": (lambda: skill(text=b" \n"), "SKILL.md is empty"),
    "SKILL.md not UTF-8": (lambda: skill(text=b"\xff\xfe\x00a"), "SKILL.md is not UTF-8"),
    "SKILL.md with NUL": (lambda: skill(text=b"a\0b"), "NUL"),
    "SKILL.md over 1 MiB": (lambda: skill(text=noise(800_000).hex().encode()), "1048576 are the most"),
}
