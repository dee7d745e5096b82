"""A server of OpenAI's HTTP interface: asked again where that may help, else told in one line."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from osum_echat.errors import InputError

Answer = TypeVar("Answer")
DEFAULT_URL = "https://api.openai.com/v1"
WAIT_S = 2.0                            # before an answer that is no completion is asked for again
PASSING = (408, 409, 429)               # statuses below 500 that may help themselves


class EndpointError(RuntimeError):
    """No answer after all tries; asking again later may help."""


class ContentRefusedError(EndpointError):
    """The server's filter does not let this text pass; asking again does not help."""


class Endpoint:
    """Chat, speech and transcriptions of one server.

    who: what the server is to the caller; setting: what names its address; advice: what to look
    at where it refuses. A key goes to the host that was named and to no other.
    """

    def __init__(
        self, who: str, url: str, key: str, timeout_s: float, tries: int,
        setting: str, advice: str,
    ) -> None:  # fmt: skip
        """Raises InputError for an address that is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{setting} {url!r}: need http(s)://host, such as {DEFAULT_URL}")
        import openai

        self.who, self.url, self.tries, self.advice = who, url, tries, advice
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=url, timeout=timeout_s, max_retries=tries - 1,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )  # fmt: skip

    def chat(self, **asked: Any) -> dict[str, Any]:
        """A chat completion: answers, prompt_tokens, completion_tokens, tries.

        Raises InputError for what the user must put right (401, 404, quota ...), else
        EndpointError.
        """

        def ask() -> dict[str, Any]:
            got = self._client.chat.completions.with_raw_response.create(**asked)
            return _completion(json.loads(got.content)) | {"tries": got.retries_taken + 1}

        return self._answer(ask)

    def speech(self, **asked: Any) -> bytes:
        """The bytes of a sound file in which a text is spoken. Raises as `chat` does."""
        return self._answer(lambda: self._client.audio.speech.create(**asked).content)

    def transcription(self, **asked: Any) -> str:
        """The words of a sound file. Raises as `chat` does."""
        return self._answer(lambda: str(self._client.audio.transcriptions.create(**asked).text))

    def _answer(self, ask: Callable[[], Answer]) -> Answer:
        """What is answered, asked for again after a growing pause where that may help."""
        import openai

        reason = ""
        for attempt in range(self.tries):
            time.sleep(WAIT_S * attempt)
            try:
                return ask()
            except openai.APIStatusError as error:
                reason = f"HTTP {error.status_code}: {error.message}"
                if error.code == "content_filter":
                    raise ContentRefusedError(f"{self.url}: {reason}") from error
                is_passing = error.status_code >= 500 or error.status_code in PASSING
                if error.code == "insufficient_quota" or not is_passing:
                    raise InputError(
                        f"{self.who} at {self.url}: {reason}; check {self.advice}"
                    ) from error
                break
            except openai.APIError as error:
                reason = f"{type(error).__name__}: {error.__cause__ or error}"
                break
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                reason = f"not an answer of this interface ({error!r})"
        raise EndpointError(f"{self.url}: no answer in {self.tries} tries; last: {reason}")


def objects_in(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in an answer; words and code fences around them do no harm."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
            yield found
        except (ValueError, RecursionError):
            pass
        start = text.find("{", start + 1)


def _completion(raw: Any) -> dict[str, Any]:
    """The texts and tokens of a completion. Raises an error of a value where it is none.

    Half a character, of an answer that was cut off, becomes a question mark.
    """
    texts = [str(one["message"]["content"] or "").encode(errors="replace").decode()
             for one in raw["choices"]]  # fmt: skip
    if not texts:
        raise ValueError("a completion without choices")
    usage = raw.get("usage") or {}
    return {"answers": texts} | {name: int(usage.get(name) or 0)
                                 for name in ("prompt_tokens", "completion_tokens")}  # fmt: skip
