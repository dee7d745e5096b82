"""Claims about the speech units and their k-means."""

import pytest
import torch

from common_utils.token2wav_recipe import units
from common_utils.token2wav_recipe.units import SpeechUnits, UnitSettings, kmeans, nearest
from osum_echat.errors import ConfigError, DataError
from osum_echat.models.encoder import EncoderSettings


def tiny() -> SpeechUnits:
    torch.manual_seed(1)
    encoder = EncoderSettings(mels=80, width=16, heads=2, units=16, blocks=3, dropout=0)
    model = SpeechUnits(encoder, UnitSettings(layers=2, codes=12, phonetic=6)).eval()
    model.projection.normal_()
    model.codebook.normal_()
    return model


@pytest.mark.parametrize("frames", [8, 9, 10, 11, 12, 37])
def test_there_is_a_unit_for_every_four_frames_begun(frames):
    found = tiny()(torch.randn(1, 80, frames), torch.tensor([frames], dtype=torch.int32))
    assert found.shape == (1, -(-frames // 4))


def test_frames_past_the_length_count_as_silence():
    model, feats = tiny(), torch.rand(1, 80, 24)
    feats[0, 0, 0] = -1.0
    silenced = feats.clone()
    silenced[:, :, 16:] = -1.0
    cut, whole = torch.tensor([16]).int(), torch.tensor([24]).int()
    assert torch.equal(model(feats, cut), model(silenced, whole))


def test_only_the_layers_asked_for_are_kept():
    assert len(tiny().blocks) == 2


def test_a_louder_clip_has_more_energy():
    model, feats = tiny(), torch.rand(1, 80, 16)
    assert (model.energy(feats + 0.25) - model.energy(feats)).allclose(torch.tensor(2.3026))


def test_halved_takes_the_last_one_alone():
    steps = torch.tensor([[[1.0], [3.0], [7.0]]])
    assert units.halved(steps).tolist() == [[2.0], [7.0]]


def test_kmeans_finds_clusters_that_lie_apart():
    torch.manual_seed(2)
    centres = 10 * torch.eye(5)
    points = (centres[:, None] + 0.1 * torch.randn(5, 40, 5)).flatten(0, 1)
    found = kmeans(points, 5, 10, torch.Generator().manual_seed(3))
    groups = nearest(points, found).view(5, 40)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0].tolist())) == 5


def test_nearest_is_the_nearest():
    points, codes = torch.randn(20, 3), torch.randn(7, 3)
    assert torch.equal(nearest(points, codes), torch.cdist(points, codes).argmin(1))


def test_too_few_points_are_refused():
    with pytest.raises(DataError, match="3 points for 5 codes"):
        kmeans(torch.randn(3, 2), 5, 1, torch.Generator())


def test_too_many_codes_are_refused():
    with pytest.raises(ConfigError, match=r"units\.codes 5000"):
        UnitSettings(codes=5000)
