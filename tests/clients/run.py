"""Stock clients against the real server: python -m tests.clients.run [CLIENT ...]

make test-clients makes each client's environment in build/clients and runs this. A client whose
environment is missing is told as left out; one that fails a step ends the run with 1.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.online import serving
from common_utils.tiny_world.assets import AssetPaths
from osum_echat import audio, logs
from osum_echat.paths import HOUSE, TINY
from osum_echat.serving.audio_formats import FORMATS, Resampler

PLACE = HOUSE / "build" / "clients"
HERE = Path(__file__).parent
STEPS = ("connect", "turn", "break in", "second turn", "reconnect")
CLIENT_S = 900.0                # that a client may take, on a busy machine
PCM = FORMATS["audio/pcm"]


@dataclass(frozen=True)
class Client:
    """name: of its package; program: that runs its script."""

    name: str
    program: str
    script: str


CLIENTS = (Client("openai", sys.executable, "drive_openai.py"),
           Client("openai-agents", str(PLACE / "agents/bin/python"), "drive_agents.py"),
           Client("agents-realtime", "node", "drive_agents.mjs"),
           Client("pipecat", str(PLACE / "pipecat/bin/python"), "drive_pipecat.py"),
           Client("livekit", str(PLACE / "livekit/bin/python"), "drive_livekit.py"))  # fmt: skip


def write_questions() -> None:
    """The bundled questions as a microphone gives them: 24 kHz, 16 bit, without a header."""
    for number in range(3, 7):
        samples = audio.load(TINY / "samples" / f"question_{number}.wav").numpy()
        loud = np.nonzero(np.abs(samples) > 0.02)[0]
        resampler = Resampler(audio.SAMPLE_RATE_HZ, PCM.rate_hz)
        heard = resampler.push(samples[: loud[-1] + 1], last=True)
        (PLACE / f"question_{number}.pcm").write_bytes(PCM.encode(heard))


def drive(client: Client, address: str) -> dict[str, str] | None:
    """Run a client's script. Returns what it told of each step; None where it is not installed."""
    script = HERE / client.script
    if client.program == "node":
        script = Path(shutil.copy(script, PLACE / "node"))
        if not (PLACE / "node" / "node_modules").is_dir():
            return None
    if shutil.which(client.program) is None:
        return None
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["LOGURU_LEVEL"] = "WARNING"
    command = [client.program, str(script), address, str(PLACE)]
    told: dict[str, str] = {}
    try:
        ended = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, timeout=CLIENT_S
        )
        output, status = ended.stdout, f"exit code {ended.returncode}" if ended.returncode else ""
    except subprocess.TimeoutExpired as error:
        output, status = (error.stdout or b"").decode(), f"over {CLIENT_S:g} s"
    for line in output.splitlines():
        if line.startswith('{"step"'):
            step = json.loads(line)
            told[step["step"]] = step["told"]
    missing = [step for step in STEPS if step not in told]
    if status or missing:
        told["failed"] = f"{status or 'ended early'}, before: {', '.join(missing) or 'its end'}"
    return told


def main() -> int:
    """Returns 1 where a client failed."""
    PLACE.mkdir(parents=True, exist_ok=True)
    write_questions()
    chosen = [one for one in CLIENTS if not sys.argv[1:] or one.name in sys.argv[1:]]
    turn_model = AssetPaths(HOUSE / "build" / "assets").turn_model
    options = ("--turn-model", str(turn_model)) if turn_model.is_file() else ()
    found: dict[str, dict[str, str] | None] = {}
    with serving(str(TINY), *options) as (port, _):
        for client in chosen:
            told = found[client.name] = drive(client, f"http://127.0.0.1:{port}")
            for step, text in (told or {}).items():
                logs.out(f"{client.name}: {step}: {text}")
    logs.out(f"{'':16}" + "".join(f"{step:>13}" for step in STEPS))
    for name, told in found.items():
        marks = ["-" if told is None else "ok" if step in told else "FAILED" for step in STEPS]
        logs.out(f"{name:16}" + "".join(f"{mark:>13}" for mark in marks))
    return int(any(told is not None and "failed" in told for told in found.values()))


if __name__ == "__main__":
    sys.exit(main())
