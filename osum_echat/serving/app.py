"""What `infer_gradio.py` understands, and the page's server: who may come, and how many at once."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

from osum_echat import logs
from osum_echat.cli import MODEL_HELP, OneLineParser, add_threads
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
    made = OneLineParser(prog="infer_gradio.py", description=DESCRIPTION)
    limits = Limits()
    model = made.add_argument_group("models")
    add = model.add_argument
    add("--checkpoint-a", "--model", type=model_source, default=model_source(), metavar="SOURCE",
        help=MODEL_HELP)
    add("--checkpoint-b", type=model_source, metavar="SOURCE",
        help="a second model, to answer beside the first")
    add("--config", metavar="YAML", help="the models' settings (default: beside the weights)")
    add("--tokenizer", metavar="DIR", help="of the models' LLM (default: beside the weights)")
    add("--token2wav", metavar="SOURCE", help="the model of speech: a directory or .tar of ours or "
        "of CosyVoice-300M-25Hz, or hub: (default: beside the weights)")
    add("--voice", type=Path, action="append", default=[], metavar="FILE", help="a recording or a "
        "saved voice to offer beside the model's own; give it again for more")
    add("--device", default="auto", help="auto, cpu, cuda, npu (default: auto)")
    add("--dtype", default="auto", help="auto, bf16, fp32, on a CPU int8 (default: auto)")
    add_threads(model)
    server = made.add_argument_group("server")
    add = server.add_argument
    add("--host", default=LOOPBACK, help="address to listen at; 0.0.0.0 is every one of this "
        "machine (default: %(default)s)")
    add("--port", type=_port, metavar="N", help=f"(default: the first free one from {PORT})")
    add("--share", action="store_true", help="ask Gradio for a public address (needs internet)")
    add("--auth", type=_auth, metavar="USER:PASSWORD", help="ask everybody for these")
    add("--at-once", type=_count, default=2, metavar="N",
        help="answers made at the same time (default: %(default)s)")
    add("--waiting", type=_count, default=16, metavar="N",
        help="questions that may wait; more are turned away (default: %(default)s)")
    add("--open", action="store_true", help="open the page in this machine's browser")
    bound = made.add_argument_group("limits")
    add = bound.add_argument
    add("--seconds", type=_positive, default=limits.audio_s, metavar="S",
        help="of a recording (default: %(default)g)")
    add("--megabytes", type=_positive, default=limits.audio_bytes / MEGABYTE, metavar="MB",
        help="of a sound file (default: %(default)g)")
    add("--turns", type=_count, default=limits.turns, metavar="N",
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

    sources = [source for source in (arguments.checkpoint_a, arguments.checkpoint_b) if source]
    models, voices = session.load_models(
        sources, arguments.voice, device=arguments.device, dtype=arguments.dtype,
        config=arguments.config, tokenizer=arguments.tokenizer, token2wav=arguments.token2wav,
    )  # fmt: skip
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


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 1 to 65535")
    return int(text)


def _auth(text: str) -> tuple[str, str]:
    user, _, password = text.partition(":")
    if not user or not password:
        raise argparse.ArgumentTypeError("write it as USER:PASSWORD, neither empty")
    return user, password


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number") from error
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return number
