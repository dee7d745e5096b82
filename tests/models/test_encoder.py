"""Claims about the encoder: windows of long clips, its cache; and Whisper's decoder upon it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder as Stock

from osum_echat.errors import CheckpointError
from osum_echat.models import int8, whisper_decoder
from osum_echat.models.echat import LONGEST_FRAMES, MARGIN_FRAMES, windows
from osum_echat.models.whisper_decoder import WhisperDecoder
from osum_echat.sequence import clip_steps, collate
from tests.tiny_network import SETTINGS, VOCAB, network, row


@pytest.mark.parametrize("frames", [1, 40, 3000, 3001, 3007, 5400, 5800, 12345, 60000])
def test_the_kept_steps_are_those_of_the_whole_clip(frames: int):
    kept, cut = [], windows(frames)
    for window in cut:
        steps = range(clip_steps(window.end - window.start))[window.kept]
        kept += [window.start // 8 + step for step in steps]
        assert window.end - window.start <= LONGEST_FRAMES and window.start % 8 == 0
    assert kept == list(range(clip_steps(frames)))
    assert all(window.kept.start * 8 >= MARGIN_FRAMES for window in cut[1:])
    assert all(window.end - window.start - window.kept.stop * 8 >= MARGIN_FRAMES
               for window in cut[:-1])


@torch.inference_mode()
def test_a_long_clip_beside_a_short_one_is_heard_as_alone_a_short_one_as_in_training():
    model = network()
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(frames, 6, generator=generator) for frames in (3333, 41, 40)]
    lengths = torch.tensor([len(clip) for clip in clips])
    mels = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    heard, counts = model.encode_audio_alone(mels, lengths)
    assert counts.tolist() == [clip_steps(len(clip)) for clip in clips]
    for clip, steps, count in zip(clips, heard, counts.tolist(), strict=True):
        alone, _ = model.encode_audio_alone(clip[None], torch.tensor([len(clip)]))
        torch.testing.assert_close(steps[:count], alone[0], atol=1e-5, rtol=1e-4)
    model = network()
    clip = torch.randn(1, 41, 6)
    for ours, theirs in zip(model.encode_audio_alone(clip, torch.tensor([41])),
                            model.encode_audio(clip, torch.tensor([41])), strict=True):  # fmt: skip
        torch.testing.assert_close(ours, theirs)


@pytest.fixture
def heard():
    """A network, a batch of two clips, and the steps and lengths that it hears in them."""
    model, rows = network(), (row("s2t", 41), row("s2t", 80))
    batch = collate([[one] for one in rows], VOCAB)
    with torch.no_grad():
        return model, batch, *model.encode_audio(batch.mels, batch.mel_lengths)


def near(steps: torch.Tensor, plain: torch.Tensor, lengths: torch.Tensor) -> bool:
    return all(torch.allclose(steps[clip, :count], plain[clip, :count], atol=0.02)
               for clip, count in enumerate(lengths.tolist()))  # fmt: skip


@torch.no_grad()
def test_a_remembered_clip_gives_the_same_steps_as_a_heard_one_without_dropout(heard):
    model, batch, plain, lengths = heard
    assert model.encoder.settings.dropout
    model.cache_encoder(1)
    model.encoder.train()
    first, _ = model.encode_audio(batch.mels, batch.mel_lengths)
    model.encoder.after_norm.weight.zero_()          # heard once, never again
    again, _ = model.encode_audio(batch.mels, batch.mel_lengths)
    assert near(first, plain, lengths) and torch.equal(first, again)


@torch.no_grad()
def test_a_folder_of_caches_made_beforehand_is_taken_over_by_the_same_encoder_only(heard, tmp_path):
    model, batch, plain, lengths = heard
    for clip, frames in enumerate(batch.mel_lengths.tolist()):
        model.cache_encoder(1)
        model.encoder_cache.fill([batch.mels[clip, :frames]])
        model.encoder_cache.save(tmp_path / f"{clip}.safetensors")
    other = network(seed=1)
    for one in (model, other):
        one.cache_encoder(1)
    assert not other.encoder_cache.load(tmp_path) and not model.encoder_cache.load(tmp_path / "no")
    assert model.encoder_cache.load(tmp_path)
    model.encoder.after_norm.weight.zero_()          # what were encoded now would be nothing
    assert near(model.encode_audio(batch.mels, batch.mel_lengths)[0], plain, lengths)
    (tmp_path / "cut.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: cannot be read .*; remove it"):
        model.encoder_cache.load(tmp_path / "cut.safetensors")


@torch.no_grad()
def test_a_remembered_clip_is_augmented_in_training_only(heard):
    model, batch, _, _ = heard
    model.cache_encoder(1, vary=0.7)
    plain, lengths = model.encoder_cache(batch.mels, batch.mel_lengths)
    one, other = (model.train().encode_audio(batch.mels, batch.mel_lengths) for _ in range(2))
    calm, _ = model.eval().encode_audio(batch.mels, batch.mel_lengths)
    assert torch.equal(one[1], other[1]) and not torch.equal(one[0], other[0])
    assert torch.equal(calm, model.adapter(plain, lengths)[0])


# Whisper's decoder on the encoder that it shares: its greedy ids, in whole numbers too

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
