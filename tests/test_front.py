"""Claims about the package's front: a few names, each imported when it is asked for."""

import pytest

import osum_echat


def test_the_public_names_are_found_late():
    from osum_echat.records import Utterance

    assert osum_echat.Utterance is Utterance
    assert set(osum_echat.__all__) == {"EChat", "Reply", "Turn", "Utterance"}


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'Whisper'"):
        osum_echat.Whisper  # noqa: B018
