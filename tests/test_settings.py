"""Claims about settings: files to mappings, overrides into them, dataclasses out of them."""

from dataclasses import dataclass, field

import pytest

from osum_echat import settings
from osum_echat.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Inner:
    size: int
    sizes: tuple[tuple[int, ...], ...] = ()
    rate: float | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    named: dict[str, Inner] = field(default_factory=dict)
    word: str = "x"


@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.yaml", b"a: [", "a.yaml: not YAML"), ("a.json", b"[" * 9999, "not JSON"),
    ("a.json", b"[1]", "holds no settings"),
    ("a.yaml", b"a: 1\nb: {c: 1,\n  c: 2}", r"a\.yaml: 'c' stands twice, in line 2 and in line 3"),
    ("a.yaml", b"- {x: 1}\n- {x: 1, x: 2}", "'x' stands twice"),
    ("a.json", b'{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
    ("a.yaml", b"a: !!python/object/apply:os.getcwd []", "not YAML"),
])  # fmt: skip
def test_a_wrong_file_is_told_in_one_line_as_the_callers_error(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    for error in (ConfigError, CheckpointError):
        with pytest.raises(error, match=message) as caught:
            settings.read_mapping(tmp_path / name, error)
        assert "\n" not in str(caught.value)
        with pytest.raises(error, match="No such file or directory; copy it"):
            settings.read_mapping(tmp_path / "gone.yaml", error, "copy it")


def test_a_name_that_is_merged_in_or_named_elsewhere_stands_once(tmp_path):
    text = "\ufeffa: &a {x: 1}\nb: {<<: *a, x: 2}\nc: {a: *a, b: *a}\n1: x\n'1': y\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    found = settings.read_mapping(tmp_path / "a.yaml")
    assert found["b"] == {"x": 2} and found["c"]["b"] == {"x": 1} and found[1] == "x"


def test_nested_values_become_their_types():
    raw = {"inner": {"size": 3, "sizes": [[1, 2], [3]], "rate": 2},
           "named": {"a": {"size": 1}}}  # fmt: skip
    made = settings.parse(Outer, raw, "file")
    assert made == Outer(Inner(3, ((1, 2), (3,)), 2.0), {"a": Inner(1)})


@pytest.mark.parametrize(("raw", "message"), [
    ({"inner": {}}, "file.inner.size: missing"),
    ({"inner": {"size": 1, "sizes": [1]}}, r"sizes\[0\]: 1 where a list is needed"),
    ({"inner": {"size": 1}, "wrod": "y"}, "did you mean 'word'"),
    ({"inner": {"size": 1}, "word": 1}, "1 where text is needed"),
])  # fmt: skip
def test_what_does_not_fit_is_told_with_its_place(raw, message):
    with pytest.raises(ConfigError, match=message):
        settings.parse(Outer, raw, "file")


def test_an_override_makes_the_mappings_on_its_way():
    raw = {"a": {"b": 1}}
    settings.override(raw, ["a.b=[2, x]", "c.d.e=1e-3", "f="])
    assert raw == {"a": {"b": [2, "x"]}, "c": {"d": {"e": 1e-3}}, "f": None}


@pytest.mark.parametrize(("given", "message"), [
    ("a", "write it as key=value"), ("=1", "write it as key=value"),
    ("a.b.c=1", "'b' holds no settings"), ("a=[", "not YAML"),
])  # fmt: skip
def test_a_wrong_override_is_told(given, message):
    with pytest.raises(ConfigError, match=message):
        settings.override({"a": {"b": 1}}, [given])
