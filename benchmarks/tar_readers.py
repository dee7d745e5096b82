"""Who reads tars beside us: every utterance of a corpus, its sound decoded, nothing computed of it.

webdataset reads the very tars. lhotse has a form of its own, Shar: the same wav bytes, each with a
manifest behind it, in one tar, and the words in a jsonl beside it; that is written once.
"""

import importlib.util
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import soundfile

from osum_echat.audio import decode
from osum_echat.data.manifest import open_source
from osum_echat.records import Utterance

ReadAll = Callable[[], int]  # one pass over the corpus: how many sounds it decoded


def reader(name: str, tars: Path) -> ReadAll | None:
    """A pass over the tars that a list names; None where the library is not installed."""
    if name != "ours" and importlib.util.find_spec(name) is None:
        return None
    return READERS[name](tars)


def _ours(tars: Path) -> ReadAll:
    source = open_source("shard", str(tars))

    def read_all() -> int:
        count = 0
        for unit in range(len(source)):
            for one in source.read(unit):
                if isinstance(one, Utterance) and isinstance(one.user.audio, bytes):
                    count += len(decode(one.user.audio)[0]) > 0
        return count

    return read_all


def _webdataset(tars: Path) -> ReadAll:
    """As its users read: samples of members by postfix; decoded as we decode, `extra` parsed."""
    import webdataset

    def read_all() -> int:
        count = 0
        for one in webdataset.WebDataset(tars.read_text().split(), shardshuffle=False):
            json.loads(one["extra"])
            count += len(decode(one["wav"])[0]) > 0
        return count

    return read_all


def _lhotse(tars: Path) -> ReadAll:
    """As its users read: cuts of a Shar folder, each with its words and its sound."""
    from lhotse import CutSet

    folder = shar_of(tars)

    def read_all() -> int:
        count = 0
        for cut in CutSet.from_shar(in_dir=folder):
            assert cut.custom["extra"] is not None and cut.supervisions
            count += cut.load_audio().shape[1] > 0
        return count

    return read_all


READERS: dict[str, Callable[[Path], ReadAll]] = {
    "ours": _ours, "webdataset": _webdataset, "lhotse": _lhotse,
}  # fmt: skip


def shar_of(tars: Path) -> Path:
    """The corpus in lhotse's form, a shard for each tar, in a folder beside that of the list."""
    folder = tars.parent.with_name("shar")
    done = folder.with_name("made_shar")
    if not done.exists():
        folder.mkdir(exist_ok=True)
        for number, tar in enumerate(tars.read_text().split()):
            _write_shar(folder, number, Path(tar))
        done.touch()
    return folder


def _write_shar(folder: Path, number: int, tar: Path) -> None:
    """One shard: cuts.N.jsonl and recording.N.tar. Plain, which is faster to read than gzip."""
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    cuts = folder / f"cuts.{number:06d}.jsonl"
    sounds = folder / f"recording.{number:06d}.tar"
    with cuts.open("w", encoding="utf-8") as lines, tarfile.open(sounds, "w") as shar:
        for key, members in _grouped(tar):
            info = soundfile.info(io.BytesIO(members["wav"]))
            length_s = info.frames / info.samplerate
            inside = AudioSource(type="shar", channels=[0], source="")
            recording = Recording(key, [inside], info.samplerate, info.frames, length_s)
            words = SupervisionSegment(key, key, 0.0, length_s, text=members["txt"].decode())
            custom = {"task": members["task"].decode(), "extra": json.loads(members["extra"])}
            cut = MonoCut(key, 0.0, length_s, 0, [words], recording=recording, custom=custom)
            lines.write(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n")
            _add(shar, f"{key}.wav", members["wav"])
            _add(shar, f"{key}.json", json.dumps(recording.to_dict()).encode())


def _grouped(tar: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members by postfix of every utterance of a tar."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as archive:
        for info in archive:
            key, _, postfix = info.name.rpartition(".")
            held = archive.extractfile(info)
            assert held is not None, f"{tar}: {info.name} is no file"
            found.setdefault(key, {})[postfix] = held.read()
    yield from found.items()


def _add(tar: Any, name: str, contents: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(contents)
    tar.addfile(info, io.BytesIO(contents))
