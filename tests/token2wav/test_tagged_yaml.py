"""Claims about a YAML full of tags: its values are found, and nothing in it is run."""

from pathlib import Path

import pytest

from osum_echat.errors import CheckpointError
from osum_echat.token2wav.tagged_yaml import Sheet

TEXT = b"""
rate: 22050
seed: !apply:random.seed [1986]
flow: !new:some.module.Flow
    rate: !ref <rate>
    width: !ref <flow[inner][width]>
    half: !ref <rate> // 2
    small: 1e-06
    kernels: [3, 7]
    tables: [[1, 3], [5]]
    inner: !new:omegaconf.DictConfig
        content:
            width: 16
    call: !name:some.function
"""


@pytest.fixture
def sheet() -> Sheet:
    return Sheet.parse(TEXT, "cosyvoice.yaml")


def test_values_are_found_through_tags_references_and_wrappers(sheet: Sheet):
    assert sheet.whole("flow", "rate") == 22050
    assert sheet.whole("flow", "inner", "width") == 16
    assert sheet.number("flow", "small") == 1e-6
    assert sheet.wholes("flow", "kernels") == (3, 7)
    assert sheet.tables("flow", "tables") == ((1, 3), (5,))


def test_what_is_absent_or_would_be_computed_is_none(sheet: Sheet):
    for path in (("gone",), ("flow", "gone"), ("rate", "deeper"), ("seed",), ("flow", "half")):
        assert sheet.number(*path) is None and sheet.wholes(*path) is None


def test_no_tag_is_obeyed(tmp_path: Path):
    mark = tmp_path / "ran"
    tags = ("!apply:builtins.open", "!new:builtins.open", "!!python/object/apply:builtins.open",
            "!!python/object/new:builtins.open", "!include:", "tag:yaml.org,2002:python/name:open")
    for tag in tags:
        text = f'a: {tag if tag.startswith("!") else f"!<{tag}>"} ["{mark}", w]'
        Sheet.parse(text.encode(), "here").value("a")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1", "not YAML"), (b"\xff\xfe\x00", "not YAML"), (b"- 1", "holds no settings"),
        (b"", "holds no settings"), (b"[" * 700, "not YAML"), (b"&a [*a]: 1", "not YAML"),
    ],
)  # fmt: skip
def test_what_is_no_sheet_is_refused(text: bytes, message: str):
    with pytest.raises(CheckpointError, match=f"^here: {message}"):
        Sheet.parse(text, "here")


@pytest.mark.parametrize(
    ("text", "method", "message"),
    [
        (b"a: many", "number", "a: 'many' is not a number"),
        (b"a: {b: 1}", "whole", "is not a number"),
        (b"a: 1.5", "whole", "1.5 is not a whole number"),
        (b"a: [1, x]", "wholes", "is no list of whole numbers"),
        (b"a: [1]", "tables", "is no list of number lists"),
        (b"a: !ref <b>\nb: !ref <a>", "whole", "leads back to itself"),
    ],
)
def test_a_wrong_value_is_refused(text: bytes, method: str, message: str):
    with pytest.raises(CheckpointError, match=f"^here: .*{message}"):
        getattr(Sheet.parse(text, "here"), method)("a")
