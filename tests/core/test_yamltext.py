"""YAML text with types of YAML 1.2, lines, and faults instead of exceptions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.yamltext import MOST_BYTES, Scalar, plain_value, read_yaml


def value(text: str) -> object:
    document = read_yaml(text)
    assert document.tree is not None
    assert not document.faults
    return plain_value(document.tree)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5),
        ("-17", -17),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("'5'", "5"),
        ('"true"', "true"),
        ("16:30", "16:30"),
        ("0123", "0123"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-11-20", "2026-11-20"),
        ("3.1.1", "3.1.1"),
        ("!!str 5", "5"),
        ("{a: [1, {b: x}]}", {"a": [1, {"b": "x"}]}),
    ],
)
def test_scalars(text: str, expected: object) -> None:
    """A plain scalar has the type that YAML 1.2 gives it; what YAML 1.1 would twist stays text."""
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_endless_numbers() -> None:
    """The words for infinity and not-a-number are read as such."""
    assert value(".inf") == math.inf
    assert value("-.INF") == -math.inf
    assert math.isnan(value(".nan"))  # type: ignore[arg-type]


def test_old_flags_count_where_a_flag_is_wanted() -> None:
    """`yes` and `off` are flags for whoever asks for one, but not in quotes."""
    assert Scalar("yes").flag() is True
    assert Scalar("Off").flag() is False
    assert Scalar("on", plain=False).flag() == "on"


def test_lines() -> None:
    """Every key and list entry knows its line, counted from 1."""
    document = read_yaml("# head\na: 1\nb:\n  c: 2\n  d:\n    - x\n    - y\n")
    assert document.lines[("a",)] == 2
    assert document.lines[("b", "c")] == 4
    assert document.lines[("b", "d", 1)] == 7


def test_twice() -> None:
    """A key that stands twice is a fault in the second line; the first value counts, and reading goes on."""
    document = read_yaml("a: 1\nb: 2\na: 3\n")
    assert [(fault.line, fault.at) for fault in document.faults] == [(3, ("a",))]
    assert "line 1" in document.faults[0].message
    assert document.tree is not None
    assert plain_value(document.tree) == {"a": 1, "b": 2}


def test_merge_keys() -> None:
    """`<<` takes keys over that are not there yet, through several levels."""
    text = "one: &one {x: 1}\ntwo: &two {<<: *one, y: 2}\nthree:\n  <<: [*two]\n  x: 3\n"
    assert value(text) == {"one": {"x": 1}, "two": {"x": 1, "y": 2}, "three": {"x": 3, "y": 2}}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2", 2, "not YAML"),
        ("a: 1\nb: x: y", 2, "second ': '"),
        ("a:\n\tb: 1", 2, "tab"),
        ("a: *nobody", 1, "alias"),
        ("a: !secret x", 1, "tag"),
        ("a: !!python/object:os.system {}", 1, "tag"),
        ("a: &a [*a]", 1, "holds itself"),
        ("a: &a {<<: *a}", 1, "<<"),
        ("? [x]\n: y", 1, "single word"),
        ("---\na: 1\n---\nb: 1", 3, "second document"),
        ("a: 1\nb: \x07", 2, "control character"),
        ("a: {t: ${X}}", 1, '"${NAME}" in quotes'),
        ("<<: 5", 1, "<<"),
        ("a:\n  b\n  c: 1", 2, "no 'key: value'"),
        ("a\nb: 1", 1, "no 'key: value'"),
        ("a: x\n  b: 1", 2, "below a key that has a value"),
        ("a: 'x\nb: 1\nc: 2", 1, "a quote begins here"),
        ("a: {x: 1\nb: 1\n", 1, "a [ or { begins here"),
        ("a: [1,\n  2\nb: 1\n", 1, "a [ or { begins here"),
        ("a: &x 1\nb: &x 2", 2, "anchor"),
        ("a:\n    b: 1\n  c: 2", 3, "indented unlike"),
        ("a: @x", 1, "quotes"),
        ("a: - x", 1, "list's entry"),
        ("a: ? x\n", 1, "quotes"),
    ],
)
def test_faults(text: str, line: int, words: str) -> None:
    """What is no YAML, or means nothing here, is one fault that names its line."""
    faults = read_yaml(text).faults
    assert len(faults) == 1
    assert faults[0].line == line
    assert words in faults[0].message


def test_what_is_no_yaml_takes_only_its_own_part_away() -> None:
    """The other top-level keys are read, with their lines; the lost ones are named, for nothing to be guessed."""
    document = read_yaml('# head\na: 1\nb: [x\nc:\n- y\n- z: \'w\n\nd: {e: *f}\n"g": 2\nh\ni: &k 5\nj: *k\n')

    assert [fault.line for fault in document.faults] == [3, 6, 8, 10]
    assert document.lost == ("b", "c", "d", "h")
    assert document.tree is not None
    assert plain_value(document.tree) == {"a": 1, "g": 2, "i": 5, "j": 5}
    assert document.lines[("i",)] == 11


def test_an_alias_of_a_lost_part_is_no_fault() -> None:
    """An anchor that stood in what can't be read is missing through no fault of who uses it."""
    document = read_yaml("a: &x [1\nb: *x\nc: 2\n")

    assert [fault.line for fault in document.faults] == [1]
    assert document.lost == ("a", "b")
    assert document.tree is not None
    assert plain_value(document.tree) == {"c": 2}


def test_mending_ends() -> None:
    """Many broken parts are told up to a number; a long file is not read again and again."""
    assert len(read_yaml("a: *x\n" * 500).faults) == 20
    long = read_yaml("a: [\n" + "b: 1\n" * 30_000)
    assert (len(long.faults), long.tree) == (1, None)


def test_no_words_of_the_file() -> None:
    """A syntax error repeats no word of the file, for it may be a secret."""
    for text in ("password: *hunter2", "password: !hunter2!x y", "hunter2: 'open", "a: {b: hunter2\nhunter2: c"):
        faults = read_yaml(text).faults
        assert faults
        assert all("hunter2" not in fault.message for fault in faults)


def test_not_utf8() -> None:
    """Bytes that are no UTF-8 are a fault in their line; a byte order mark is fine."""
    assert read_yaml(b"a: 1\nb: \xff\n").faults[0].line == 2
    assert read_yaml(b"\xef\xbb\xbfa: 1\n").faults == []


def test_bombs() -> None:
    """Deep nesting, exploding aliases and huge files are faults, and quickly so."""
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    for text in ("[" * 2000, laughs, "a: " + "x" * MOST_BYTES):
        document = read_yaml(text)
        assert len(document.faults) == 1
        assert document.tree is None


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:- \n[]{}&*!|>'\"#%@`?,0.\t~<\\$"), max_size=60))
def test_any_text(text: str) -> None:
    """No text makes the reader raise; it gives a tree, or says what is wrong."""
    document = read_yaml(text)
    if document.tree is not None:
        plain_value(document.tree)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    """No bytes make the reader raise."""
    read_yaml(data)
