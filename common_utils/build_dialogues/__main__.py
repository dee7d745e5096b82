"""Build a corpus of empathetic spoken dialogues: plan, write, check, speak, listen, pack.

    python -m common_utils.build_dialogues conf/build_dialogues.yaml --out build/dialogues

Stopped at any point, the same command goes on; no answer that came is paid for twice. What each
step dropped, and why, stands in *.report.json beside its file; the sum in OUT/corpus/README.md.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from common_utils import jobs
from common_utils.build_dialogues.check import Checking, CheckSettings, refused
from common_utils.build_dialogues.dialogue import (
    FILES,
    PORTION,
    Dialogue,
    bill,
    depends,
    read_dialogues,
)
from common_utils.build_dialogues.listen import Listening, ListenSettings
from common_utils.build_dialogues.pack import CARD, CORPUS, PackSettings, card, pack_corpus
from common_utils.build_dialogues.plan import PlanSettings, plan_dialogues, with_recordings
from common_utils.build_dialogues.speak import Speaking, SpeakSettings, check_voices
from common_utils.build_dialogues.write import WriteSettings, Writing
from common_utils.command import command
from common_utils.extract_speech_tokens import find_tokenizer
from common_utils.jobs import Job, Made, Piece, Work, digest
from osum_echat import logs
from osum_echat.files import absolute, whole_file, write_jsonl
from osum_echat.settings import override, parse, read_mapping

Step = Literal["plan", "write", "check", "speak", "listen", "pack"]
STEPS: tuple[Step, ...] = get_args(Step)


@dataclass(frozen=True, slots=True)
class Settings:
    """The YAML; conf/build_dialogues.yaml tells every setting."""

    plan: PlanSettings
    write: WriteSettings
    check: CheckSettings = field(default_factory=CheckSettings)
    speak: SpeakSettings = field(default_factory=SpeakSettings)
    listen: ListenSettings = field(default_factory=ListenSettings)
    pack: PackSettings = field(default_factory=PackSettings)
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Build:
    """One corpus: its settings, its folder, and how the work is done."""

    settings: Settings
    out: Path
    work: Work

    def calls(self, step: str) -> Path:
        return self.out / "calls" / step

    def planned(self) -> list[Dialogue]:
        own = self.settings
        return with_recordings(plan_dialogues(own.plan, own.seed), own.plan, own.seed)

    def plan(self) -> None:
        path = self.out / FILES["plan"]
        logs.out(f"{path}: {write_jsonl(path, map(asdict, self.planned()))} records")

    def write(self) -> None:
        own, thoughts = self.settings.write, self.settings.plan.thoughts
        made = Writing(own, thoughts, self.calls("write"))
        self._run("write", made, [depends(own), thoughts, Path(own.prompts)])

    def check(self) -> None:
        own = self.settings.check
        left_out = refused(own, read_dialogues(self.out / FILES["write"]))
        made = Checking(own, left_out, self.calls("check"))
        self._run("check", made, [depends(own), Path(own.rubric), Path(own.words)])

    def speak(self) -> None:
        own, seed = self.settings.speak, self.settings.seed
        made = Speaking(own, self.out, self.calls("speak"), seed)
        self._run("speak", made, [depends(own), seed])

    def listen(self) -> None:
        own = self.settings.listen
        self._run("listen", Listening(own, self.out, self.calls("listen")), [depends(own)])

    def pack(self) -> None:
        own = self.settings
        found = pack_corpus(own.pack, own.plan.counts, self.out, self.work)
        made_by = {
            "words": f"{own.write.endpoint.model} by {Path(own.write.prompts).name}",
            "second opinion": own.check.judge.model if own.check.judge else "none",
            "questions": _engine(own.speak.questions), "replies": _engine(own.speak.replies),
            "words heard by": own.listen.recognizer or "nobody",
            "speech tokens": Path(own.pack.tokenizer).name,
        }  # fmt: skip
        place = self.out / CORPUS / CARD
        with whole_file(place) as file:
            file.write(card(own.pack, found, made_by, self._summary()).encode())
        asked = sum(own.plan.counts.values())
        logs.out(f"{place}: {found['dialogues']} of {asked} dialogues, rows: {found['rows']}")

    def _run(self, name: str, make: Callable[[Piece], Made], given: Sequence[Any]) -> None:
        """Make every portion that is not made yet. given: what all portions depend on."""
        source = self.out / FILES[STEPS[STEPS.index(name) - 1]]
        portions = jobs.pieces(source, PORTION)
        job = Job(self.out / FILES[name], digest(name, *given, source), make, [source], self.work)
        logs.out(str(jobs.run(job, portions, f"{name}, {PORTION} dialogues at a time")))

    def _summary(self) -> dict[str, dict[str, Any]]:
        """What each step kept and dropped, and its bill."""
        summary: dict[str, dict[str, Any]] = {}
        for name in STEPS[1:-1]:
            raw = json.loads(jobs.report_path(self.out / FILES[name]).read_bytes())
            dropped = Counter(reason for reason, _ in raw["left_out"])
            summary[name] = {"kept": raw["written"], "dropped": dropped,
                             "bill": bill(self.calls(name))}  # fmt: skip
        return summary


def _engine(one: Any) -> str:
    return str(one.endpoint.model if one.engine == "endpoint" else
               one.model if one.engine == "model" else "espeak-ng, Kokoro, Piper")  # fmt: skip


def make(
    config: Path, settings: tuple[str, ...] = (), /, *, work: Work,
    out: Path = Path("build/dialogues"), steps: tuple[Step, ...] = STEPS,
) -> None:  # fmt: skip
    """Do some steps, or all; what is wrong with voices or tokenizer is told before."""
    raw = read_mapping(config)
    override(raw, settings)
    build = Build(parse(Settings, raw, str(config)), absolute(out), work)
    if "speak" in steps:
        check_voices(build.settings.speak, build.planned())
    if "pack" in steps:
        find_tokenizer(Path(build.settings.pack.tokenizer))
    for name in STEPS:
        if name in steps:
            getattr(build, name)()


main = command(
    make, config="YAML, as conf/build_dialogues.yaml", steps="only these",
    settings="key=value over those of the YAML, such as plan.counts.emotion=60",
    out="folder (default: build/dialogues)",
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
