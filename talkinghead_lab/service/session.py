"""The cookie that stands for the token in a browser, whose players and event streams send no other header."""

import hashlib
import hmac

COOKIE = "session"


def session_value(token: str) -> str:
    """What the cookie holds in place of the token; it changes with the token."""
    return hmac.new(token.encode(), b"session", hashlib.sha256).hexdigest()
