"""The shapes in which a secret can turn up in text: as it is, and as common tools write it."""

from __future__ import annotations

import base64
import codecs
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

SHORTEST = 6
"""Secrets with fewer characters are not looked for: masking every `1` or `true` hides more than it helps."""
_SHORTEST_LINE = 8
_WRAPPED_AT = (76, 64, 60)
"""Where `base64`, `openssl` and `xxd -p` break their lines."""


def forms(secret: str) -> frozenset[str]:
    """Everything to look for, so that `secret` is found; nothing for one shorter than SHORTEST.

    As it is, its single lines, escaped for JSON, shell, HTML and Python, base64 (both alphabets, also
    as a part of something larger), base32, hexadecimal, decimal and percent codes, reversed, in other
    case, rotated by 13, and with a character between each two.
    """
    if len(secret) < SHORTEST:
        return frozenset()
    found = {secret, *_lines(secret), *_escaped(secret), *_shuffled(secret)}
    found.update(_base64(secret.encode()), _codes(secret.encode()), _percent(secret))
    return frozenset(form for form in found if len(form) >= SHORTEST)


def _lines(secret: str) -> Iterator[str]:
    lines = [line.strip() for line in secret.splitlines()]
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _SHORTEST_LINE)
        yield secret.strip()
        yield "\r\n".join(secret.splitlines())


def _escaped(secret: str) -> Iterator[str]:
    as_json = json.dumps(secret)[1:-1]
    yield as_json
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield json.dumps(as_json)[1:-1]
    yield repr(secret)[1:-1]
    yield html.escape(secret)
    yield html.escape(secret, quote=False)
    yield secret.replace("'", "'\\''")
    yield secret.replace("'", "'\"'\"'")
    yield re.sub(r'(["\\$`])', r"\\\1", secret)
    yield re.sub(r"([^\w@%+=:,./-])", r"\\\1", secret, flags=re.ASCII)
    yield "".join(f"\\u{unit:04x}" for unit in _utf16(secret))


def _utf16(secret: str) -> Iterator[int]:
    data = secret.encode("utf-16-be", errors="surrogatepass")
    return (int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))


def _shuffled(secret: str) -> Iterator[str]:
    yield secret[::-1]
    yield secret.upper()
    yield secret.lower()
    yield codecs.encode(secret, "rot13")
    for between in (" ", "-", "\n", ".", "_"):
        yield between.join(secret)


def _base64(data: bytes) -> Iterator[str]:
    whole = base64.b64encode(data).decode()
    yield whole
    yield whole.translate(_URL_SAFE)
    yield whole[::-1]
    yield from _wrapped(whole)
    yield base64.b32encode(data).decode().rstrip("=")
    for before in range(3):
        core = _inner_base64(data, before)
        yield core
        yield core.translate(_URL_SAFE)


_URL_SAFE = str.maketrans("+/", "-_")


def _inner_base64(data: bytes, before: int) -> str:
    """What is sure to appear when `data` stands after `before` bytes (modulo 3) of something larger.

    The characters at both ends mix its bits with the neighbours' and are left out.
    """
    encoded = base64.b64encode(bytes(before) + data).decode()
    return encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]


def _wrapped(text: str) -> Iterator[str]:
    for width in _WRAPPED_AT:
        if len(text) > width:
            yield "\n".join(text[i : i + width] for i in range(0, len(text), width))


def _codes(data: bytes) -> Iterator[str]:
    pairs = [f"{byte:02x}" for byte in data]
    plain = "".join(pairs)
    yield from (plain, plain[::-1], *_wrapped(plain))
    yield " ".join(plain[i : i + 4] for i in range(0, len(plain), 4))
    for between in (" ", ":", "-", "\\x", ",0x", ", 0x", " 0x"):
        yield between.join(pairs)
        yield between.join(pairs).upper().replace("X", "x")
    yield plain.upper()
    for between in (" ", ",", ", "):
        yield between.join(str(byte) for byte in data)
    yield " ".join(f"{byte:03o}" for byte in data)
    yield "".join(f"\\{byte:03o}" for byte in data)
    yield "".join(f"{byte:08b}" for byte in data)


def _percent(secret: str) -> Iterator[str]:
    for one in (quote(secret), quote(secret, safe=""), quote_plus(secret)):
        yield one
        yield re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), one)
        yield quote(one, safe="")
    every = "".join(f"%{byte:02X}" for byte in secret.encode())
    yield every
    yield every.lower()
