"""A password from a passfile, by libpq's rules; read for each connection, since it may be rotated.

https://www.postgresql.org/docs/18/libpq-pgpass.html
"""

import re
import stat
from pathlib import Path

FIELD = re.compile(r"((?:\\.|[^\\:])*\\?)(?::|$)")
SOCKETS = {"/tmp", "/var/run/postgresql", "/run/postgresql"}  # noqa: S108 - "localhost" in the file


def find(path: str, host: str, port: int, database: str, user: str) -> str:
    """The password of the first line that fits, or an empty one."""
    file = Path(path)
    try:
        if not file.is_file() or file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return ""
        lines = file.read_text("utf-8", "replace").split("\n")
    except OSError:
        return ""
    wanted = ("localhost" if host in SOCKETS else host, str(port), database, user)
    for line in lines:
        fields = FIELD.findall(line.rstrip("\r"))
        if line.startswith("#") or len(fields) <= len(wanted):
            continue
        if all(_fits(*pair) for pair in zip(fields, wanted, strict=False)):
            return _plain(fields[len(wanted)])
    return ""


def _fits(field: str, wanted: str) -> bool:
    return field == "*" or _plain(field) == wanted


def _plain(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field)
