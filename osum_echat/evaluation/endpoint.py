"""A chat endpoint that speaks OpenAI's protocol, asked with patience."""

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from osum_echat import logs
from osum_echat.errors import InputError

LOG = logs.logger(__name__)
DEFAULT_URL = "https://api.openai.com/v1"
LARGEST_ANSWER_BYTES = 8 << 20
LONGEST_WAIT_S = 120.0
WORTH_RETRYING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class EndpointError(RuntimeError):
    """No answer after all tries; asking again later may help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. texts: one a choice; tries: HTTP requests that it took."""

    texts: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    tries: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask and how long. key: of the account, never shown or stored."""

    url: str
    key: str = field(repr=False, default="")
    timeout_s: float = 60.0
    tries: int = 6
    first_wait_s: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"OPENAI_BASE_URL {self.url!r}: need http(s)://host, such as {DEFAULT_URL}"
            )

    @classmethod
    def from_environment(cls, timeout_s: float, tries: int) -> "Endpoint":
        """OPENAI_BASE_URL (default: OpenAI's own) and OPENAI_API_KEY."""
        url = os.environ.get("OPENAI_BASE_URL", DEFAULT_URL)
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key and url == DEFAULT_URL:
            raise InputError("OPENAI_API_KEY is not set; set it, or OPENAI_BASE_URL of a server "
                             "that needs none, or take --judge rules-v1")
        return cls(url, key, timeout_s, tries)

    def ask(
        self, model: str, messages: Sequence[dict[str, str]], temperature: float, n: int, seed: int
    ) -> Answer:
        """One request, again after a growing pause where that may help.

        Raises InputError for what the user must put right (401, 404 ...), else EndpointError.
        """
        body = {"model": model, "messages": list(messages), "temperature": temperature,
                "n": n, "seed": seed}  # fmt: skip
        rng = random.Random(seed)
        reason = ""
        for attempt in range(1, self.tries + 1):
            try:
                return _answer(self._post(body), attempt)
            except urllib.error.HTTPError as error:
                reason, wanted_s = self._status(error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, wanted_s = f"{type(error).__name__}: {error}", 0.0
            if attempt < self.tries:
                pause_s = self.first_wait_s * 2 ** (attempt - 1) * rng.uniform(0.75, 1.25)
                pause_s = min(LONGEST_WAIT_S, max(pause_s, wanted_s))
                LOG.warning("judge: %s; try %d of %d in %.1f s",
                            reason, attempt + 1, self.tries, pause_s)  # fmt: skip
                self.sleep(pause_s)
        raise EndpointError(f"{self.url}: no answer in {self.tries} tries; last: {reason}")

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.timeout_s) as response:
            data: bytes = response.read(LARGEST_ANSWER_BYTES + 1)
        if len(data) > LARGEST_ANSWER_BYTES:
            raise ValueError(f"an answer of over {LARGEST_ANSWER_BYTES >> 20} MB")
        return data

    def _status(self, error: urllib.error.HTTPError) -> tuple[str, float]:
        """What an HTTP error says, and how long it asks to wait; raises where waiting is vain."""
        with error:
            said = error.read(400).decode("utf-8", "replace").strip()
        reason = f"HTTP {error.code} {error.reason}: {said}"
        if error.code not in WORTH_RETRYING:
            raise InputError(
                f"judge at {self.url}: {reason}; check OPENAI_BASE_URL, OPENAI_API_KEY and "
                "--judge-model"
            ) from error
        after = error.headers.get("Retry-After", "")
        return reason, float(after) if after.isdigit() else 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes to the host that was named and to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _answer(data: bytes, tries: int) -> Answer:
    """Read a completion. Raises ValueError where it is none."""
    try:
        raw = json.loads(data)
        texts = tuple(str(one["message"]["content"] or "") for one in raw["choices"])
        usage = raw.get("usage") or {}
        sums = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a chat completion ({error!r})") from error
    if not texts:
        raise ValueError("a completion without choices")
    return Answer(texts, sums[0], sums[1], tries)
