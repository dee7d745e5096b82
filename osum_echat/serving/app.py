"""What `infer_gradio.py` understands, and the page's server: who may come, and how many at once."""

import argparse
import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osum_echat import cli, logs
from osum_echat.errors import InputError
from osum_echat.paths import MODELS, model_source
from osum_echat.serving.session import MEGABYTE, Limits

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
PORT = 7860
TRIED_PORTS = 20                # from PORT on, where --port names none
SAMPLES = (".wav", ".ogg")
FEEDBACK = Path("exp/feedback/feedback.jsonl")
KEPT_S = 24 * 3600              # uploads are deleted after a day
DESCRIPTION = (
    "Open a web page to talk to the model: speech or text in, words, labels, thoughts, text and "
    "speech out, over many turns. Only this machine can reach it, unless --host or --share says "
    "otherwise. Without options: the model that comes along, with both of its ways to think."
)
LOG = logs.logger(__name__)


def parser() -> argparse.ArgumentParser:
    """The options of the door."""
    made = cli.OneLineParser(
        prog="infer_gradio.py", description=DESCRIPTION, conflict_handler="resolve"
    )
    limits = Limits()
    model = made.add_argument_group("models")
    cli.add_model(model)
    add = model.add_argument
    add("--checkpoint-a", dest="model", type=model_source, metavar="SOURCE", help="as --model")
    add("--checkpoint-b", type=model_source, metavar="SOURCE",
        help="a second model, to answer beside the first")
    add("--voice", type=Path, action="append", default=[], metavar="FILE", help="a recording or a "
        "saved voice to offer beside the model's own; give it again for more")
    server = made.add_argument_group("server")
    add = server.add_argument
    add("--host", default=LOOPBACK, help="address to listen at; 0.0.0.0 is every one of this "
        "machine (default: %(default)s)")
    add("--port", type=number(int, 65536), metavar="N",
        help=f"(default: the first free one from {PORT})")
    add("--share", action="store_true", help="ask Gradio for a public address (needs internet)")
    add("--auth", type=_auth, metavar="USER:PASSWORD", help="ask everybody for these")
    add("--at-once", type=number(int), default=2, metavar="N",
        help="answers made at the same time (default: %(default)s)")
    add("--waiting", type=number(int), default=16, metavar="N",
        help="questions that may wait; more are turned away (default: %(default)s)")
    add("--open", action="store_true", help="open the page in this machine's browser")
    bound = made.add_argument_group("limits")
    add = bound.add_argument
    add("--seconds", type=number(float), default=limits.audio_s, metavar="S",
        help="of a recording (default: %(default)g)")
    add("--megabytes", type=number(float), default=limits.audio_bytes / MEGABYTE, metavar="MB",
        help="of a sound file (default: %(default)g)")
    add("--turns", type=number(int), default=limits.turns, metavar="N",
        help="earlier turns that a reply knows (default: %(default)s)")
    add("--feedback", type=Path, default=FEEDBACK, metavar="FILE", help="jsonl that opinions on "
        "replies go to, their sounds beside it (default: %(default)s)")
    return made


def run(arguments: argparse.Namespace) -> None:
    """Load the models and serve the page until it is stopped. Raises an OsumError."""
    page, options = prepare(arguments)
    if arguments.share and not arguments.auth:
        LOG.warning("--share without --auth: whoever knows the address can use the page")
    page.launch(**options)
    logs.out(f"open {page.local_url} (Ctrl-C stops it)")
    if page.share_url:
        logs.out(f"public: {page.share_url}")
    with contextlib.suppress(KeyboardInterrupt):
        page.block_thread()
    page.close(verbose=False)


def prepare(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The page with its models loaded, and the options for its `launch`."""
    # No telemetry and no looking for newer versions: the page works without internet.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    limits = Limits(
        audio_s=arguments.seconds, audio_bytes=round(arguments.megabytes * MEGABYTE),
        turns=arguments.turns,
    )  # fmt: skip
    for voice in arguments.voice:
        if not voice.is_file():
            raise InputError(f"--voice {voice}: no such file; check the path")
    from osum_echat.serving import page, session
    from osum_echat.serving.chat import ChatService
    from osum_echat.serving.feedback import Feedback

    sources = [source for source in (arguments.model, arguments.checkpoint_b) if source]
    options = cli.loading(arguments) | {"voice": None}
    models, voices = session.load_models(sources, arguments.voice, **options)
    service = ChatService(models, voices, limits, Feedback(arguments.feedback), _sounds())
    blocks = page.build(service, _samples(sources), KEPT_S)
    blocks.queue(max_size=arguments.waiting, default_concurrency_limit=arguments.at_once)
    return blocks, launch_options(arguments, limits)


def launch_options(arguments: argparse.Namespace, limits: Limits) -> dict[str, Any]:
    """How the page is served: nothing from elsewhere, and nothing more than it needs."""
    from osum_echat.serving import page

    ports = range(PORT, PORT + TRIED_PORTS) if arguments.port is None else (arguments.port,)
    return {
        "server_name": arguments.host, "server_port": page.free_port(arguments.host, ports),
        "share": arguments.share, "auth": arguments.auth, "inbrowser": arguments.open,
        "max_file_size": limits.audio_bytes, "theme": page.theme(),
        "css": (HERE / "page.css").read_text(encoding="utf-8"),
        "head": f"<script>{(HERE / 'player.js').read_text(encoding='utf-8')}</script>",
        "footer_links": [], "ssr_mode": False, "mcp_server": False, "pwa": False,
        "enable_monitoring": False, "quiet": True, "prevent_thread_lock": True,
    }  # fmt: skip


def _sounds() -> Path:
    """A folder for the sound of replies, where Gradio may serve it and deletes it after a day."""
    from gradio.utils import get_upload_folder

    folder = Path(get_upload_folder()) / f"osum_{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _samples(sources: list[str]) -> list[Path]:
    """The recordings that come with the models; beside one of ours, those of all of ours."""
    ours = [str(home) for home in MODELS.values()]
    homes = [*sources, *(ours if set(sources) & set(ours) else ())]
    folders = [Path(home) / "samples" for home in dict.fromkeys(homes)]
    return [path for folder in folders for path in sorted(folder.glob("*.*"))
            if path.suffix in SAMPLES]  # fmt: skip


def number(kind: type[int] | type[float], beyond: float = math.inf) -> Callable[[str], float]:
    """What reads an option: a number above 0, below the other."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < beyond:
            most = "" if beyond == math.inf else f" and below {beyond}"
            raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0{most}")
        return value

    return read


def _auth(text: str) -> tuple[str, str]:
    user, _, password = text.partition(":")
    if not user or not password:
        raise argparse.ArgumentTypeError("write it as USER:PASSWORD, neither empty")
    return user, password
