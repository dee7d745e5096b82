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
from osum_echat.serving.audio_formats import encode_file
from osum_echat.serving.feedback import recorder
from osum_echat.serving.live_metrics import LiveMetrics
from osum_echat.serving.openai_http import Body, HttpError, OpenAiRoutes, as_http, sse
from osum_echat.serving.protocol import Event
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
SECRET_S, LEAST_SECRET_S, MOST_SECRET_S, MOST_SECRETS = 600, 10, 7200, 1000
INSECURE_KEY = "openai-insecure-api-key."       # how browsers hand a key over
POLICY, TOO_SLOW = 1008, 1013                   # close codes
HERE = Path(__file__).parent
PAGE_FILES = ("live.js", "live.css", "player.js")
CSP = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:"
PAGE_HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": CSP}
ROUTES = ("/v1/audio/speech", "/v1/audio/transcriptions", "/v1/chat/completions", "/v1/models",
          "/v1/realtime/client_secrets")  # fmt: skip

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
    add("--port", type=int, default=8000)
    add("--sessions", type=int, default=8, help="open at once (default: 8)")
    add("--api-key", metavar="KEY", help="that clients must show (or OSUM_API_KEY)")
    add("--allow-origin", action="append", default=[], metavar="URL",
        help="a web page that may connect beside our own; may be given again")
    add("--certfile", type=Path, help="TLS certificate; browsers want https from other machines")
    add("--keyfile", type=Path, help="its key")
    add("--turn-model", type=Path, metavar="ONNX", help="Smart Turn v3.2, for semantic_vad")
    add("--record", type=Path, metavar="DIR", help="keep each turn's sound and words there "
        "(default: nothing is kept)")
    add("--seconds", type=float, default=30.0, help="of a turn at most (default: 30)")
    add("--idle", type=float, default=IDLE_S, help="seconds after which a silent client is closed")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Raises InputError for options that cannot be used."""
    for name in ("certfile", "keyfile", "turn_model"):
        path = getattr(arguments, name)
        if path is not None and not path.is_file():
            raise InputError(f"--{name.replace('_', '-')} {path}: no such file; check the path")
    if (arguments.certfile is None) != (arguments.keyfile is None):
        raise InputError("--certfile and --keyfile belong together")
    if arguments.certfile is not None:
        try:
            SSLContext(PROTOCOL_TLS_SERVER).load_cert_chain(arguments.certfile, arguments.keyfile)
        except OSError as error:
            raise InputError(f"--certfile {arguments.certfile}, --keyfile {arguments.keyfile}: "
                             f"cannot be used ({error})") from error
    if arguments.sessions < 1:
        raise InputError(f"--sessions {arguments.sessions}: give 1 or more")
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
        raise InputError(
            f"port {arguments.port} of {arguments.host}: cannot be opened; give another --port"
        )
    return 0


def load(arguments: argparse.Namespace) -> Service:
    """The assistant and all that sessions share, warmed up."""
    from osum_echat.inference.assistant import EChat
    from osum_echat.inference.reply import Done
    from osum_echat.serving.turns import RATE_HZ, TurnModel, VoiceActivity

    _spare_memory()
    assistant = EChat.load(arguments.model, **cli.loading(arguments))
    assistant.share()
    turn_model = None if arguments.turn_model is None else TurnModel(arguments.turn_model)
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
        from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
        from starlette.middleware import Middleware
        from starlette.middleware.cors import CORSMiddleware
        from starlette.routing import Route, WebSocketRoute

        async def health(request: Any) -> Any:
            return JSONResponse({"status": "ok"})

        async def ready(request: Any) -> Any:
            status = "draining" if self.is_draining else "ready"
            return JSONResponse({"status": status, "sessions": len(self.open)},
                                503 if self.is_draining else 200)  # fmt: skip

        async def metrics(request: Any) -> Any:
            return PlainTextResponse(self.service.metrics.text())

        async def page(request: Any) -> Any:
            return FileResponse(HERE / "live.html", headers=PAGE_HEADERS)

        async def file(request: Any) -> Any:
            return FileResponse(HERE / request.url.path.lstrip("/"), headers=PAGE_HEADERS)

        async def unknown(request: Any, error: Any) -> Any:
            told = HttpError(error.status_code, "not_found",
                             f"{request.method} {request.url.path}: no such route")  # fmt: skip
            return JSONResponse(told.body(), told.status)

        return FastAPI(
            docs_url=None, redoc_url=None, openapi_url=None,
            exception_handlers={404: unknown, 405: unknown},
            middleware=[Middleware(CORSMiddleware, allow_origins=sorted(self.origins),
                                   allow_methods=["GET", "POST"], allow_headers=["*"])],
            routes=[
                Route("/", page), Route("/health", health), Route("/ready", ready),
                Route("/metrics", metrics), *(Route(f"/{name}", file) for name in PAGE_FILES),
                WebSocketRoute("/v1/realtime", self.live),
                Route("/v1/{path:path}", self._call, methods=["GET", "POST"]),
            ],
        )  # fmt: skip

    # HTTP

    async def _call(self, request: Any) -> Any:
        """Any call of /v1: checked, answered, counted; an error is the protocol's object."""
        from fastapi.responses import JSONResponse, Response, StreamingResponse

        route, status = request.url.path, 200
        try:
            self._check_origin(request.headers)
            self._check_key(_bearer(request.headers))
            body = await self._answer(request)
            if body.pieces is not None:
                pieces = body.pieces
                first = await anext(pieces, b"")    # so that an error still has its status

                async def sent() -> Any:
                    yield first
                    try:
                        async for piece in pieces:
                            yield piece
                    except Exception as error:      # too late for a status
                        LOG.exception("%s", route)
                        if body.media_type != "text/event-stream":
                            raise
                        yield sse(as_http(error).body())

                return StreamingResponse(sent(), media_type=body.media_type)
            return Response(body.whole, media_type=body.media_type)
        except Exception as error:
            told = as_http(error)
            if told.status >= 500:
                LOG.exception("%s", route)
            status = told.status
            headers = {"x-should-retry": "false"} if status == 500 else None
            return JSONResponse(told.body(), status, headers=headers)
        finally:
            label = route if route in ROUTES else "other"
            self.service.metrics.requests.labels(label, str(status)).inc()

    async def _answer(self, request: Any) -> Body:
        path = request.url.path.removeprefix("/v1/").rstrip("/")
        if request.method == "GET":
            return self._models(path)
        request = _limited(request)
        if path == "audio/transcriptions":
            form = await request.form(max_files=1, max_fields=32)
            file = form.get("file")
            if file is None or isinstance(file, str):
                raise HttpError(400, "invalid_value", "file: need a sound file", "file")
            data = await file.read()
            return await _while_there(
                request, self.routes.transcription(data, file.filename or "file", form)
            )
        routes = {"audio/speech": self.routes.speech, "chat/completions": self.routes.chat,
                  "realtime/client_secrets": self._secret}  # fmt: skip
        if path not in routes:
            raise HttpError(404, "not_found", f"/v1/{path}: no such route")
        try:
            asked = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise HttpError(400, "invalid_json", f"the body must be JSON: {error}") from error
        if not isinstance(asked, dict):
            raise HttpError(400, "invalid_json", "the body must be a JSON object")
        return await _while_there(request, routes[path](asked))

    def _models(self, path: str) -> Body:
        model = {"id": self.service.model, "object": "model", "created": 0, "owned_by": "osum"}
        if path == "models":
            return _json({"object": "list", "data": [model]})
        if path != f"models/{self.service.model}":
            raise HttpError(404, "model_not_found", f"/v1/{path}: no such model or route")
        return _json(model)

    async def _secret(self, asked: Mapping[str, Any]) -> Body:
        """POST /v1/realtime/client_secrets: a browser's key for some minutes, and its settings."""
        wanted = protocol.mapping(asked.get("expires_after"), "expires_after").get(
            "seconds", SECRET_S
        )
        if not isinstance(wanted, int) or not LEAST_SECRET_S <= wanted <= MOST_SECRET_S:
            raise HttpError(400, "invalid_value", f"expires_after.seconds: {LEAST_SECRET_S} to "
                            f"{MOST_SECRET_S}", "expires_after.seconds")  # fmt: skip
        session = dict(protocol.mapping(asked.get("session"), "session"))
        protocol.SessionSettings("", "").merged(session, self.service.turn_model is not None)
        self.secrets = {key: one for key, one in self.secrets.items() if one[0] > time.time()}
        if len(self.secrets) >= MOST_SECRETS:
            raise HttpError(429, "rate_limit_exceeded", "too many secrets are open")
        value, end = f"ek_{secrets.token_hex(16)}", time.time() + wanted
        self.secrets[value] = end, session
        return _json({"value": value, "expires_at": int(end), "session": session})

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
            raise HttpError(403, "origin_not_allowed", f"origin {origin}: not allowed here; the "
                            "server's --allow-origin names pages that may connect")  # fmt: skip

    def _check_key(self, given: str | None, is_temporary: bool = False) -> None:
        """is_temporary: one of a browser, which opens nothing but live sessions."""
        if self.key is None or is_temporary:
            return
        if not hmac.compare_digest((given or "").encode(), self.key.encode()):
            raise HttpError(401, "invalid_api_key", "a valid API key is needed")

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
        except HttpError as error:
            self.service.metrics.refused.labels(error.code).inc()
            await socket.close(POLICY, str(error))
            return
        await socket.accept("realtime" if "realtime" in offered else None)
        if len(self.open) >= self.most or self.is_draining:
            self.service.metrics.refused.labels("session_limit_reached").inc()
            full = protocol.EventError("session_limit_reached", f"{self.most} sessions are open")
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
        code, reason = 1000, ""
        try:
            session.start()
            code, reason = await self._read(socket, session)
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
                await socket.close(code, reason)

    async def _read(self, socket: Any, session: RealtimeSession) -> tuple[int, str]:
        """Client events until the end. Returns close code and reason."""
        from fastapi import WebSocketDisconnect

        while True:
            left = session.expires_at - time.time()
            try:
                message = await asyncio.wait_for(socket.receive(), min(self.idle_s, max(left, 0.1)))
            except TimeoutError:
                return 1000, "session expired" if left <= self.idle_s else "idle for too long"
            except (WebSocketDisconnect, RuntimeError):
                return 1000, ""
            if message["type"] == "websocket.disconnect":
                return 1000, ""
            await session.handle(message.get("text") or message.get("bytes") or "")

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


def _limited(request: Any) -> Any:
    """The request, whose body raises HttpError where it is too large, whatever its headers say."""
    from starlette.requests import Request

    left = MOST_UPLOAD_BYTES

    async def receive() -> Any:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HttpError(413, "too_large", f"at most {MOST_UPLOAD_BYTES >> 20} MB")
        return message

    return Request(request.scope, receive)


async def _while_there(request: Any, answer: Coroutine[Any, Any, Body]) -> Body:
    """An answer, given up where the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(answer), asyncio.create_task(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise HttpError(499, "client_gone", "the client went away")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def _is_address(host: str) -> bool:
    """Whether a host is this machine's own name or an address, without brackets."""
    with suppress(ValueError):
        return host == "localhost" or bool(ip_address(host))
    return False


def _bearer(headers: Mapping[str, str]) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else None


def _json(value: Event) -> Body:
    return Body("application/json", json.dumps(value).encode())
