"""Tells a client's server that its job has ended: a signed POST, as Standard Webhooks describes it.

Source of headers and signature: github.com/standard-webhooks/standard-webhooks.
"""

import base64
import hashlib
import hmac
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from talkinghead_lab.service.problems import Problem
from talkinghead_lab.service.settings import ServiceSettings

LOG = logging.getLogger(__name__)
PAUSES = (1.0, 5.0, 25.0, 125.0)  # seconds before each further attempt
TIMEOUT = 10.0
SENDERS = 4


class _NoRedirects(HTTPRedirectHandler):
    """A redirect could lead to a host that is not allowed."""

    def redirect_request(self, *arguments: object) -> None:
        return None


class Callbacks:
    """Sends callbacks in threads of its own, so that a slow receiver holds up nothing."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._hosts = settings.callback_host_names
        secret = settings.callback_secret
        self._secret = secret.get_secret_value().encode() if secret else b""
        self._threads = ThreadPoolExecutor(SENDERS, "callbacks")
        self._closed = threading.Event()
        self._open = build_opener(_NoRedirects).open

    def check(self, url: str | None) -> None:
        """Refuse a URL that may not be called.

        Raises:
            Problem: 422.
        """
        if url is None:
            return
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise Problem(422, "`callback_url`: not a URL.") from None
        if parts.scheme not in ("http", "https") or not host or parts.username or not url.isascii():
            raise Problem(422, "`callback_url`: an http or https URL without user name is needed.")
        if host not in self._hosts:
            raise Problem(422, "`callback_url`: its host is not one of CALLBACK_HOSTS.")

    def send(self, url: str, job_id: str, body: bytes) -> None:
        """Send `body` as soon as a thread is free; failed attempts are repeated."""
        if not self._closed.is_set():
            self._threads.submit(self._deliver, url, job_id, body)

    def close(self) -> None:
        """Give up what was not delivered."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, url: str, job_id: str, body: bytes) -> None:
        for attempt, pause in enumerate((*PAUSES, None), start=1):
            reason = self._attempt(url, job_id, body)
            if reason is None:
                LOG.info("callback delivered", extra={"job": job_id, "attempt": attempt})
                return
            if pause is None or self._closed.wait(pause):
                LOG.warning("callback not delivered", extra={"job": job_id, "reason": reason})
                return

    def _attempt(self, url: str, job_id: str, body: bytes) -> str | None:
        """Send once; returns why it failed."""
        headers = {"Content-Type": "application/json"} | signed(self._secret, job_id, int(time.time()), body)
        try:
            with self._open(Request(url, body, headers, method="POST"), timeout=TIMEOUT):
                return None
        except HTTPError as error:
            return f"status {error.code}"
        except (OSError, ValueError) as error:
            return type(error).__name__


def signed(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that prove a message to a receiver who knows the secret."""
    content = f"{message_id}.{timestamp}.".encode() + body
    digest = base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
    return {
        "Webhook-Id": message_id,
        "Webhook-Timestamp": str(timestamp),
        "Webhook-Signature": f"v1,{digest}",
    }
