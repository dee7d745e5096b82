"""From a wav to what enters the LLM: features, encoder, adapter, alone, in batches and in bf16."""

from copy import deepcopy

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from osum_echat import audio
from tests.parity.fixture import Fixture
from tests.parity.rows import Row, close, exact, near, not_compared

FEATURES, ACTIVATIONS, BF16 = 1e-6, 1e-4, 0.02
SURE_GAP = 1e-3     # two best scores closer than this may change places by rounding
TARGET_HZ = audio.SAMPLE_RATE_HZ


def rows(fixture: Fixture) -> list[Row]:
    """All rows of resample.npz, audio.npz and audio_bf16.npz."""
    found = []
    if fixture.has("resample.npz"):
        found += _resampling(fixture)
    if fixture.has("audio.npz"):
        found += _audio(fixture)
    if fixture.has("audio_bf16.npz"):
        found += _bf16(fixture)
    return found


def _resampling(fixture: Fixture) -> list[Row]:
    arrays = fixture.arrays("resample.npz")
    rates = [int(name.removeprefix("out_")) for name in arrays if name.startswith("out_")]
    return [
        close(f"resample out_{rate}",
              audio.resample(torch.from_numpy(arrays[f"in_{rate}"]).flatten(), rate, TARGET_HZ),
              arrays[f"out_{rate}"].flatten(), FEATURES)
        for rate in rates
    ]


def _stages(fixture: Fixture, mels: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Every stage on a padded batch: name -> (clips, steps, width), masks (clips, steps)."""
    encoder, adapter = fixture.network.encoder, fixture.network.adapter
    heard, halves = encoder(mels, lengths)
    fewer, eighths = adapter.subsample(heard, halves)
    adapted = adapter.transformer(fewer, eighths)
    masks = {name: torch.arange(steps.shape[1]) < count[:, None]
             for name, steps, count in (("encoder", heard, halves), ("downsample", fewer, eighths))}
    return {
        "subsample_out": encoder.embed(mels),
        "encoder_out": heard, "encoder_mask": masks["encoder"],
        "downsample_out": fewer, "downsample_mask": masks["downsample"],
        "adapter_out": adapted, "adapter_mask": masks["downsample"],
        "proj_out": adapter.projection(adapted), "proj_mask": masks["downsample"],
    }


@torch.inference_mode()
def _audio(fixture: Fixture) -> list[Row]:
    arrays = fixture.arrays("audio.npz")
    found = []
    for wav, features in fixture.wavs.items():
        own = {name: values for name, values in arrays.items() if name.startswith(f"{wav}_")}
        stages = _stages(fixture, features[None], torch.tensor([len(features)]))
        stages = {"feat": features, **{name: values[0] for name, values in stages.items()}}
        found += [_stage(name, stages, name.removeprefix(f"{wav}_"), theirs)
                  for name, theirs in own.items()]
    for batch in [name.removesuffix("_lens") for name in arrays if name.endswith("_lens")]:
        found += _batch(fixture, arrays, batch)
    return found


def _stage(name: str, stages: dict[str, Tensor], stage: str, theirs: object) -> Row:
    if stage not in stages:
        return not_compared(f"audio {name}", "no such stage here")
    if stage.endswith("_mask"):
        return exact(f"audio {name}", stages[stage].flatten(), as_flat(theirs))
    limit = FEATURES if stage == "feat" else ACTIVATIONS
    return close(f"audio {name}", stages[stage], theirs, limit)


def as_flat(values: object) -> Tensor:
    """Any array as one dimension."""
    return torch.as_tensor(values).flatten()


def _batch(fixture: Fixture, arrays: dict, batch: str) -> list[Row]:
    """A padded batch of the longest clips, cut to the stated lengths; real steps only."""
    lengths = torch.from_numpy(arrays[f"{batch}_lens"]).long()
    clips = sorted(fixture.wavs.values(), key=len, reverse=True)[: len(lengths)]
    fit = len(clips) == len(lengths) and all(len(clip) >= int(size)
                                             for clip, size in zip(clips, lengths, strict=True))
    if not fit:
        return [not_compared(f"audio {batch}", "not the batch of the longest clips, cut")]
    cut = [clip[:size] for clip, size in zip(clips, lengths.tolist(), strict=True)]
    stages = _stages(fixture, pad_sequence(cut, batch_first=True), lengths)
    found = []
    for name, theirs in arrays.items():
        stage = name.removeprefix(f"{batch}_")
        if stage == name or stage not in stages:
            continue
        if stage.endswith("_mask"):
            found.append(exact(f"audio {name}", stages[stage].flatten(), as_flat(theirs)))
            continue
        mask = stages[stage.replace("_out", "_mask")]
        found.append(close(f"audio {name}", stages[stage][mask],
                           torch.from_numpy(theirs)[mask], ACTIVATIONS, "real steps"))
    return found


@torch.inference_mode()
def _bf16(fixture: Fixture) -> list[Row]:
    arrays = fixture.arrays("audio_bf16.npz")
    encoder = deepcopy(fixture.network.encoder).bfloat16()
    adapter = deepcopy(fixture.network.adapter).bfloat16()
    found = []
    for wav, features in fixture.wavs.items():
        heard, lengths = encoder(features[None].bfloat16(), torch.tensor([len(features)]))
        stages = {"encoder_out": heard[0], "proj_out": adapter(heard, lengths)[0][0]}
        found += [near(f"audio_bf16 {name}", stages[name.removeprefix(f"{wav}_")], theirs, BF16)
                  for name, theirs in arrays.items() if name.removeprefix(f"{wav}_") in stages]
    return found
