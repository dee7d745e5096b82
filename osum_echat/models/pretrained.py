"""Where weights come from: a model's files, the Hugging Face hub, and other models to start from.

A model is named by small or tiny, a directory, a file, hub:OWNER/NAME[/FILE], or a tar, here or at
a web address, which is unpacked once, into the cache. Parts of a model can start from a stock Qwen
(the LLM), a stock Whisper (the encoder), or another model (encoder and adapter).
"""

import os
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from torch import Tensor

from osum_echat import logs, paths, weights
from osum_echat.errors import CheckpointError
from osum_echat.files import locked, sha256_of, whole_folder
from osum_echat.models import checkpoint
from osum_echat.models.checkpoint import TEXT_HEAD, TEXT_TABLE, settings_file, weights_file
from osum_echat.models.echat import EChatModel
from osum_echat.models.encoder import Encoder, EncoderSettings
from osum_echat.models.settings import COPY, read_llm_config
from osum_echat.settings import read_mapping

TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
TOKENIZER_PLACES = ("", "llm", "tokenizer")
TOKEN2WAV_PLACES = ("token2wav", "CosyVoice-300M-25Hz", "CosyVoice-300M-25Hz.tar")

HUB = "hub:"
HUB_NAME = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+))?")
SMALL_FILES = ("*.yaml", "*.json", "*.txt", "*.jinja", "*.md")  # settings, tokenizer, index
OWN_FILES = ("*.safetensors", "token2wav/*")
RESUMED_BYTES = 2**26           # from here on, what came of a file is kept when it breaks off
SHA256 = re.compile(r"[0-9a-f]{64}")    # what the hub names a large file by

TAR_ENDS = (".tar", ".tar.gz", ".tgz")
WEB = ("https://", "http://")
WAIT_S = 1800.0                 # for another process that fetches the same tar
SILENCE_S = 60.0                # of a server, before it is given up

LLM = "llm."
LLM_CONFIG_FILE = "config.json"
PROJECTION = "adapter.projection."      # to the width of the LLM, which may be another

WHISPER_HEAD_WIDTH = 64         # in every Whisper
WHISPER_NAMES = (               # of transformers or of OpenAI, and ours
    (r"^model\.", ""),
    (r"^encoder\.conv1\.", "embed.conv.0."),
    (r"^encoder\.conv2\.", "embed.conv.2."),
    (r"^encoder\.(?:layer_norm|ln_post)\.", "after_norm."),
    (r"^encoder\.(?:layers|blocks)\.(\d+)\.", r"encoders.\1."),
    (r"\.(?:self_)?attn\.([qkv])(?:_proj|uery|ey|alue)\.", r".self_attn.linear_\1."),
    (r"\.(?:self_attn\.out_proj|attn\.out)\.", ".self_attn.linear_out."),
    (r"\.(?:self_attn_layer_norm|attn_ln)\.", ".norm1."),
    (r"\.(?:final_layer_norm|mlp_ln)\.", ".norm2."),
    (r"\.(?:fc1|mlp\.0)\.", ".feed_forward.w_1."),
    (r"\.(?:fc2|mlp\.2)\.", ".feed_forward.w_2."),
)

LOG = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """weights: a file or an index of files; settings: ours or upstream's."""

    weights: Path
    settings: Path

    @property
    def home(self) -> Path:
        """The directory that the weights lie in."""
        return self.weights.parent

    def settings_yaml(self) -> dict[str, Any]:
        """The settings file as plain values."""
        return read_mapping(self.settings, CheckpointError, COPY)

    def tokenizer(self) -> Path:
        """The directory of the tokenizer: beside weights or settings, or as the settings say.

        Raises CheckpointError naming the places where it was looked for.
        """
        raw = self.settings_yaml()
        homes = (self.home, self.settings.parent)
        places = [home / name for home in homes for name in TOKENIZER_PLACES]
        for named in (raw.get("tokenizer"), raw.get("llm_path")):
            if isinstance(named, str):
                places += [self.settings.parent / named, Path(named)]
        for place in places:
            if any((place / name).is_file() for name in TOKENIZER_FILES):
                return place
        looked = ", ".join(dict.fromkeys(str(place) for place in places))
        raise CheckpointError(
            f"{self.weights}: no tokenizer ({' or '.join(TOKENIZER_FILES)}) in {looked}; put the "
            "LLM's there, or give --tokenizer DIR"
        )

    def token2wav(self) -> Path:
        """The directory or tar of token to wav beside the weights; it may not exist."""
        places = [self.home / name for name in TOKEN2WAV_PLACES]
        return next((place for place in places if place.exists()), places[0])


def find(place: str | Path, config: str | Path | None = None) -> ModelFiles:
    """The parts of a source: a directory, a file, or hub:OWNER/NAME[/FILE].

    config: the settings; None: those beside the weights, or the published ones for a lone file.
    Raises CheckpointError naming what is not there.
    """
    path = weights_file(local(place))
    if config is None:
        return ModelFiles(path, settings_file(path))
    if not Path(config).is_file():
        raise CheckpointError(f"{config}: no such settings; give a model.yaml")
    return ModelFiles(path, Path(config))


def is_hub(place: object) -> bool:
    """True for a source that names a repository of the hub."""
    return str(place).startswith(HUB)


def fetch(place: str, cache: Path | None = None, names: Sequence[str] = ()) -> Path:
    """Fetch a source and return where it lies: the file, or the directory of the whole model.

    Files that are there are not fetched again, a connection that breaks off or a process that ends
    is taken up where it stopped, and without a network the cache is enough. cache: None is the
    hub's own; names: the files wanted of a whole repository, none: those of a model. Raises
    CheckpointError.
    """
    found = HUB_NAME.fullmatch(place)
    if found is None or ".." in place:
        raise CheckpointError(f"{place}: write it as hub:OWNER/NAME or hub:OWNER/NAME/FILE")
    import httpx2  # the hub's HTTP client, whose errors come through
    from huggingface_hub import errors

    try:
        return _fetch(found["repo"], found["file"], names, cache)
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        if isinstance(error, errors.RepositoryNotFoundError):       # GatedRepoError is one too
            reason = "no such repository, or it needs a login (hf auth login)"
        else:
            reason = (
                "cannot be fetched, and is not in the cache "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); go online, set "
                "HF_ENDPOINT to a mirror, or download it and give its path"
            )
        raise CheckpointError(f"{place}: {reason}") from error


def _fetch(repo: str, file: str | None, names: Sequence[str], cache: Path | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT")
    files = _listed(repo, endpoint)
    wanted = [] if files is None else [file] if file else list(names) or _weights(repo, files)
    LOG.info("fetching %s from %s", ", ".join(wanted) if wanted else "the cache", repo)
    cache = cache or Path(constants.HF_HUB_CACHE)
    for name in files or ():
        if any(fnmatchcase(name, pattern) for pattern in wanted):
            _fetch_large(repo, name, cache, endpoint)
    patterns = [*SMALL_FILES, *wanted]
    folder = Path(snapshot_download(
        repo, cache_dir=cache, endpoint=endpoint, allow_patterns=patterns,
        local_files_only=files is None,
    ))  # fmt: skip
    if file and not (folder / file).is_file():
        raise CheckpointError(f"{HUB}{repo}/{file}: the repository has no such file")
    return folder / file if file else folder


def _fetch_large(repo: str, name: str, cache: Path, endpoint: str | None) -> None:
    """Put a large file where the hub's client looks for it, going on with what is there of it.

    The client itself begins a file again in each process: 7 GB are too much for that.
    """
    from huggingface_hub import file_download, utils

    url = file_download.hf_hub_url(repo, name, endpoint=endpoint)
    headers = utils.build_hf_headers()
    known = file_download.get_hf_file_metadata(url, headers=headers, endpoint=endpoint)
    if known.etag is None or known.size is None or known.size < RESUMED_BYTES:
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
        if SHA256.fullmatch(known.etag) and sha256_of(part) != known.etag:
            part.unlink()
            raise CheckpointError(f"{HUB}{repo}/{name}: came broken; fetch it again")
        part.rename(whole)


def _listed(repo: str, endpoint: str | None) -> list[str] | None:
    """The files of a repository; None: the hub cannot be asked, and the cache must do."""
    import httpx2
    from huggingface_hub import HfApi, errors

    try:
        return [str(one.rfilename) for one in HfApi(endpoint).model_info(repo).siblings or []]
    except errors.RepositoryNotFoundError:
        raise
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        LOG.warning("%s: the hub cannot be asked (%s); using the cache", repo, error)
        return None


def _weights(repo: str, files: list[str]) -> list[str]:
    """What to fetch of a whole repository. Raises CheckpointError where one must be named."""
    if any(name.endswith(".safetensors") for name in files):
        return list(OWN_FILES)
    published = sorted(name for name in files if name.endswith(".pt"))
    if len(published) == 1:
        return published
    choices = ", ".join(f"{HUB}{repo}/{name}" for name in published)
    raise CheckpointError(
        f"{HUB}{repo}: several files to choose from; give one of {choices}"
        if published
        else f"{HUB}{repo}: holds no .safetensors and no .pt"
    )


def is_packed(place: str) -> bool:
    """Whether a source is a tar."""
    return place.startswith(WEB) or (place.endswith(TAR_ENDS) and Path(place).is_file())


def unpacked(place: str) -> Path:
    """The folder of a model that comes as a tar. What is there is not fetched again.

    Raises CheckpointError for what cannot be fetched or holds no model.
    """
    name = Path(urlsplit(place).path if place.startswith(WEB) else place).name
    end = next((end for end in TAR_ENDS if name.endswith(end)), None)
    if end is None:
        raise CheckpointError(f"{place}: a model in one file ends in {', '.join(TAR_ENDS)}")
    version = place                     # a web address is taken to keep its content
    if not place.startswith(WEB):
        found = Path(place).stat()
        version = f"{Path(place).resolve()} {found.st_size} {found.st_mtime_ns}"
    told = sha256(version.encode()).hexdigest()
    folder = paths.cache() / f"{name.removesuffix(end)}-{told[:12]}"
    with locked(folder.with_name(f".{folder.name}.lock"), WAIT_S):
        if not folder.exists():
            LOG.info("%s: into %s, once", place, folder)
            with whole_folder(folder) as part:
                _unpack(place, part)
                _model(part, place)
    return _model(folder, place)


def _unpack(place: str, folder: Path) -> None:
    try:
        address = place if place.startswith(WEB) else Path(place).resolve().as_uri()
        file = urlopen(address, timeout=SILENCE_S)
        with file, tarfile.open(fileobj=file, mode="r|*") as packed:
            for member in packed:
                _extract(packed, member, folder)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        told = f"{place}: cannot be fetched or unpacked ({error})"
        raise CheckpointError(told) from error


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """As tarfile's filter `data` does, which Python 3.11.2 of Debian does not have yet."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise tarfile.TarError(f"{member.name} lies outside")
    if member.isdir():
        return
    content = packed.extractfile(member) if member.isfile() else None
    if content is None:
        raise tarfile.TarError(f"{member.name} is no file; pack what links lead to: tar -h")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with (folder / path).open("wb") as written:
        copyfileobj(content, written)


def _model(folder: Path, place: str) -> Path:
    """The folder itself or the one in it, whichever is a model."""
    found = sorted(folder.glob(paths.WHOLE)) or sorted(folder.glob(f"*/{paths.WHOLE}"))
    if len(found) != 1:
        raise CheckpointError(f"{place}: holds {len(found)} {paths.WHOLE}; pack one model's folder")
    return found[0].parent


def llm_settings(directory: Path) -> dict[str, Any]:
    """The sizes of a stock LLM, as EChatSettings.llm wants them. Raises CheckpointError."""
    raw = read_llm_config(local(directory) / LLM_CONFIG_FILE)
    # transformers leaves out what equals its own default, which is untied.
    return {**raw, "tie_word_embeddings": raw.get("tie_word_embeddings", False)}


def start_llm(model: EChatModel, directory: Path) -> None:
    """Give the LLM the weights of a stock Qwen2 or Qwen3 directory of its size.

    Raises one CheckpointError listing every key that is missing, unexpected or mis-shaped.
    """
    path = weights_file(local(directory))
    raw = {f"{LLM}{name}": value for name, value in weights.read(path).items()}
    found = checkpoint.named_as_ours(raw, model.settings.tied)
    if model.settings.tied and TEXT_TABLE in found:
        found[TEXT_HEAD] = found[TEXT_TABLE]
    weights.fill(model.llm, {name.removeprefix(LLM): one for name, one in found.items()}, path)


def start_encoder_adapter(model: EChatModel, place: Path) -> None:
    """Give encoder and adapter the weights of another model, ours or published.

    A projection to an LLM of another width is left as it is. Raises CheckpointError as `load`.
    """
    path = weights_file(local(place))
    found = checkpoint.read_weights(path)
    own, bias = model.adapter.projection, found.get(f"{PROJECTION}bias")
    if bias is not None and len(bias) != own.out_features:
        LOG.warning(
            "%s: its projection leads to an LLM of width %d, here %d: it starts anew",
            path, len(bias), own.out_features,
        )  # fmt: skip
        found |= {f"{PROJECTION}{name}": one for name, one in own.state_dict().items()}
    for name, part in (("encoder.", model.encoder), ("adapter.", model.adapter)):
        weights.fill(part, {key.removeprefix(name): one for key, one in found.items()
                            if key.startswith(name)}, path)  # fmt: skip


def local(place: str | Path) -> Path:
    """Where a source lies: fetched or unpacked; one that comes along goes by its name."""
    if is_hub(place):
        return fetch(str(place))
    return unpacked(str(place)) if is_packed(str(place)) else Path(paths.model_source(place))


def start_encoder(encoder: Encoder, source: Path) -> None:
    """Give an encoder the weights of a Whisper of the same shape.

    source: model.safetensors or pytorch_model.bin (transformers), OpenAI's .pt, or the folder
    holding one of them. Raises CheckpointError for other sizes or keys.
    """
    tensors = read_whisper(source)
    found = replace(encoder_settings(tensors), dropout=encoder.settings.dropout)
    if found != encoder.settings:
        raise CheckpointError(
            f"{source}: not the encoder's sizes: {found} there, {encoder.settings} here; change "
            "the encoder's settings"
        )
    weights.fill(encoder, tensors, source)


def encoder_settings(tensors: Mapping[str, Tensor]) -> EncoderSettings:
    """The sizes of the encoder whose weights these are (as returned by read_whisper)."""
    width, mels, _ = tensors["embed.conv.0.weight"].shape
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("encoders."))
    units = len(tensors["encoders.0.feed_forward.w_1.bias"])
    return EncoderSettings(mels, width, width // WHISPER_HEAD_WIDTH, units, blocks)


def read_whisper(source: Path) -> dict[str, Tensor]:
    """The encoder's float32 weights under our names, of transformers' or OpenAI's layout."""
    path = weights_file(source)
    found = {}
    for name, value in weights.read(path).items():
        if "encoder." not in name:
            continue
        for pattern, replacement in WHISPER_NAMES:
            name = re.sub(pattern, replacement, name)
        if name.startswith(("embed.conv.", "encoders.", "after_norm.")):
            found[name] = value.float()
    if "embed.conv.0.weight" not in found:
        raise CheckpointError(f"{path}: holds no Whisper encoder")
    return found
