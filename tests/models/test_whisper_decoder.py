"""Whisper's decoder on the encoder that it shares: its greedy ids, in whole numbers too."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder as Stock

from osum_echat.models import int8, whisper_decoder
from osum_echat.models.whisper_decoder import WhisperDecoder
from tests.tiny_network import SETTINGS, network

END, OPENING = 29, (1, 2)


class Numbers:
    """A tokenizer whose texts are the ids."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def made(width: int) -> WhisperDecoder:
    torch.manual_seed(3)
    decoder = Stock(WhisperConfig(
        vocab_size=32, d_model=width, decoder_layers=2, decoder_attention_heads=2,
        decoder_ffn_dim=48, max_target_positions=64, pad_token_id=0,
    )).eval()  # fmt: skip
    table = decoder.embed_tokens.weight.detach()[: END + 1]
    head = partial(functional.linear, weight=table)
    return WhisperDecoder(decoder, head, Numbers(), OPENING, END)


@pytest.fixture
def reader() -> WhisperDecoder:
    return made(SETTINGS.encoder.width)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of the random decoder."""
    for name, value in (("LONGEST_FRAMES", 80), ("MOST_TOKENS", 8),
                        ("HEAD_WIDTH", SETTINGS.encoder.width // 2)):  # fmt: skip
        monkeypatch.setattr(whisper_decoder, name, value)


@torch.inference_mode()
def test_the_ids_are_those_of_the_stock_decoder_without_a_cache(reader, small):
    model, mel = network(), torch.randn(60, SETTINGS.encoder.mels)
    silent = functional.pad(mel, (0, 0, 0, 20), value=float(mel.max()) - whisper_decoder.RANGE)
    steps, _ = model.encoder(silent[None], torch.tensor([80]), alone=True)
    ids = [*OPENING]
    while len(ids) < 8 and END not in ids:
        state = reader.decoder(input_ids=torch.tensor([ids]), encoder_hidden_states=steps)
        ids.append(int(reader.head(state.last_hidden_state[0, -1:]).argmax()))
    assert reader.read(model, mel) == " ".join(map(str, ids[len(OPENING) :]))


@torch.inference_mode()
def test_a_long_clip_is_read_in_parts_cut_where_it_is_quiet(reader, monkeypatch):
    mel = torch.zeros(7000, 80)
    mel[2500:2540] = mel[5000:5040] = -1.0
    cuts = [len(one) for one in whisper_decoder.cut_at_pauses(mel)]
    assert sum(cuts) == 7000 and 2500 <= cuts[0] <= 2540 and 5000 <= cuts[0] + cuts[1] <= 5040
    assert len(whisper_decoder.cut_at_pauses(mel[: whisper_decoder.LONGEST_FRAMES])) == 1
    read = iter(("first words", "", "last words"))
    monkeypatch.setattr(type(reader), "_part", lambda *_: next(read))
    assert reader.read(None, mel) == "first words last words"


def test_what_whisper_notes_of_sounds_is_no_word(reader, small):
    class Noting(Numbers):
        def decode(self, ids: list[int]) -> str:
            return "(sings in foreign language) Well, [music] yes."

    noting = replace(reader, tokenizer=Noting())
    read = noting.read(network(), torch.randn(60, SETTINGS.encoder.mels))
    assert read.split() == ["Well,", "yes."]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_of_whole_numbers_is_near_the_whole_one(dtype):
    reader, ids, steps = made(32), torch.tensor([[1, 2, 3]]), torch.randn(1, 9, 32)
    whole = reader.decoder(input_ids=ids, encoder_hidden_states=steps).last_hidden_state
    scores = reader.head(whole[0])
    small = reader.shrunk(dtype).beside(network().encoder)
    kinds = [type(one) for one in small.decoder.modules()]
    assert kinds.count(int8.Int8Linear) == 16 and kinds.count(torch.nn.Linear) == 4
    near = small.decoder(input_ids=ids, encoder_hidden_states=steps.to(dtype)).last_hidden_state
    assert near.dtype == dtype and (near.float() - whole).norm() < 0.05 * whole.norm()
    assert (small.head(near[0]).float() - scores).norm() < 0.05 * scores.norm()
    assert (small.encoder is None) == (dtype == torch.float32)
