"""What `infer_online.py` understands, and its server: one process, one model, many sessions."""

import argparse
import asyncio
import ctypes
import gc
import hmac
import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any
from urllib.parse import urlsplit

from osum_echat import cli, logs
from osum_echat.errors import InputError
from osum_echat.serving import protocol
from osum_echat.serving.app import number
from osum_echat.serving.audio_formats import encode_file
from osum_echat.serving.feedback import recorder
from osum_echat.serving.live_metrics import LiveMetrics
from osum_echat.serving.openai_http import OpenAiRoutes, as_json, whole
from osum_echat.serving.protocol import Event, EventError
from osum_echat.serving.realtime import RealtimeSession, Service
from osum_echat.serving.session import Limits

MOST_EVENT_BYTES, MOST_UPLOAD_BYTES = 8 << 20, 26 << 20
MOST_WAITING_EVENTS = 4096              # for a client that reads slowly
LAST_EVENTS_S = 1.0                     # that the end of a reply has to be sent in, at the close
MOST_CONNECTIONS = 128                  # over HTTP, before it is answered 503
IDLE_S = 600.0                          # without an event of the client
MALLOPT = {-8: 2, -3: 32 << 20, -1: 256 << 20}      # glibc's M_ARENA_MAX, and in bytes its
                                                    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
CACHED_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
DRAIN_S = 10.0                          # that replies have to end after SIGTERM
SECRET_S, MOST_SECRETS = range(10, 7201), 1000
INSECURE_KEY = "openai-insecure-api-key."       # how browsers hand a key over
POLICY, TOO_SLOW = 1008, 1013                   # close codes
HERE = Path(__file__).parent
PAGE_FILES = ("", "live.js", "live.css", "player.js")
CSP = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:"
PAGE_HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": CSP}

LOG = logs.logger(__name__)


def parser() -> argparse.ArgumentParser:
    """The options of infer_online.py."""
    made = cli.OneLineParser(
        prog="infer_online.py",
        description="Talk to the model live: a server that speaks OpenAI's Realtime and audio "
        "protocols, and a page at its root.",
    )
    cli.add_model(made)
    add = made.add_argument
    add("--host", default="127.0.0.1", help="default: this machine only")
    add("--port", type=number(int, 65536), default=8000)
    add("--sessions", type=number(int), default=8, help="open at once (default: 8)")
    add("--api-key", metavar="KEY", help="that clients must show (or OSUM_API_KEY)")
    add("--allow-origin", action="append", default=[], metavar="URL",
        help="a web page that may connect beside our own; may be given again")
    add("--certfile", type=Path, help="TLS certificate; browsers want https from other machines")
    add("--keyfile", type=Path, help="its key")
    add("--turn-model", type=Path, metavar="ONNX", help="Smart Turn v3.2, for semantic_vad")
    add("--record", type=Path, metavar="DIR", help="keep each turn's sound and words there "
        "(default: nothing is kept)")
    add("--seconds", type=number(float), default=30.0, help="of a turn at most (default: 30)")
    add("--idle", type=number(float), default=IDLE_S,
        help="seconds after which a silent client is closed")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Raises InputError for options that cannot be used."""
    if (arguments.certfile is None) != (arguments.keyfile is None):
        raise InputError("--certfile and --keyfile belong together")
    if arguments.certfile is not None:
        try:
            SSLContext(PROTOCOL_TLS_SERVER).load_cert_chain(arguments.certfile, arguments.keyfile)
        except OSError as error:
            raise InputError(f"--certfile {arguments.certfile}, --keyfile {arguments.keyfile}: "
                             f"cannot be used ({error})") from error
    import uvicorn

    from osum_echat.serving.page import free_port

    free_port(arguments.host, (arguments.port,))
    service = load(arguments)
    key = arguments.api_key or os.environ.get("OSUM_API_KEY")
    server = Server(service, arguments.sessions, key, arguments.allow_origin, arguments.idle)
    config = uvicorn.Config(
        server.app(), host=arguments.host, port=arguments.port, log_level="warning",
        ws_max_size=MOST_EVENT_BYTES, ws_per_message_deflate=False, ssl_certfile=arguments.certfile,
        ssl_keyfile=arguments.keyfile, timeout_graceful_shutdown=3, server_header=False,
        limit_concurrency=MOST_CONNECTIONS + arguments.sessions,
    )  # fmt: skip
    scheme = "http" if arguments.certfile is None else "https"
    logs.out(f"{scheme}://{arguments.host}:{arguments.port}/  ({service.model})")
    served = draining(config, server.drain)
    with suppress(SystemExit, KeyboardInterrupt):
        served.run()
    if not served.started:
        raise InputError(f"{arguments.host}: port {arguments.port} cannot be opened; give another")
    return 0


def load(arguments: argparse.Namespace) -> Service:
    """The assistant and all that sessions share, warmed up."""
    from osum_echat.inference.assistant import EChat
    from osum_echat.inference.reply import Done
    from osum_echat.serving.turns import RATE_HZ, TurnModel, VoiceActivity

    _spare_memory()
    turn_model = None if arguments.turn_model is None else TurnModel(arguments.turn_model)
    assistant = EChat.load(arguments.model, **cli.loading(arguments))
    assistant.share()
    service = Service(
        assistant, Path(str(arguments.model)).name, VoiceActivity(), turn_model,
        ThreadPoolExecutor(4 * arguments.sessions, "reply"), LiveMetrics(),
        limits=Limits(audio_s=arguments.seconds), record=recorder(arguments.record),
    )  # fmt: skip
    protocol.client_events()                # what the first call would load
    *_, done = assistant.stream("hello", task="tts")
    if isinstance(done, Done) and done.reply.wave is not None:
        said = encode_file(done.reply.wave.numpy(), done.reply.sample_rate_hz or RATE_HZ, "wav")
        assistant.reply(said, speak=False)
    gc.collect()
    gc.freeze()                             # a later look for garbage leaves all this out
    return service


def _spare_memory() -> None:
    """Few malloc arenas, each of which keeps freed memory; none of it is asked of the system again
    and again for large tensors, whose pages cost more than what is computed in them. oneDNN keeps
    what it prepared for 64 shapes, not for 1024: each turn is of another length."""
    for variable, shapes in CACHED_SHAPES.items():
        os.environ.setdefault(variable, shapes)
    with suppress(OSError, AttributeError):
        for name, value in MALLOPT.items():
            ctypes.CDLL(None).mallopt(name, value)


def _return_memory() -> None:
    """Give back to the system what a session has left: objects that hold each other, and what
    malloc keeps of freed memory (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def draining(config: Any, drain: Callable[[], Awaitable[None]]) -> Any:
    """uvicorn's server, which lets replies end before it closes their connections."""
    import uvicorn

    class Draining(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            await drain()
            await super().shutdown(sockets)

    return Draining(config)


class Server:
    """Who may come, how many at once, and the routes."""

    def __init__(
        self, service: Service, sessions: int = 8, key: str | None = None,
        origins: list[str] | None = None, idle_s: float = IDLE_S,
    ) -> None:  # fmt: skip
        self.service, self.most, self.key, self.idle_s = service, sessions, key, idle_s
        self.origins = {one.rstrip("/") for one in origins or ()}
        self.routes = OpenAiRoutes(service)
        self.open: dict[str, RealtimeSession] = {}
        self.secrets: dict[str, tuple[float, Event]] = {}      # ends, and settings
        self.is_draining = False

    def app(self) -> Any:
        """The FastAPI application."""
        from fastapi import FastAPI
        from fastapi.responses import FileResponse
        from starlette.middleware import Middleware
        from starlette.middleware.cors import CORSMiddleware
        from starlette.routing import Route, WebSocketRoute

        def ready(request: Any) -> Any:
            status = "draining" if self.is_draining else "ready"
            return as_json({"status": status, "sessions": len(self.open)},
                           503 if self.is_draining else 200)  # fmt: skip

        def file(request: Any) -> Any:
            name = request.url.path.lstrip("/") or "live.html"
            return FileResponse(HERE / name, headers=PAGE_HEADERS)

        async def unknown(request: Any, error: Any) -> Any:
            return refused(EventError("not_found", f"{request.method} {request.url.path}: no such "
                                      "route", status=error.status_code))  # fmt: skip

        pages = {
            "/health": lambda _: as_json({"status": "ok"}), "/ready": ready,
            "/metrics": lambda _: whole(self.service.metrics.text(), "text/plain; charset=utf-8"),
            **{f"/{name}": file for name in PAGE_FILES},
        }  # fmt: skip
        calls = [
            ("GET", "models", self._models), ("GET", "models/{name:path}", self._models),
            ("POST", "audio/speech", answered(self.routes.speech)),
            ("POST", "audio/transcriptions", answered(self.routes.transcription)),
            ("POST", "chat/completions", answered(self.routes.chat)),
            ("POST", "realtime/client_secrets", answered(self._secret)),
        ]  # fmt: skip

        return FastAPI(
            docs_url=None, redoc_url=None, openapi_url=None,
            exception_handlers={404: unknown, 405: unknown},
            middleware=[Middleware(CORSMiddleware, allow_origins=sorted(self.origins),
                                   allow_methods=["GET", "POST"], allow_headers=["*"])],
            routes=[
                *(Route(path, answer) for path, answer in pages.items()),
                WebSocketRoute("/v1/realtime", self.live),
                *(Route(f"/v1/{path}", self._call(path, answer), methods=[method])
                  for method, path, answer in calls),
            ],
        )  # fmt: skip

    # HTTP

    def _call(self, path: str, answer: Callable[[Any], Awaitable[Any]]) -> Any:
        """A route of /v1: checked, answered, counted; an error is the protocol's object."""

        async def endpoint(request: Any) -> Any:
            try:
                self._check_origin(request.headers)
                self._check_key(_bearer(request.headers))
                made = await answer(request)
            except Exception as error:
                made = refused(error, f"/v1/{path}")
            self.service.metrics.requests.labels(f"/v1/{path}", str(made.status_code)).inc()
            return made

        return endpoint

    async def _models(self, request: Any) -> Any:
        name, own = request.path_params.get("name"), self.service.model
        model = {"id": own, "object": "model", "created": 0, "owned_by": "osum"}
        if name not in (None, own):
            raise EventError("model_not_found", f"model {name}: not served here", status=404)
        return as_json(model if name else {"object": "list", "data": [model]})

    async def _secret(self, asked: Mapping[str, Any]) -> Any:
        """POST /v1/realtime/client_secrets: a browser's key for some minutes, and its settings."""
        wanted = protocol.mapping(asked.get("expires_after"), "expires_after").get("seconds", 600)
        if wanted not in SECRET_S:
            raise protocol.invalid("expires_after.seconds", wanted, "need 10 to 7200")
        session = dict(protocol.mapping(asked.get("session"), "session"))
        protocol.SessionSettings("", "").merged(session, self.service.turn_model is not None)
        self.secrets = {key: one for key, one in self.secrets.items() if one[0] > time.time()}
        if len(self.secrets) >= MOST_SECRETS:
            raise EventError("rate_limit_exceeded", "too many secrets are open", status=429)
        value, end = f"ek_{secrets.token_hex(16)}", time.time() + wanted
        self.secrets[value] = end, session
        return as_json({"value": value, "expires_at": int(end), "session": session})

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """No web page but our own, and those allowed, may speak to a server on this machine.

        Our own has an address or localhost for a host: a name may be made to mean this machine by
        whoever owns it (DNS rebinding).
        """
        origin = headers.get("origin")
        if origin is None or origin.rstrip("/") in self.origins or "*" in self.origins:
            return
        page = urlsplit(origin)
        if page.netloc != headers.get("host") or not _is_address(page.hostname or ""):
            raise EventError("origin_not_allowed", f"origin {origin}: not allowed here; the "
                             "server's --allow-origin names those that may connect", status=403)

    def _check_key(self, given: str | None, is_temporary: bool = False) -> None:
        """is_temporary: one of a browser, which opens nothing but live sessions."""
        if self.key is None or is_temporary:
            return
        if not hmac.compare_digest((given or "").encode(), self.key.encode()):
            raise EventError("invalid_api_key", "a valid API key is needed", status=401)

    # Live sessions

    async def live(self, socket: Any) -> None:
        """A connection from its beginning to its end, whatever ends it."""
        told = socket.headers.get("sec-websocket-protocol", "")
        offered = [one.strip() for one in told.split(",") if one.strip()]
        try:
            self._check_origin(socket.headers)
            keys = [one.removeprefix(INSECURE_KEY) for one in offered if INSECURE_KEY in one]
            key = keys[0] if keys else _bearer(socket.headers)
            end, given = self.secrets.get(key or "", (0.0, {}))
            self._check_key(key, end > time.time())
        except EventError as error:
            self.service.metrics.refused.labels(error.code).inc()
            await socket.close(POLICY, str(error))
            return
        await socket.accept("realtime" if "realtime" in offered else None)
        if len(self.open) >= self.most or self.is_draining:
            self.service.metrics.refused.labels("session_limit_reached").inc()
            full = EventError("session_limit_reached", f"{self.most} sessions are open")
            refused = {**protocol.error_event(full), "event_id": protocol.make_id("event")}
            await socket.send_text(json.dumps(refused))
            await socket.close(POLICY if not self.is_draining else TOO_SLOW, str(full))
            return
        await self._serve(socket, given)

    async def _serve(self, socket: Any, given: Event) -> None:
        from fastapi import WebSocketDisconnect

        outgoing: asyncio.Queue[Event | None] = asyncio.Queue(MOST_WAITING_EVENTS)
        closing: list[asyncio.Task[None]] = []

        def send(event: Event) -> None:
            try:
                outgoing.put_nowait(event)
            except asyncio.QueueFull:
                if not closing:
                    closing.append(asyncio.create_task(socket.close(TOO_SLOW, "reads too slowly")))

        session = RealtimeSession(self.service, send, dict(socket.query_params), given)
        self.open[session.id] = session
        self.service.metrics.opened.inc()
        self.service.metrics.sessions.set(len(self.open))
        writer = asyncio.create_task(_write(socket, outgoing))
        reason = ""
        try:
            session.start()
            reason = await self._read(socket, session)
        finally:
            del self.open[session.id]
            self.service.metrics.sessions.set(len(self.open))
            await session.close()
            with suppress(asyncio.QueueFull):
                outgoing.put_nowait(None)
            await asyncio.wait([writer], timeout=LAST_EVENTS_S)
            writer.cancel()
            await asyncio.to_thread(_return_memory)
            with suppress(RuntimeError, WebSocketDisconnect):
                await socket.close(1000, reason)

    async def _read(self, socket: Any, session: RealtimeSession) -> str:
        """Client events until the end. Returns the reason of the close."""
        while True:
            left = session.expires_at - time.time()
            try:
                message = await asyncio.wait_for(socket.receive(), min(self.idle_s, max(left, 0.1)))
            except TimeoutError:
                return "session expired" if left <= self.idle_s else "idle for too long"
            if message["type"] == "websocket.disconnect":
                return ""
            session.handle(message.get("text") or message.get("bytes") or "")

    async def drain(self) -> None:
        """Take nobody in any more, and give replies some time to end."""
        self.is_draining = True
        end = time.monotonic() + DRAIN_S
        while any(one.reply is not None and one.reply.is_active for one in self.open.values()):
            if time.monotonic() > end:
                return
            await asyncio.sleep(0.05)


async def _write(socket: Any, outgoing: "asyncio.Queue[Event | None]") -> None:
    """Events in their order; a connection that is gone ends it."""
    from fastapi import WebSocketDisconnect

    with suppress(RuntimeError, OSError, WebSocketDisconnect):
        while (event := await outgoing.get()) is not None:
            await socket.send_text(json.dumps(event))


def refused(error: Exception, where: str = "") -> Any:
    """The answer of a call that failed, with the protocol's error object."""
    told = protocol.client_error(error, where)
    answer = as_json({"error": {"param": None, **told.told()}}, told.status)
    if told.status == 500:
        answer.headers["x-should-retry"] = "false"
    return answer


def answered(answer: Callable[[Mapping[str, Any]], Coroutine[Any, Any, Any]]) -> Any:
    """What answers a POST: its form or JSON is read, and the work given up where the client goes
    away."""

    async def call(request: Any) -> Any:
        request = _limited(request)
        asking = asyncio.create_task(answer(await _body(request)))

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        leaving = asyncio.create_task(gone())
        try:
            await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise EventError("client_gone", "the client went away", status=499)
            return asking.result()
        finally:
            asking.cancel()
            leaving.cancel()

    return call


def _limited(request: Any) -> Any:
    """The request, whose body raises EventError where it is too large, whatever its headers say."""
    from starlette.requests import Request

    left = MOST_UPLOAD_BYTES

    async def receive() -> Any:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            most = f"at most {MOST_UPLOAD_BYTES >> 20} MB"
            raise EventError("too_large", most, status=413)
        return message

    return Request(request.scope, receive)


async def _body(request: Any) -> Mapping[str, Any]:
    """What a call asks, as a form or in JSON."""
    from starlette.exceptions import HTTPException

    if not request.headers.get("content-type", "").startswith("multipart/"):
        return protocol.read_object(await request.body(), "the body")
    try:
        return await request.form(max_files=1, max_fields=32)
    except HTTPException as error:
        raise EventError("invalid_form", f"the body: {error.detail}") from error


def _is_address(host: str) -> bool:
    """Whether a host is this machine's own name or an address, without brackets."""
    with suppress(ValueError):
        return host == "localhost" or bool(ip_address(host))
    return False


def _bearer(headers: Mapping[str, str]) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else None

