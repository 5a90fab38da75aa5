"""Who runs PostgreSQL where we are root, which it refuses to be, and what that user may enter."""

import contextlib
import pwd
import subprocess
from pathlib import Path

from service.errors import ConfigError

USER = "pgserver"


def of(data: Path) -> pwd.struct_passwd:
    """The user for a data folder: its owner; where there is none yet, `pgserver`.

    Raises:
        ConfigError: there is no such user, and none can be made.
    """
    owner = data.stat().st_uid if data.exists() else 0
    return pwd.getpwuid(owner) if owner else _user()


def _user() -> pwd.struct_passwd:
    """The user `pgserver`, made where it is missing; nobody can log in as it."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(USER)
    try:
        # Another process may do the same just now; then one of the two fails.
        subprocess.run(  # noqa: S603
            ["useradd", "--system", "--shell", "/bin/false", USER],  # noqa: S607
            capture_output=True,
            check=False,
        )
        return pwd.getpwnam(USER)
    except (OSError, KeyError):
        raise ConfigError(
            f"database.url: missing; PostgreSQL does not run as root, and a user {USER} cannot be "
            "made; run this as another user"
        ) from None


def let_in(path: Path) -> None:
    """Let other users pass through the folders above a path, and no more than that."""
    for folder in path.parents:
        if folder.exists() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)


def let_run(folder: Path) -> None:
    """Let other users run the programs in a folder, and read what lies beside it.

    Whoever installs with a umask of 077 shuts them out.
    """
    let_in(folder)
    if not (folder / "postgres").stat().st_mode & 0o001:
        for path in (folder.parent, *folder.parent.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (0o055 if mode & 0o100 else 0o044))
