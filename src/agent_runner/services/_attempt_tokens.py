"""The tokens by which an attempt shows that it is the one which took the execution."""

from __future__ import annotations

import hashlib
import hmac


def digest_of(token: str) -> bytes:
    """What is kept of a token. It is as random as a key, so no salt and no slow hash are needed."""
    return hashlib.sha256(token.encode()).digest()


def is_token(token: str, digest: bytes) -> bool:
    """Whether it is the token that was kept; an attempt that was given none has no token at all."""
    return bool(token) and hmac.compare_digest(digest_of(token), digest)
