"""Whisper's decoder on the encoder that it shares: its greedy ids, and clips read in circles."""

from functools import partial

import pytest
import torch
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder as Stock

from osum_echat.models import int8, whisper_decoder
from osum_echat.models.whisper_decoder import LONGEST_FRAMES, WhisperDecoder, says_twice
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


@torch.inference_mode()
def test_the_ids_are_those_of_the_stock_decoder_without_a_cache(reader):
    model, mel = network(), torch.randn(60, SETTINGS.encoder.mels)
    found = reader._ids(model, mel, 80, 6)
    silent = functional.pad(mel, (0, 0, 0, 20), value=float(mel.max()) - whisper_decoder.RANGE)
    steps, _ = model.encoder(silent[None], torch.tensor([80]), alone=True)
    ids = [*OPENING]
    while len(ids) < len(OPENING) + 6 and END not in ids:
        state = reader.decoder(input_ids=torch.tensor([ids]), encoder_hidden_states=steps)
        ids.append(int(reader.head(state.last_hidden_state[0, -1:]).argmax()))
    assert found == ids[len(OPENING) :]


@pytest.mark.parametrize(
    ("first", "asked"), [((5, 6, END), 1), ((5, 6, 5, 6, END), 2), ((5, 6, 7), 2)]
)
def test_a_clip_read_in_circles_or_without_an_end_is_heard_in_30_s(
    reader, monkeypatch, first, asked
):
    heard = []

    def ids(self, network, mel, frames, most):
        heard.append(frames)
        return [*first] if len(heard) == 1 else [8, END]

    monkeypatch.setattr(WhisperDecoder, "_ids", ids)
    text = reader.read(network(), torch.zeros(100, SETTINGS.encoder.mels))
    assert text == ("5 6" if asked == 1 else "8") and len(heard) == asked
    assert heard[0] < LONGEST_FRAMES and heard[1:] == [LONGEST_FRAMES] * (asked - 1)


def test_a_phrase_back_to_back_is_said_twice():
    assert says_twice([1, 2, 3, 2, 3, 4]) and says_twice([1, 2, 3, 1, 2, 3])
    assert not says_twice([1, 1, 2, 3, 1, 4]) and not says_twice([])


def test_a_decoder_of_whole_numbers_is_near_the_whole_one():
    reader, state, steps = made(32), torch.tensor([[1, 2, 3]]), torch.randn(1, 9, 32)
    with torch.inference_mode():
        whole = reader.decoder(input_ids=state, encoder_hidden_states=steps).last_hidden_state
        int8.shrink_each(reader.decoder, whisper_decoder.CLIP_READERS)
        small = reader.decoder(input_ids=state, encoder_hidden_states=steps).last_hidden_state
    kinds = [type(one) for one in reader.decoder.modules()]
    assert kinds.count(int8.Int8Linear) == 16 and kinds.count(torch.nn.Linear) == 4
    assert (small - whole).norm() < 0.05 * whole.norm()
