"""Roles, passwords and access rules."""

from __future__ import annotations

import json
from pathlib import Path

import aiomqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.commands import BUILT_IN
from sigma9_core.errors import ConfigError, StateError
from sigma9_integrations.broker.accounts import (
    PASSWORDS,
    ROLES,
    access,
    acl_text,
    check_password,
    covers,
    hash_password,
    load_passwords,
)

LEVEL = st.sampled_from(["a", "b", "c"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join)
FILTER = st.builds(
    lambda levels, end: "/".join([*levels, *end]) or "+",
    st.lists(LEVEL | st.just("+"), max_size=4),
    st.sampled_from([[], ["#"]]),
)


@given(FILTER, TOPIC)
def test_a_filter_covers_the_topics_that_it_matches(pattern: str, topic: str) -> None:
    """For a plain topic, covering is MQTT's matching."""
    assert covers(pattern, topic) == aiomqtt.Topic(topic).matches(pattern)


@given(FILTER, FILTER, TOPIC)
def test_a_covered_filter_matches_nothing_more(allowed: str, wanted: str, topic: str) -> None:
    """A subscription that is covered never shows a topic that the allowed filter does not match."""
    if covers(allowed, wanted) and aiomqtt.Topic(topic).matches(wanted):
        assert aiomqtt.Topic(topic).matches(allowed)


def test_the_roles_differ_as_the_command_table_says() -> None:
    """Viewers publish nothing, operators no admin command, and only the server speaks as a node."""
    rules = access("sigma9", "homeassistant")
    for name, spec in BUILT_IN.items():
        for node in ("main", "all"):
            topic = f"sigma9/{node}/command/{name}"
            assert rules["admin"].may_write(topic)
            assert rules["operator"].may_write(topic) == (spec.right != "admin")
            assert not rules["viewer"].may_write(topic)
    for topic in ("state/status", "availability", "event/status_update", "response/start"):
        writers = [role for role in ROLES if rules[role].may_write(f"sigma9/main/{topic}")]
        assert writers == ["sigma9"]
    assert [role for role in ROLES if rules[role].may_write("sigma9/reply/x")] == ["sigma9"]
    for role in ROLES:
        assert rules[role].may_read("sigma9/#")
        assert rules[role].may_read("sigma9/reply/phone/1")
        assert not rules[role].may_read("#")
        assert not rules[role].may_read("$SYS/#")
    assert rules["viewer"].write == ()
    assert rules["operator"].may_write("homeassistant/status")


def test_the_access_file_says_the_same() -> None:
    """Each line of the file is a user or a grant that the rules have."""
    rules = access("sigma9", "homeassistant")
    found: dict[str, dict[str, set[str]]] = {}
    for line in acl_text(rules).splitlines():
        if line.startswith("user "):
            grants = found.setdefault(line.removeprefix("user "), {"read": set(), "write": set()})
        elif line:
            _, kind, topic = line.split(" ", 2)
            for one in ("read", "write"):
                if kind in (one, "readwrite"):
                    grants[one].add(topic)
    assert found == {role: {"read": set(rule.read), "write": set(rule.write)} for role, rule in rules.items()}


@pytest.mark.parametrize("base", ["a\nuser evil", "a\tb", "x\u2028y"])
def test_a_base_that_could_forge_a_line_is_refused(base: str) -> None:
    """A base topic with a line break can't smuggle a grant into the file."""
    with pytest.raises(ConfigError, match="base_topic"):
        access(base, "homeassistant")
    with pytest.raises(ConfigError, match="prefix"):
        access("sigma9", base)


def test_passwords_are_made_once_and_kept_private(tmp_path: Path) -> None:
    """The first start makes long passwords, later ones find them; a role that is missing gets one."""
    first = load_passwords(tmp_path)
    path = tmp_path / PASSWORDS
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(first) == set(ROLES)
    assert len(set(first.values())) == len(ROLES)
    assert min(map(len, first.values())) >= 20
    assert load_passwords(tmp_path) == first
    kept = {"viewer": "chosen by a person"}
    path.write_text(json.dumps(kept))
    assert load_passwords(tmp_path)["viewer"] == "chosen by a person"
    assert load_passwords(tmp_path)["admin"] == load_passwords(tmp_path)["admin"]


@pytest.mark.parametrize("text", ["{", "[]", '{"viewer": 5}', '{"viewer": ""}', "5"])
def test_broken_passwords_are_never_replaced_in_silence(tmp_path: Path, text: str) -> None:
    """A password file that can't be read stops the start and says what to do."""
    (tmp_path / PASSWORDS).write_text(text)
    with pytest.raises(StateError, match="delete it"):
        load_passwords(tmp_path)
    assert (tmp_path / PASSWORDS).read_text() == text


@given(st.text(max_size=30))
def test_a_hash_knows_its_password(password: str) -> None:
    """A hash accepts its own password and no other."""
    try:
        password.encode()
    except UnicodeEncodeError:
        return
    hashed = hash_password(password)
    assert check_password(password, hashed)
    assert not check_password(password + "x", hashed)
