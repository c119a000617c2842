"""Making ids. Lower-case base32, so that every id is one token of a subject, a file name and a label."""

import base64
import hashlib
import hmac
import re
import secrets

#: What a parameter of a subject may be: no dots, no wildcards, no spaces.
TOKEN = re.compile(r"^[A-Za-z0-9_-]{1,64}\Z")


def new_id(prefix: str) -> str:
    """Return *prefix* and 25 random characters (125 bits)."""
    return prefix + _base32(secrets.token_bytes(16))


def keyed_id(prefix: str, key: bytes, *parts: str) -> str:
    """Return the one id that belongs to *parts* under *key*: the same for ever, guessed by nobody without the key."""
    text = "\x00".join(parts).encode()
    return prefix + _base32(hmac.digest(key, text, hashlib.sha256))


def new_token(prefix: str) -> str:
    """Return a bearer token of 256 random bits, e.g. ``whr_s_…``."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().lower().rstrip("=")[:25]
