"""Hundreds of broken configurations: never a traceback, always a line, never a secret, always a sentence."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sigma9_core import calendar_names, log
from sigma9_core.configfile import load_client_settings, survey_settings
from sigma9_core.errors import ConfigError, Fault
from sigma9_core.plugincheck import every_fault

SECRET: Final = "hunter2"
"""Part of every secret of the base file, and of nothing else in it."""

BASE: Final = f"""\
node: main
data_dir: data
server:
  host: 127.0.0.1
  port: 8000
  debug: false
  allowed_origins: [http://a]
  tls: {{cert: null, key: null}}
auth:
  token: {SECRET}-token
mqtt:
  broker: external
  host: broker.local
  username: u
  password: {SECRET}-broker
  base_topic: sigma9
broker: paper
feed: simulated
sizer:
  plugin: fixed_fraction
  config: {{}}
scanners:
  - plugin: seismograph
    name: seismograph
    config: {{watchlist_size: 20, universe: {{min_price: 2.0}}}}
risk:
  - plugin: max_order_value
    config: {{max_money: 5000}}
  - plugin: max_open
    config: {{max_positions: 3}}
notifiers:
  - plugin: console
    config: {{}}
plugins:
  paths: []
  settings:
    max_position: {{max_percent_of_equity: 10}}
ibkr: {{port: 7497, account: null}}
database:
  type: postgresql
  url: postgresql+psycopg://u:{SECRET}-database@h/d
polygon:
  enabled: true
  api_key: {SECRET}-polygon
scheduler:
  timezone: America/New_York
  calendar: XNYS
  data_update_time: "16:30"
kill_switch: {{flatten: true, foreign: leave}}
dead_man: {{timeout: 30}}
"""

CLIENT: Final = f"""\
server:
  host: localhost
  port: 8000
  token: {SECRET}-client
  tls: false
connection: {{auto_connect: true, timeout: 30}}
gui:
  theme: dark
"""

VALUES: Final = (
    *("5", "-1", "1.5", "true", "text", "null", "", "''", "0x1g", "1e999", ".nan", "16:30", "2026-11-20"),
    *("[]", "[1, 2]", "[[a], {b: c}]", "{}", "{a: 1}", "{1: {2: 3}}", "- x", "a: b", "? x", "<<: 5"),
    *("*gone", "&a 1", "&b [*b]", "!x 1", "!!python/object:os.system {}", "${NOPE}", "${}", "$${X}", "a${A-B}"),
    *("'a", '"', "[1", "{a: 1", "\t5", "%x", "@x", "`x", "|", ">", "\\u0007", '"\\x07"', "x" * 300, "ä\u2028ö"),
)
"""What may stand where something else belongs."""

PYTHON: Final = re.compile(
    r"\b(Traceback|tuple|dict|dictionary|NoneType|None|Decimal|str|integer|float|bool|instance|pydantic|Input|Error)\b"
)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_pattern", None)
    monkeypatch.setattr(
        calendar_names, "installed_names", lambda: frozenset(calendar_names.NAMES)
    )  # saves a child


def judge(text: str | bytes, *, client: bool = False) -> list[Fault]:
    """Read a broken file as `config check` does, and hold every fault against the rules."""
    file = Path("c.yaml")
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    file.chmod(0o600)
    if client:
        try:
            load_client_settings(file, (), {})
        except ConfigError as error:
            faults = list(error.faults)
        else:
            faults = []
    else:
        faults = every_fault(survey_settings(file, (), {}))
    lines = []
    for fault in faults:
        said = str(fault)
        place = re.fullmatch(r"c\.yaml:(\d+)", fault.where)
        assert place, said
        lines.append(int(place[1]))
        assert SECRET not in said, said
        assert not PYTHON.search(said), said
        assert said.isprintable(), said
        assert len(fault.message) > 8, said
        assert len(said) < 400, said
    assert lines == sorted(lines)
    assert len(set(faults)) == len(faults)
    assert not lines or lines[-1] <= file.read_bytes().count(b"\n") + 1
    return faults


def mutants(base: str, count: int, seed: int) -> Iterator[str]:
    """Damage one to three lines of a file: values, typing errors, tabs, doubled, cut and joined lines."""
    dice = random.Random(seed)
    for _ in range(count):
        lines = base.splitlines()
        for _ in range(dice.choice((1, 1, 2, 3))):
            at = dice.randrange(len(lines))
            found = re.fullmatch(r"( *(?:- )?)([\w]+): ?(.*)", lines[at])
            if found is None:
                continue
            before, key, value = found.groups()
            cut = dice.randrange(len(key))
            lines[at] = dice.choice(
                (
                    *(f"{before}{key}: {dice.choice(VALUES)}" for _ in range(6)),
                    f"{before}{key[:cut]}{key[cut + 1 :]}: {value}",
                    f"{before}{key[:cut]}x{key[cut:]}: {value}",
                    f"\t{lines[at]}",
                    f" {lines[at]}",
                    lines[at].lstrip(),
                    f"{lines[at]}\n{lines[at]}",
                    f"{before}{key}:{value}",
                    f"{before}{key} {value}",
                    f"{before}- {value}",
                    "",
                )
            )
        yield "\n".join(lines) + "\n"


def test_the_base_is_sound() -> None:
    """Without damage there is no fault: what the mutants say is due to the damage."""
    assert judge(BASE) == []
    assert judge(CLIENT, client=True) == []


@pytest.mark.parametrize("seed", range(4))
def test_three_hundred_broken_server_files(seed: int) -> None:
    """Whatever is done to single lines, every fault has its line and its sentence, and no secret in it."""
    found = [judge(text) for text in mutants(BASE, 75, seed)]

    assert sum(map(bool, found)) > 45


def test_broken_client_files() -> None:
    """The same holds for a client's file."""
    found = [judge(text, client=True) for text in mutants(CLIENT, 100, 9)]

    assert sum(map(bool, found)) > 60


SECTIONS: Final = ("auth", "mqtt", "database", "polygon")
FORMS: Final = (
    "{section}: {secret}",
    "{section}: '{secret}'",
    "{section}: [{secret}]",
    "{section}: [{key}, {secret}]",
    "{section}: {{{secret}}}",
    "{section}: {{{key}:{secret}}}",
    "{section}: {{{key}={secret}}}",
    "{section}: {{{key} {secret}}}",
    "{section}: {{{key}: [{secret}]}}",
    "{section}: {{{key}: {{{secret}: 1}}}}",
    "{section}: {{{key}: {{x: {secret}}}}}",
    "{section}: {{{key}: *{secret}}}",
    "{section}: {{{key}: !{secret} x}}",
    "{section}: {{{key}: &{secret} x, x: *{secret}}}",
    "{section}: {{{key}: '{secret}}}",
    '{section}: {{{key}: "{secret}\\q"}}',
    "{section}: {{{key}: ${{{secret}}}}}",
    '{section}: {{{key}: "${{{secret}}}"}}',
    "{section}: {{{key}: {secret}, {key}: {secret}}}",
    "{section}: {{{key}: {secret} x, enabled: maybe}}",
    "{section}:\n  {key}:{secret}",
    "{section}:\n  {key}= {secret}",
    "{section}:\n  {key} {secret}",
    "{section}:\n  {secret}",
    "{section}:\n  - {secret}",
    "{section}:\n\t{key}: {secret}",
    "{section}:\n  {key}: {secret}: x",
    "{section}:\n  {key}: {secret}\n {key}: {secret}",
    "{section}:\n  {key}: %{secret}",
    "{section}:\n  {key}: @{secret}",
    "{section}: {{x: {{{key}: {secret}}}}}",
    "{section}{key}: {secret}",
    "{key}: {secret}",
    "{key}: {{x: {secret}}}\nnode: {secret}",
    "server: {{{key}: {secret}}}",
    "plugins: {{settings: {{mail: {secret}}}}}",
    "plugins: {{settings: {{max_open: {{{key}: {secret}}}}}}}",
    "plugins: {{settings: {{max_open: {{max_positions: x, {key}: [{secret}]}}}}}}",
    "notifiers: [{{plugin: console, config: {secret}}}]",
    "notifiers: [{{plugin: console, config: {{{key}: {secret}}}}}]",
    "ibkr: {{{key}: {secret}}}",
    "{section}: {{{key}: {secret}}}\nmqtt: {{username: [{secret}]}}\nnode: {secret}!\nfeed: {secret}",
)
"""Ways in which somebody may get a secret into a wrong place."""
KEYS: Final = {"auth": "token", "mqtt": "password", "database": "url", "polygon": "api_key"}


@pytest.mark.parametrize("section", SECTIONS)
def test_no_secret_is_repeated_wherever_it_stands(section: str) -> None:
    """A secret that was put into a wrong place is masked like one in its own."""
    secrets = itertools.cycle((f"{SECRET}-and-more", SECRET, f"{SECRET}{'9' * 60}"))
    key = "password" if section == "database" else KEYS[section]
    for form in FORMS:
        assert judge(form.format(section=section, key=key, secret=next(secrets)) + "\nport: 5\n")


@pytest.mark.parametrize("form", FORMS)
def test_no_secret_of_a_client_is_repeated(form: str) -> None:
    """The same for the one secret that a client's file holds."""
    text = form.format(section="server", key="token", secret=f"{SECRET}-client")
    assert judge(text + "\nport: 5\n", client=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# only this\n",
        "---\n",
        "{}\n",
        "null\n",
        "&a {}\n",
    ],
)
def test_nothing_at_all_is_no_fault(text: str) -> None:
    """An empty file means the defaults."""
    assert judge(text) == []


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00",
        b"node: \xff\n",
        b"node: a\x00b\n",
        b"\x00" * 50,
        "5\n",
        "[]\n",
        "- node: x\n",
        "node: x\n---\nnode: y\n",
        "node: x\n...\nfeed: y\n",
        "? [a]\n: b\n",
        "<<: *x\n",
        "a: &a {<<: *a}\n",
        "!!set {a, b}\n",
        "node: x\n" * 200,
        "[" * 3000,
        "{a: " * 1500,
        "\t\n\tnode: x\n",
        "node: x\r\nfeed: [\r\nbroker: 5\r\n",
        "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" if n else "a0: &a0 [x, x]\n" for n in range(30)),
        "risk:\n" + "  - {plugin: max_open, name: x, confg: 1}\n" * 60,
        "node: [\n" * 40,
        "password: x: y\n" * 40,
    ],
)
def test_what_is_hardly_a_file_has_faults_with_lines(text: str | bytes) -> None:
    """Bytes, lists, bombs and endless repetition are refused like anything else."""
    assert judge(text)


def test_settings_with_wrong_values() -> None:
    """Every line and every value take part, each pair of them now and then; nothing escapes the rules."""
    lines = BASE.splitlines()
    pairs = itertools.product(enumerate(lines), VALUES)
    for (at, line), value in itertools.islice(pairs, 0, None, 13):  # all lines and all values, in two seconds
        found = re.fullmatch(r"( *(?:- )?)([\w]+): ?(.*)", line)
        if found is not None:
            judge("\n".join([*lines[:at], f"{found[1]}{found[2]}: {value}", *lines[at + 1 :]]) + "\n")
