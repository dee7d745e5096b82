"""Shards to combine lists: the words of each tar in a jsonl of its own, the audio left where it is.

Editing such a list edits the corpus: a line that is changed or gone needs no new tar.
"""

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common_utils import jobs
from common_utils.command import command
from common_utils.jobs import Job, Made, Report, Work, digest
from common_utils.make_shard_from_raw import UNSAID
from osum_echat.data.manifest import COMBINES_LIST, RAW_LIST, TAR_ROOT, list_shards
from osum_echat.data.sources import Dropped, Shard, json_object
from osum_echat.data.tar import is_text, make_index, open_tar
from osum_echat.errors import DataError, InputError
from osum_echat.files import Files, whole_file
from osum_echat.logs import logger
from osum_echat.records import DEFAULT_TASK

IN_TAR = "only-meta"  # what a line says in the place of audio
FORMAT = 1

LOG = logger(__name__)


def make(shards: Path, out: Path, /, work: Work, task: str | None = None) -> Report:
    """Make the lists of some tars."""
    tars = read_shards(shards)
    root = _root(tars, out)
    job = Job(
        out / COMBINES_LIST,
        digest(FORMAT, root, task, {str(tar): Files().stamp(str(tar)) for tar in tars}),
        partial(write_list, out, task), [shards, *tars], work,
    )  # fmt: skip
    whole = out / RAW_LIST
    lists = [out / f"{tar.stem}.list" for tar in tars]
    if whole in lists:
        raise InputError(f"{tars[lists.index(whole)]}: its list would be {RAW_LIST}, which holds "
                         "the lines of all; give the tar another name")  # fmt: skip
    for path in (whole, *lists):
        if path.exists() and not (job.out.exists() or jobs.journal_path(job.out).exists()):
            raise InputError(f"{path}: is there and no list of this command; choose another OUT")
    report = jobs.run(job, tars, "tars")
    with whole_file(out / TAR_ROOT) as file:
        file.write(f"{root}\n".encode())
    with whole_file(whole) as file:         # the lines of all lists together
        for name in job.out.read_text(encoding="utf-8").split("\n")[:-1]:
            file.write((out / name).read_bytes())
    return report


def read_shards(shards: Path) -> list[Path]:
    """The tars of a list, or the one tar. Raises DataError, InputError for what is no shard."""
    found = [Shard(str(shards))] if shards.suffix == ".tar" else list_shards(str(shards))
    for shard in found:
        if shard.lines is not None or not shard.tar.endswith(".tar"):
            raise InputError(f"{shards}: {shard.tar}: need plain tars, without lists of their own")
        if not Path(shard.tar).is_file():
            raise InputError(f"{shards}: {shard.tar}: no such file; check the list")
    if not found:
        raise InputError(f"{shards}: names no tar")
    return [Path(shard.tar) for shard in found]


def write_list(folder: Path, task: str | None, tar: Path) -> Made:
    """Write the jsonl of one tar; the line of the list of lists, and what was left out.

    One that was edited since the last run stays beside it.
    """
    left_out: list[Dropped] = []
    count, path = 0, folder / f"{tar.stem}.list"
    report = jobs.report_path(folder / COMBINES_LIST)
    edited = path.stat().st_mtime_ns if path.exists() and report.exists() else 0
    if edited and edited > report.stat().st_mtime_ns:
        kept = path.replace(path.with_name(f"{path.name}.before"))
        LOG.warning("%s: was edited since it was made; as it was: %s", path, kept)
    with whole_file(path) as out:
        for row in rows(tar, task):
            if isinstance(row, Dropped):
                left_out.append(row)
                continue
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
    return Made([path.name], left_out, count)


def rows(tar: Path, task: str | None = None) -> Iterator[dict[str, Any] | Dropped]:
    """A line for each utterance of a tar, in its order; what is damaged in it is told."""
    files = Files()
    index = make_index(files, str(tar))
    keys: set[str] = set()
    with open_tar(files, str(tar)) as file:
        for unit, key in enumerate(index.keys):
            fault = index.faults.get(unit)
            if fault is not None:
                yield Dropped(fault.reason, f"{tar}: {fault.detail}")
                continue
            words = {kind: data if is_text(kind) else b""
                     for kind, data in index.read(file, unit).items()}  # fmt: skip
            if key in keys:
                yield Dropped("key twice in the tar", f"{tar}: {key!r}; a line can mean one only")
                continue
            keys.add(key)
            try:
                yield _row(key, words, tar, task)
            except DataError as error:
                yield Dropped("bad record", f"{tar}: {key!r}: {error}")


def _row(key: str, words: dict[str, bytes], tar: Path, task: str | None) -> dict[str, Any]:
    """A line of the original's fields. Raises DataError for texts that cannot be used."""
    try:
        extra = json_object(words.get("extra") or b"{}", ".extra", str(tar))
        texts = {kind: data.decode("utf-8-sig") for kind, data in words.items()
                 if kind.startswith("txt")}  # fmt: skip
        own = words.get("task", b"").decode("utf-8-sig")
    except ValueError as error:
        raise DataError(f"a member that is no text ({error})") from error
    if "txt" not in texts or isinstance(extra, Dropped):
        raise DataError("no .txt" if isinstance(extra, dict) else extra.detail)
    if extra.get("question") and not extra.get("q_txt"):
        extra["q_txt"] = extra["question"]
    turns = {kind: texts.get(kind, IN_TAR) for kind in words if kind.startswith(("wav_", "txt_"))}
    own = own if own not in ("", UNSAID) else DEFAULT_TASK
    return {"key": key, "txt": texts["txt"], "wav": IN_TAR, **turns, "extra": extra,
            "tar_path_key": tar.stem, "task": task or own}  # fmt: skip


def _root(tars: list[Path], out: Path) -> str:
    """The folder of the tars as the root file tells it: seen from there where it is near."""
    folders = {path.parent.resolve() for path in tars}
    names = {path.name for path in tars}
    if len(folders) > 1 or len(names) < len(tars):
        raise InputError(
            f"{len(tars)} tars in {len(folders)} folders: combine lists take tars of different "
            "names in one folder; make one for each folder"
        )
    (folder,) = folders
    seen = os.path.relpath(folder, out.resolve())
    return str(folder) if seen.count(os.pardir) > 1 else seen


main = command(
    make, shards="shards_list.txt, or one .tar",
    out="folder for combines_list.txt, combines_tar_root.txt, the lists",
    task="one task tag for all utterances in place of their own",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
