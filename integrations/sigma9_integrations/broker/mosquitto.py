"""Mosquitto as the embedded broker: where it is, and the configuration that it runs with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from sigma9_integrations.broker.accounts import ACL_FILE, PASSWORD_FILE
from sigma9_integrations.broker.files import write_private

PLACES: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/local/sbin")
"""Where packages put it outside of a user's PATH."""

CONFIG_FILE: Final = "mosquitto.conf"

SETTINGS: Final = """\
allow_anonymous false
# Without it a QoS 1 round trip takes 44 ms instead of 0.7.
set_tcp_nodelay true
# The default of 1000 drops in silence what a burst puts before a slow client; bounded by bytes as well.
max_queued_messages 100000
max_queued_bytes 67108864
max_inflight_messages 100
message_size_limit 1048576
# The server publishes everything retained again after each start: nothing here is worth a file.
persistence false
sys_interval 0
log_dest stderr
log_timestamp false
log_type error
log_type warning
log_type notice
"""


def find() -> str | None:
    """Find the program; None where the machine has none."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(PLACES))


def command(program: str, folder: Path, host: str, port: int, *, more: str = "") -> list[str]:
    """Write the configuration into `folder`, beside the account files, and give the command line.

    `more` holds further lines.
    """
    lines = [f"listener {port} {host}", f"password_file {folder / PASSWORD_FILE}", f"acl_file {folder / ACL_FILE}"]
    if os.geteuid() == 0:  # else it becomes the user mosquitto, who can't read files of mode 0600
        lines.append("user root")
    config = folder / CONFIG_FILE
    write_private(config, "\n".join(lines) + "\n" + SETTINGS + more, durable=False)
    return [program, "-c", str(config)]
