"""Models from the Hugging Face hub: hub:OWNER/NAME or hub:OWNER/NAME/FILE, fetched once."""

import hashlib
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from osum_echat import logs
from osum_echat.errors import CheckpointError

PREFIX = "hub:"
NAME = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+))?")
SMALL = ("*.yaml", "*.json", "*.txt", "*.jinja", "*.md")  # settings, tokenizer, index of weights
WHOLE = ("*.safetensors", "token2wav/*")
LARGE = 2**26  # bytes; from here on a file is kept while it comes
SHA256 = re.compile(r"[0-9a-f]{64}")  # what the hub names a large file by
LOG = logs.logger(__name__)


def is_hub(place: object) -> bool:
    """True for a source that names a repository of the hub."""
    return str(place).startswith(PREFIX)


def fetch(place: str, cache: Path | None = None, names: Sequence[str] = ()) -> Path:
    """Fetch a source and return where it lies: the file, or the directory of the whole model.

    Files that are there are not fetched again, a connection that breaks off or a process that ends
    is taken up where it stopped, and without a network the cache is enough. cache: None is the
    hub's own; names: the files wanted of a whole repository, none: those of a model. Raises
    CheckpointError.
    """
    found = NAME.fullmatch(place)
    if found is None or ".." in place:
        raise CheckpointError(f"{place}: write it as hub:OWNER/NAME or hub:OWNER/NAME/FILE")
    import httpx2  # the hub's HTTP client, whose errors come through
    from huggingface_hub import errors

    try:
        return _fetch(found["repo"], found["file"], names, cache)
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise CheckpointError(
            f"{place}: no such repository, or it needs a login (huggingface-cli login)"
        ) from error
    except CheckpointError:
        raise
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{place}: cannot be fetched, and is not in the cache ({type(error).__name__}: "
            f"{reason}); go online, set HF_ENDPOINT to a mirror, or download it and give its path"
        ) from error


def _fetch(repo: str, file: str | None, names: Sequence[str], cache: Path | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT")
    files = _listed(repo, endpoint)
    wanted = [] if files is None else [file] if file else list(names) or _weights(repo, files)
    LOG.info("fetching %s from %s", ", ".join(wanted) if wanted else "the cache", repo)
    cache = cache or Path(constants.HF_HUB_CACHE)
    for name in files or ():
        if any(fnmatchcase(name, pattern) for pattern in wanted):
            _bring(repo, name, cache, endpoint)
    folder = Path(
        snapshot_download(
            repo, cache_dir=cache, endpoint=endpoint, allow_patterns=[*SMALL, *wanted],
            local_files_only=files is None,
        )
    )  # fmt: skip
    if file and not (folder / file).is_file():
        raise CheckpointError(f"{PREFIX}{repo}/{file}: the repository has no such file")
    return folder / file if file else folder


def _bring(repo: str, name: str, cache: Path, endpoint: str | None) -> None:
    """Put a large file where the hub's client looks for it, going on with what is there of it.

    The client itself begins a file again in each process: 7 GB are too much for that.
    """
    from huggingface_hub import file_download, utils

    url = file_download.hf_hub_url(repo, name, endpoint=endpoint)
    headers = utils.build_hf_headers()
    known = file_download.get_hf_file_metadata(url, headers=headers, endpoint=endpoint)
    if known.etag is None or known.size is None or known.size < LARGE:
        return
    folder = cache / file_download.repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    whole, part = folder / known.etag, folder / f"{known.etag}.part"
    with utils.WeakFileLock(part.with_suffix(".lock")), part.open("ab") as file:
        if whole.exists():
            part.unlink()
            return
        if file.tell() > known.size:
            file.seek(0)
            file.truncate()
        if file.tell():
            LOG.info("%s: going on at %d of %d MB", name, file.tell() >> 20, known.size >> 20)
        file_download.http_get(
            url, file, resume_size=file.tell(), headers=headers, expected_size=known.size,
            displayed_filename=name,
        )  # fmt: skip
        file.flush()
        if SHA256.fullmatch(known.etag) and _sha256(part) != known.etag:
            part.unlink()
            raise CheckpointError(f"{PREFIX}{repo}/{name}: came broken; fetch it again")
        part.rename(whole)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(repo: str, endpoint: str | None) -> list[str] | None:
    """The files of a repository; None: the hub cannot be asked, and the cache must do."""
    import httpx2
    from huggingface_hub import HfApi, errors

    try:
        siblings = HfApi(endpoint=endpoint).model_info(repo).siblings or []
    except (errors.RepositoryNotFoundError, errors.GatedRepoError):
        raise
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        LOG.warning("%s: the hub cannot be asked (%s); using the cache", repo, error)
        return None
    return [one.rfilename for one in siblings]


def _weights(repo: str, files: list[str]) -> list[str]:
    """What to fetch of a whole repository. Raises CheckpointError where one must be named."""
    if any(name.endswith(".safetensors") for name in files):
        return list(WHOLE)
    published = sorted(name for name in files if name.endswith(".pt"))
    if len(published) == 1:
        return published
    choices = ", ".join(f"{PREFIX}{repo}/{name}" for name in published)
    raise CheckpointError(
        f"{PREFIX}{repo}: several files to choose from; give one of {choices}"
        if published
        else f"{PREFIX}{repo}: holds no .safetensors and no .pt"
    )
