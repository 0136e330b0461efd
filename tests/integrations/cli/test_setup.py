"""`sigma9 mqtt setup`: what it makes, what it keeps, and what it never overwrites."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from sigma9_integrations.broker import certificates
from sigma9_integrations.broker.accounts import ACL_FILE, PASSWORD_FILE, PASSWORDS, ROLES, load_passwords
from sigma9_integrations.cli.setup import shipped

ACCOUNTS = {PASSWORDS, PASSWORD_FILE, ACL_FILE, "mosquitto.conf"}
TLS = {f"{name}.{end}" for name in ("ca", "server", "sigma9") for end in ("crt", "key")}


def cert(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


async def test_without_tls(cli: Any, alone: Path) -> None:
    """Private account files and a configuration without the network's listeners; no password is shown."""
    result = await cli("mqtt", "setup", "files", "--base-topic", "home/trader")
    folder = alone / "files"
    assert result.code == 0
    assert {path.name for path in folder.iterdir()} == ACCOUNTS
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {(folder / name).stat().st_mode & 0o777 for name in ACCOUNTS - {"mosquitto.conf"}} == {0o600}
    assert "home/trader/+/command/start" in (folder / ACL_FILE).read_text()
    text = (folder / "mosquitto.conf").read_text()
    assert f"password_file {folder}/{PASSWORD_FILE}" in text
    assert "listener 1883 127.0.0.1" in text
    assert "8883" not in text
    assert "/etc/mosquitto/sigma9" not in text
    assert not any(password in result.out for password in load_passwords(folder).values())
    for step in (f"sudo chown mosquitto: {folder} ", "sudo cp ", "server_config.yaml", "--tls --host"):
        assert step in result.out


async def test_with_tls(cli: Any, alone: Path) -> None:
    """An authority, a server certificate for hosts and machine, a client one for sigma9; keys are private."""
    result = await cli(
        "mqtt", "setup", "files", "--tls", "--host", "trader.lan", "--host", "10.0.0.5", "--days", "90"
    )
    folder = alone / "files"
    assert result.code == 0
    assert {path.name for path in folder.iterdir()} == ACCOUNTS | TLS
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {0o600}
    names = set(certificates.names_in(cert(folder, "server")))
    assert {"trader.lan", "10.0.0.5", "localhost", "127.0.0.1", "::1"} <= names
    assert names == set(certificates.names_of(["trader.lan", "10.0.0.5"]))
    assert cert(folder, "sigma9").subject.rfc4514_string() == "CN=sigma9"
    for name in ("server", "sigma9"):
        cert(folder, name).verify_directly_issued_by(cert(folder, "ca"))
        left = cert(folder, name).not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=89) < left <= timedelta(days=90)
    assert "listener 8883" in (folder / "mosquitto.conf").read_text()
    assert "ca.crt as the authority to trust" in result.out
    assert "host: trader.lan, port: 8885" in result.out


async def test_again_changes_nothing_that_is_good(cli: Any, alone: Path) -> None:
    """A second run keeps passwords, authority and certificates; --force makes all of them new."""
    await cli("mqtt", "setup", "files", "--tls", "--host", "a.lan")
    folder = alone / "files"
    before = contents(folder, PASSWORDS, *TLS)
    again = await cli("mqtt", "setup", "files", "--tls")
    assert contents(folder, PASSWORDS, *TLS) == before
    assert again.out.count(": kept") == 4
    assert "a.lan" in again.out
    forced = await cli("mqtt", "setup", "files", "--tls", "--force")
    assert forced.code == 0
    after = contents(folder, PASSWORDS, *TLS)
    assert all(after[name] != before[name] for name in before)
    cert(folder, "server").verify_directly_issued_by(cert(folder, "ca"))


async def test_what_ends_soon_is_renewed(cli: Any, alone: Path) -> None:
    """A certificate with less than 30 days left is renewed under the same authority, for the same names."""
    await cli("mqtt", "setup", "files", "--tls", "--host", "a.lan", "--days", "20")
    folder = alone / "files"
    before = contents(folder, "ca.crt", "ca.key", "server.crt", "sigma9.crt")
    result = await cli("mqtt", "setup", "files", "--tls")
    assert result.out.count(": renewed: it ended on") == 2
    after = contents(folder, "ca.crt", "ca.key", "server.crt", "sigma9.crt")
    assert {name for name in after if after[name] != before[name]} == {"server.crt", "sigma9.crt"}
    assert "a.lan" in certificates.names_in(cert(folder, "server"))
    cert(folder, "server").verify_directly_issued_by(cert(folder, "ca"))


async def test_a_new_host_joins_the_others(cli: Any, alone: Path) -> None:
    """A host that the certificate does not have makes it anew, with the names that it had."""
    await cli("mqtt", "setup", "files", "--tls", "--host", "a.lan")
    result = await cli("mqtt", "setup", "files", "--tls", "--host", "b.lan")
    assert "made anew: for b.lan as well" in result.out
    assert {"a.lan", "b.lan"} <= set(certificates.names_in(cert(alone / "files", "server")))


async def test_the_authority_may_be_kept_elsewhere(cli: Any, alone: Path) -> None:
    """Without ca.key all goes on while nothing needs a signature; then one sentence says what is missing."""
    await cli("mqtt", "setup", "files", "--tls")
    (alone / "files" / "ca.key").unlink()
    assert (await cli("mqtt", "setup", "files", "--tls")).code == 0
    before = contents(alone / "files", "ca.crt", "server.crt")
    result = await cli("mqtt", "setup", "files", "--tls", "--host", "b.lan")
    assert result.code == 1
    assert "put the authority's key back" in result.err
    assert contents(alone / "files", "ca.crt", "server.crt") == before


async def test_a_lost_authority_is_not_replaced_in_silence(cli: Any, alone: Path) -> None:
    """Certificates of an authority that is gone: only --force makes another one."""
    await cli("mqtt", "setup", "files", "--tls")
    (alone / "files" / "ca.crt").unlink()
    result = await cli("mqtt", "setup", "files", "--tls")
    assert result.code == 1
    assert "bring that back" in result.err
    assert not (alone / "files" / "ca.crt").exists()
    (alone / "files" / "ca.crt").write_text("no certificate")
    assert "can't be read" in (await cli("mqtt", "setup", "files", "--tls")).err


async def test_a_key_of_another_certificate_is_noticed(cli: Any, alone: Path) -> None:
    """A server certificate whose key does not fit (a crash between the two) is made anew."""
    await cli("mqtt", "setup", "files", "--tls")
    folder = alone / "files"
    (folder / "server.key").write_bytes((folder / "sigma9.key").read_bytes())
    assert "made anew: its key was missing or another one's" in (await cli("mqtt", "setup", "files", "--tls")).out


async def test_an_edited_configuration_is_kept_aside(cli: Any, alone: Path) -> None:
    """A mosquitto.conf that differs is written anew, and the one before stays beside it."""
    await cli("mqtt", "setup", "files")
    conf = alone / "files" / "mosquitto.conf"
    conf.write_text("# mine\n")
    result = await cli("mqtt", "setup", "files")
    assert "the one before is mosquitto.conf.old" in result.out
    assert conf.with_name("mosquitto.conf.old").read_text() == "# mine\n"
    assert "old" not in (await cli("mqtt", "setup", "files")).out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_mosquitto_keeps_its_files(cli: Any, alone: Path) -> None:
    """Once the folder belongs to another user, what is renewed does as well, but for the secrets of people."""
    await cli("mqtt", "setup", "files", "--tls", "--days", "20")
    os.chown(alone / "files", 12345, 12345)
    await cli("mqtt", "setup", "files", "--tls")
    owners = {path.name: path.stat().st_uid for path in (alone / "files").iterdir()}
    theirs = {PASSWORD_FILE, ACL_FILE, "ca.crt", "server.crt", "server.key"}
    assert {name for name, owner in owners.items() if owner == 12345} == theirs


async def test_broken_passwords_stop_it(cli: Any, alone: Path) -> None:
    """Passwords that can't be read are never replaced without being asked to."""
    await cli("mqtt", "setup", "files")
    path = alone / "files" / PASSWORDS
    path.write_text("{")
    result = await cli("mqtt", "setup", "files")
    assert (result.code, path.read_text()) == (1, "{")
    assert (await cli("mqtt", "setup", "files", "--force")).code == 0
    assert set(load_passwords(alone / "files")) == set(ROLES)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--host", "a.lan"], "say --tls as well"),
        (["--base-topic", "a/#"], "--base-topic 'a/#' is no topic"),
        (["--base-topic", "a\nuser x"], "can't stand in a line"),
        (["--days", "0"], "a whole number"),
    ],
)
async def test_wrong_usage(cli: Any, alone: Path, more: list[str], sentence: str) -> None:
    """What makes no sense is exit code 2 with a reason, and nothing is written."""
    result = await cli("mqtt", "setup", "files", *more)
    assert result.code == 2
    assert sentence in result.err
    assert not (alone / "files").exists()


@pytest.mark.parametrize("host", ["", "a b", "x" * 300, "*.lan", "a/b"])
async def test_a_host_that_is_none(cli: Any, alone: Path, host: str) -> None:
    """What can't be a host's name is refused before anything is written."""
    result = await cli("mqtt", "setup", "files", "--tls", "--host", host)
    assert result.code == 1
    assert "no name or address" in result.err
    assert not (alone / "files").exists()


async def test_a_folder_of_others_is_left_alone(cli: Any, alone: Path) -> None:
    """A folder with other things in it, such as /etc/mosquitto, does not become private."""
    (alone / "etc").mkdir(mode=0o755)
    (alone / "etc" / "conf.d").mkdir()
    result = await cli("mqtt", "setup", "etc")
    assert result.code == 2
    assert f"such as {alone / 'etc' / 'sigma9'}" in result.err
    assert (alone / "etc").stat().st_mode & 0o777 == 0o755


async def test_without_the_package(cli: Any, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `cryptography` one sentence says how to get it; without --tls it is not needed."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = await cli("mqtt", "setup", "files", "--tls")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "pip install 'sigma9[tls]'" in result.err
    assert not (alone / "files").exists()
    assert (await cli("mqtt", "setup", "files")).code == 0


def test_the_shipped_file_is_found() -> None:
    """The package has the file at the top of the repository; a wheel has its text."""
    assert shipped().read_text() == (Path(__file__).parents[3] / "mosquitto.conf").read_text()
