"""Making ids. Lower-case base32, so that every id is one token of a subject, a file name and a label."""

import hashlib
import hmac
import re
import secrets

#: What a parameter of a subject may be: no dots, no wildcards, no spaces.
TOKEN = re.compile(r"^[A-Za-z0-9_-]{1,64}\Z")

#: Five bits of each byte choose a character: even, and quicker than base64.b32encode, which is Python.
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567" * 8
_LENGTH = 25


def new_id(prefix: str) -> str:
    """Return *prefix* and 25 random characters (125 bits)."""
    return prefix + _token(secrets.token_bytes(_LENGTH))


def keyed_id(prefix: str, key: bytes, *parts: str) -> str:
    """Return the one id that belongs to *parts* under *key*: the same for ever, guessed by nobody without the key."""
    text = "\x00".join(parts).encode()
    return prefix + _token(hmac.digest(key, text, hashlib.sha256)[:_LENGTH])


def new_token(prefix: str) -> str:
    """Return a bearer token of 256 random bits, e.g. ``whr_s_…``."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def _token(raw: bytes) -> str:
    return raw.translate(_ALPHABET).decode()
