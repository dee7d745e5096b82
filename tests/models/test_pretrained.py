"""Claims about the hub, models in one file, and starting from a stock LLM, a Whisper or another."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from osum_echat import EChat, paths
from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint, pretrained
from osum_echat.models.echat import EChatModel
from osum_echat.models.encoder import Encoder, EncoderSettings
from osum_echat.models.pretrained import llm_settings, start_encoder
from tests.evaluation.judge_server import Quiet, served
from tests.tiny_network import SETTINGS, network, save_published

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/echat"


class Hub:
    """What a stand-in of the hub's HTTP interface serves, and what it was asked."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        self.ranges: list[str] = []


class Handler(Quiet):
    """The few calls that fetching needs: a repository's list of files, and the files."""

    protocol_version = "HTTP/1.1"

    def __init__(self, served: Hub, *rest: object) -> None:
        self.served = served
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = self.served.files
        self.served.asked.append(f"{self.command} {path}")
        if path.startswith(f"/api/models/{REPO}/tree"):
            listed = [{"type": "file", "path": name, "size": len(data), "oid": "0"}
                      for name, data in files.items()]  # fmt: skip
            self.answer(json.dumps(listed).encode())
        elif path.startswith(f"/api/models/{REPO}"):
            names = [{"rfilename": name} for name in files]
            self.answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": names}).encode())
        elif f"/{REPO}/resolve/" in path:
            name = path.split("/resolve/")[1].partition("/")[2]
            self.answer(files.get(name, b""), *([] if name in files else [404, "EntryNotFound"]))
        else:
            self.answer(b"", 401, "RepoNotFound")

    def answer(self, data: bytes, status: int = 200, error: str = "") -> None:
        asked, whole = self.headers.get("Range", ""), len(data)
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if asked.startswith("bytes="):
            self.served.ranges.append(asked)
            status, data = 206, data[int(asked[6:].split("-")[0]) :]
            headers["Content-Range"] = f"bytes {whole - len(data)}-{whole - 1}/{whole}"
        self.send_response(status)
        headers |= {"Content-Length": str(len(data))} | ({"X-Error-Code": error} if error else {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Start a stand-in on the loopback with some files."""
    with ExitStack() as servers:

        def start(files: dict[str, bytes]) -> Hub:
            hub = Hub(files)
            url = servers.enter_context(served(partial(Handler, hub)))
            monkeypatch.setenv("HF_ENDPOINT", url.removesuffix("/v1"))
            return hub

        yield start


@pytest.fixture
def model(tmp_path: Path) -> dict[str, bytes]:
    """The files of a model of ours."""
    checkpoint.save(tmp_path / "model", network())
    return {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}


def test_a_whole_model_is_fetched_once_for_good(serve, model, tmp_path, monkeypatch):
    hub = serve({**model, "README.md": b"# hi", "training.log": b"much"})
    folder = pretrained.fetch(f"hub:{REPO}", tmp_path / "cache")
    assert (folder / "model.safetensors").read_bytes() == model["model.safetensors"]
    assert not (folder / "training.log").exists()
    assert checkpoint.load(folder).settings == network().settings
    fetched = sum("GET" in one and "resolve" in one for one in hub.asked)
    assert pretrained.fetch(f"hub:{REPO}", tmp_path / "cache") == folder
    assert sum("GET" in one and "resolve" in one for one in hub.asked) == fetched
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert pretrained.fetch(f"hub:{REPO}", tmp_path / "cache") == folder


def test_one_file_is_fetched_with_the_settings_beside_it(serve, tmp_path: Path):
    serve({"a.pt": b"one" * 100, "b.pt": b"two", "ct_config.yaml": b"input_dim: 80"})
    path = pretrained.fetch(f"hub:{REPO}/a.pt", tmp_path / "cache")
    assert path.name == "a.pt" and path.read_bytes() == b"one" * 100
    assert (path.parent / "ct_config.yaml").is_file() and not (path.parent / "b.pt").exists()
    with pytest.raises(CheckpointError, match=r"give one of hub:someone/echat/a\.pt, hub:some"):
        pretrained.fetch(f"hub:{REPO}", tmp_path / "cache")
    with pytest.raises(CheckpointError, match="the repository has no such file"):
        pretrained.fetch(f"hub:{REPO}/c.pt", tmp_path / "cache")


def test_a_file_that_broke_off_is_gone_on_with_and_one_that_came_broken_is_fetched_anew(
    serve, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(pretrained, "RESUMED_BYTES", 1000)
    data = bytes(range(256)) * 100
    hub = serve({"a.pt": data})
    blobs = tmp_path / "models--someone--echat" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{hashlib.sha256(data).hexdigest()}.part"
    part.write_bytes(b"wrong" * 100)
    with pytest.raises(CheckpointError, match="came broken; fetch it again"):
        pretrained.fetch(f"hub:{REPO}/a.pt", tmp_path)
    assert not part.exists()
    part.write_bytes(data[:20_000])
    assert pretrained.fetch(f"hub:{REPO}/a.pt", tmp_path).read_bytes() == data
    assert hub.ranges == ["bytes=500-", "bytes=20000-"] and not part.exists()


def test_without_network_or_repository_the_error_says_what_to_do(tmp_path, monkeypatch, serve):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for place in (f"hub:{REPO}", f"hub:{REPO}/a.pt"):
        with pytest.raises(CheckpointError, match=r"not in the cache .*go online.*give its path"):
            pretrained.fetch(place, tmp_path)
    serve({})
    with pytest.raises(CheckpointError, match="no such repository, or it needs a login"):
        pretrained.fetch("hub:nobody/nothing", tmp_path)


@pytest.mark.parametrize("place", ["hub:", "hub:one", "hub:a/b/../c", "hub:a b/c"])
def test_a_name_that_is_none_is_refused(place: str):
    with pytest.raises(CheckpointError, match="write it as hub:OWNER/NAME"):
        pretrained.find(place)


SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]


def stock_llm(kind: str, tied: bool, directory: Path) -> torch.nn.Module:
    """A stock LLM with random weights, saved as its publishers do."""
    import transformers

    torch.manual_seed(6)
    sizes = SIZES | ({"head_dim": 8} if kind == "qwen3" else {})
    config = getattr(transformers, f"{kind.title()}Config")(**sizes, tie_word_embeddings=tied)
    model = getattr(transformers, f"{kind.title()}ForCausalLM")(config).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn_like(part) * 0.3)
    model.save_pretrained(directory, max_shard_size="10KB")
    return model


def started(directory: Path) -> EChatModel:
    model = EChatModel(replace(SETTINGS, llm=llm_settings(directory))).eval()
    pretrained.start_llm(model, directory)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_a_stock_llm_computes_the_same_inside(tmp_path: Path, kind: str, tied: bool):
    stock = stock_llm(kind, tied, tmp_path / "stock")
    assert len(list((tmp_path / "stock").glob("*.safetensors"))) > 1
    model = started(tmp_path / "stock")
    ids = torch.randint(0, 40, (2, 9))
    wanted = stock(ids).logits
    segments, positions = torch.zeros_like(ids), torch.arange(9).expand(2, 9)
    hidden = model.run(model.embed_ids(ids), segments, positions)
    assert torch.allclose(model.logits_text(hidden), wanted, atol=1e-5)
    checkpoint.save(tmp_path / "ours", model)
    save_published(tmp_path / "theirs.pt", model)
    for place in (tmp_path / "ours", tmp_path / "theirs.pt"):
        again = checkpoint.load(place, model.settings)
        own = again.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
        assert (again.llm.lm_head.weight is again.llm.model.embed_tokens.weight) == tied


WHISPER = EncoderSettings(mels=6, width=64, heads=1, units=16, blocks=2)


@pytest.fixture(scope="module")
def stock() -> torch.nn.Module:
    """A stock transformers Whisper of the same sizes with random weights."""
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(5)
    config = WhisperConfig(
        vocab_size=50, num_mel_bins=6, d_model=64, encoder_layers=2, encoder_attention_heads=1,
        encoder_ffn_dim=16, decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=16,
        max_source_positions=50, max_target_positions=8, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return WhisperModel(config).eval()


def openai_weights(stock: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The encoder of a stock Whisper under the names of OpenAI's own files, in half precision."""
    renamed = {}
    for name, value in stock.state_dict().items():
        for theirs, openai in (
            ("layers", "blocks"), ("self_attn.q_proj", "attn.query"), ("fc1", "mlp.0"),
            ("self_attn.k_proj", "attn.key"), ("self_attn.v_proj", "attn.value"), ("fc2", "mlp.2"),
            ("self_attn.out_proj", "attn.out"), ("self_attn_layer_norm", "attn_ln"),
            ("final_layer_norm", "mlp_ln"), ("encoder.layer_norm", "encoder.ln_post"),
            ("embed_positions.weight", "positional_embedding"),
        ):  # fmt: skip
            name = name.replace(theirs, openai)
        renamed[name] = value
    return renamed


@torch.no_grad()
def test_the_encoder_computes_what_the_stock_whisper_computes(stock, tmp_path: Path):
    stock.save_pretrained(tmp_path / "transformers")
    (tmp_path / "openai").mkdir()
    dims = {"n_mels": 6, "n_audio_state": 64}
    torch.save({"dims": dims, "model_state_dict": openai_weights(stock)},
               tmp_path / "openai" / "medium.pt")  # fmt: skip
    mels = torch.randn(2, 100, 6)
    wanted = stock.encoder(mels.transpose(1, 2)).last_hidden_state
    for place in ("transformers", "openai", "openai/medium.pt"):
        torch.manual_seed(2)
        started = Encoder(WHISPER).eval()
        start_encoder(started, tmp_path / place)
        steps, lengths = started(mels, torch.tensor([100, 100]))
        assert torch.allclose(steps, wanted, atol=1e-5), place
        assert lengths.tolist() == [50, 50]


# Models in one file: unpacked once, refused in one line

@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(paths.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of `tmp_path`."""
    with served(partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as url:
        yield url.removesuffix("/v1")


def pack(path: Path, folder: Path, name: str) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        packed.add(folder, name)
    return path


def test_a_model_at_a_web_address_is_fetched_once(tmp_path, model_directory, server, cache):
    path = pack(tmp_path / "tiny.tar.gz", model_directory, "tiny")
    address = f"{server}/tiny.tar.gz"
    echat = EChat.load(address, device="cpu", speaks=False)
    assert echat.model.directory.parent.parent == cache
    path.unlink()
    assert pretrained.local(address) == echat.model.directory


def test_a_tar_that_has_changed_is_unpacked_anew(tmp_path: Path, model_directory: Path) -> None:
    path = pack(tmp_path / "mine.tgz", model_directory, ".")
    first = pretrained.local(str(path))
    assert pretrained.local(str(path)) == first and (first / paths.WHOLE).is_file()
    pack(path, model_directory, "other")
    assert pretrained.local(str(path)) != first


@pytest.mark.parametrize(("name", "message"), [
    ("gone.tar.gz", "cannot be fetched or unpacked .*404"), ("empty.tar", "holds 0 model.yaml"),
    ("torn.tar.gz", "cannot be fetched or unpacked"), ("model.zip", "ends in .tar, .tar.gz, .tgz"),
])  # fmt: skip
def test_what_is_no_packed_model_leaves_nothing(
    tmp_path: Path, model_directory: Path, server: str, cache: Path, name: str, message: str
) -> None:
    whole = pack(tmp_path / "whole.tar.gz", model_directory, "tiny").read_bytes()
    (tmp_path / "torn.tar.gz").write_bytes(whole[:-2000])
    (tmp_path / "empty").mkdir()
    pack(tmp_path / "empty.tar", tmp_path / "empty", "tiny").touch()
    with pytest.raises(CheckpointError, match=message):
        pretrained.local(f"{server}/{name}")
    assert not list(cache.glob("[!.]*"))


@pytest.mark.parametrize(("name", "kind", "message"), [
    ("../evil.txt", tarfile.REGTYPE, "evil.txt lies outside"),
    ("/evil.txt", tarfile.REGTYPE, "evil.txt lies outside"),
    ("tiny/link", tarfile.SYMTYPE, "link is no file"),
    ("tiny/device", tarfile.CHRTYPE, "device is no file"),
])  # fmt: skip
def test_a_tar_writes_files_and_only_into_its_folder(tmp_path, cache, name, kind, message):
    with tarfile.open(tmp_path / "evil.tar", "w") as packed:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        packed.addfile(member)
    with pytest.raises(CheckpointError, match=message):
        pretrained.local(str(tmp_path / "evil.tar"))
    assert not list(cache.glob("[!.]*")) and not (tmp_path / "evil.txt").exists()
