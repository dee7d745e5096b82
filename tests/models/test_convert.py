"""Claims about converting: no key lost, no bit changed, either way, and every key told of."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from common_utils import convert_checkpoint, convert_ckpt_dir_to_pt
from osum_echat.errors import CheckpointError, InputError
from osum_echat.models import checkpoint, pretrained
from osum_echat.models import convert as converter
from osum_echat.models.convert import EXTRAS_FILE, KeyReport, PhaseMask
from tests.models.test_checkpoint import lora_network
from tests.tiny_network import SETTINGS, network, save_published

GOLDENS = Path(__file__).parents[1] / "goldens"
PUBLISHED = GOLDENS / "model"
STATES = "mp_rank_00_model_states.pt"


def convert(place: Path, target: Path, kind: str, config: Path | None = None) -> list[KeyReport]:
    return converter.convert(pretrained.find(place, config), target, kind)


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A published file with every key that upstream has, in several types, with its settings."""
    original = state(PUBLISHED / "model.pt")
    width = original["encoder.after_norm.weight"].shape[0]
    extras = {
        "encoder.embed.pos_enc.pe": torch.randn(1, 30, width),
        "speech_transformer.embed.pos_enc.pe": torch.randn(1, 20, width).half(),
        "ln_speech.weight": torch.randn(width), "ln_speech.bias": torch.randn(width).bfloat16(),
    }  # fmt: skip
    tables = ("llama_model.model.embed_tokens.weight", "llama_model.lm_head.weight",
              "embed_tokens.weight", "lm_head.weight")  # fmt: skip
    table = original[tables[0]]
    original["speech_head.bias"] = original["speech_head.bias"].float()
    (tmp_path / "published").mkdir()
    torch.save(original | extras | dict.fromkeys(tables, table), tmp_path / "published" / "m.pt")
    for name in ("model.yaml", "llm_config.json"):
        shutil.copyfile(PUBLISHED / name, tmp_path / "published" / name)
    return tmp_path / "published"


def test_a_published_file_comes_back_bit_for_bit_each_key_told(published: Path, tmp_path: Path):
    lines = {line.name: line for line in convert(published, tmp_path / "ours", "ours")}
    convert(tmp_path / "ours", tmp_path / "back.pt", "upstream")
    convert(published, tmp_path / "straight.pt", "upstream")
    original = state(published / "m.pt")
    assert lines.keys() == original.keys()
    assert lines["embed_tokens.weight"].note == "another name of it"
    assert lines["ln_speech.bias"].note == "not read: a norm that upstream never applies"
    assert str(lines["lm_head.weight"]).startswith("lm_head.weight  ->  llm.model.embed_tokens")
    assert same(state(tmp_path / "back.pt"), original)
    assert same(state(tmp_path / "straight.pt"), original)
    convert(tmp_path / "back.pt", tmp_path / "again", "ours", published / "model.yaml")
    for name in ("model.safetensors", EXTRAS_FILE):
        one, other = load_file(tmp_path / "ours" / name), load_file(tmp_path / "again" / name)
        assert same(one, other)


def test_a_model_of_ours_gets_every_key_that_upstream_has(tmp_path: Path):
    checkpoint.save(tmp_path / "ours", network(), notes={"thinking": "both"})
    lines = convert(tmp_path / "ours", tmp_path / "theirs.pt", "upstream")
    theirs = state(tmp_path / "theirs.pt")
    assert {name.split(".")[0] for name in theirs} == {
        "encoder", "ln_speech", "speech_transformer", "llama_model", "down_sample_2", "lm_head",
        "speech_llama_proj", "embed_tokens", "speech_token_emded", "speech_head",
    }  # fmt: skip
    assert theirs["encoder.embed.pos_enc.pe"].shape == (1, 30_000, 8)
    assert theirs["speech_transformer.embed.pos_enc.pe"].shape == (1, 5_000, 8)
    assert sum(line.note.startswith("made") for line in lines) == 4
    loaded = checkpoint.load(tmp_path / "theirs.pt", SETTINGS)
    assert same(dict(loaded.state_dict()), dict(network().state_dict()))


def test_what_the_assistant_reads_and_small_files_go_along(tmp_path: Path):
    notes = {"thinking": "natural", "ctc_weight": 0.5, "text_loop": {"times": 4}}
    checkpoint.save(tmp_path / "one", network(), notes=notes)
    (tmp_path / "one" / "tokenizer.json").write_text("{}")
    convert(tmp_path / "one", tmp_path / "two", "ours")
    kept = yaml.safe_load((tmp_path / "two" / "model.yaml").read_text())
    assert {name: kept[name] for name in notes} == notes
    assert (tmp_path / "two" / "tokenizer.json").is_file()
    (tmp_path / "words").mkdir()
    (tmp_path / "one" / "tokenizer.json").rename(tmp_path / "words" / "tokenizer.json")
    checkpoint.write_settings(tmp_path / "one", SETTINGS, {"tokenizer": str(tmp_path / "words")})
    convert(tmp_path / "one", tmp_path / "far", "ours")
    assert (tmp_path / "far" / "tokenizer.json").is_file()
    assert "tokenizer" not in yaml.safe_load((tmp_path / "far" / "model.yaml").read_text())
    convert(PUBLISHED, tmp_path / "three", "ours")
    assert yaml.safe_load((tmp_path / "three" / "model.yaml").read_text())["thinking"] == "either"


def test_what_cannot_be_converted_is_told_and_nothing_is_left_behind(tmp_path: Path):
    checkpoint.save(tmp_path / "ours", network())
    (tmp_path / "file").write_text("in the way")
    for target, kind, message in (
        ("ours", "ours", "is there already"), ("new", "upstream", r"give a name in \.pt"),
        ("new", "gguf", "choose one of ours, upstream, hf"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / "ours", tmp_path / target, kind)
    for target, kind in (("new", "ours"), ("new.pt", "upstream"), ("new", "hf")):
        with pytest.raises(InputError, match="not written"):
            convert(tmp_path / "ours", tmp_path / "file" / target, kind)
    with pytest.raises(CheckpointError, match="keys do not fit"):
        convert(PUBLISHED, tmp_path / "new", "ours", tmp_path / "ours" / "model.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "file"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stock directory of upstream's small random model, without a tokenizer."""
    directory = tmp_path_factory.mktemp("export") / "hf"
    lines = convert(PUBLISHED, directory, "hf")
    left = {line.name for line in lines if line.note == "not of the LLM"}
    assert left and all(name.startswith(("encoder.", "adapter.")) for name in left)
    return directory


RUNS = {"t2t_0": (False, False), "tts_1": (True, True), "s2s_think_short": (True, False),
        "multiturn_2": (True, False)}  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("name", RUNS)
def test_stock_generation_with_one_processor_gives_upstreams_ids(exported: Path, name: str):
    from transformers import AutoModelForCausalLM

    record = json.loads((PUBLISHED / "generate.json").read_text())[name]
    embedded = torch.from_numpy(np.load(PUBLISHED / "generate.npz")[f"{name}/inputs_embeds"])[None]
    speaks, from_speech = RUNS[name]
    end = json.loads((PUBLISHED / "token_ids.json").read_text())["<|im_end|>\n"][0]
    mask = PhaseMask.from_directory(exported, speaks, from_speech, end)
    stock = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    ids = stock.generate(inputs_embeds=embedded, logits_processor=[mask], do_sample=False,
                         max_new_tokens=record["n"] + 1)[0].tolist()  # fmt: skip
    wanted = [number if place < record["n_text_steps"] else mask.text_rows + number
              for place, number in enumerate(record["ids"])]  # fmt: skip
    assert ids[: record["n"]] == wanted
    if record["stopped_by"] == "criterion":
        assert ids[record["n"]] == mask.end == stock.config.eos_token_id


def test_the_door_tells_of_every_key_and_how_many(tmp_path: Path, capsys):
    save_published(tmp_path / "one.pt", network())
    checkpoint.write_settings(tmp_path / "conf", SETTINGS)
    arguments = [str(tmp_path / "one.pt"), str(tmp_path / "ours"), "--to", "ours",
                 "--config", str(tmp_path / "conf" / "model.yaml")]  # fmt: skip
    assert convert_checkpoint.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = state(tmp_path / "one.pt")
    assert len(lines) == len(keys) + 1
    assert lines[-1].endswith(f"{len(keys)} keys placed, 0 left out")
    assert convert_checkpoint.main(arguments) == 2
    assert capsys.readouterr().err.startswith("convert_checkpoint.py: ")


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3"])
def test_a_deepspeed_directory_becomes_one_file(tmp_path: Path, capsys, stage: str, name: str):
    directory = str(GOLDENS / "deepspeed" / stage)
    expected = load_file(GOLDENS / "deepspeed" / stage / "expected.safetensors")
    read = load_file if name.endswith("tensors") else state
    assert convert_ckpt_dir_to_pt.main([directory, str(tmp_path / name), "--fp32"]) == 0
    found = read(tmp_path / name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(one.float(), found[key].float()) for key, one in expected.items())
    assert convert_ckpt_dir_to_pt.main([directory, str(tmp_path / name)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert convert_ckpt_dir_to_pt.main([str(tmp_path / "gone")]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_without_fp32_the_weights_are_those_computed_with(tmp_path: Path):
    directory = GOLDENS / "deepspeed" / "zero2"
    assert convert_ckpt_dir_to_pt.main([str(directory), str(tmp_path / "a.pt"), "--quiet"]) == 0
    found = state(tmp_path / "a.pt")
    exact = load_file(directory / "expected.safetensors")
    assert {one.dtype for name, one in found.items() if name != "table"} == {torch.bfloat16}
    assert all(torch.equal(one, exact[name].to(one.dtype)) for name, one in found.items())


def test_a_rank_that_is_missing_is_told(tmp_path: Path, capsys):
    shutil.copytree(GOLDENS / "deepspeed" / "zero3", tmp_path / "run")
    next((tmp_path / "run" / "step_3").glob("*rank_1*optim_states.pt")).unlink()
    assert convert_ckpt_dir_to_pt.main([str(tmp_path / "run"), str(tmp_path / "a.pt")]) == 2
    assert "not the whole of what ZeRO left" in capsys.readouterr().err


def test_the_newest_step_is_the_one_that_latest_names(tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(GOLDENS / "deepspeed" / "zero0", run)
    assert checkpoint.deepspeed_states(run) == run / "step_3" / STATES
    shutil.copytree(run / "step_3", run / "step_9")
    assert checkpoint.deepspeed_states(run) == run / "step_3" / STATES
    (run / "latest").write_text("step_7")
    with pytest.raises(CheckpointError, match="names a folder that is not there"):
        checkpoint.deepspeed_states(run)
    (run / "latest").unlink()
    with pytest.raises(CheckpointError, match="give one of step_3, step_9"):
        checkpoint.deepspeed_states(run)
    assert checkpoint.deepspeed_states(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"weights in pieces .*convert_checkpoint\.py"):
        pretrained.find(GOLDENS / "deepspeed" / "zero3")


def test_lora_layers_without_their_alpha_are_not_guessed(tmp_path: Path):
    save_published(tmp_path / "lora.pt", lora_network())
    checkpoint.write_settings(tmp_path, SETTINGS)
    with pytest.raises(CheckpointError, match="its settings no alpha"):
        convert(tmp_path / "lora.pt", tmp_path / "out", "ours")
