"""TLS to the database, as libpq's sslmode and its neighbours ask for it."""

import os
import ssl
import stat
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

Options = Mapping[str, str]
Tls = ssl.SSLContext | Literal[False]
# Where libpq looks when a URL names no file: https://www.postgresql.org/docs/18/libpq-ssl.html
DEFAULTS = {
    "sslcert": "postgresql.crt",
    "sslkey": "postgresql.key",
    "sslrootcert": "root.crt",
    "sslcrl": "root.crl",
}


class _Context(ssl.SSLContext):
    """A context that knows whom it is for: we connect to an address, a certificate has a name."""

    name = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - the signature is Python's
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.name, session)


def attempts(options: Options, name: str, where: str) -> list[Tls]:
    """What to try with a host of this name, one after the other: TLS, or none (False).

    Raises:
        ValueError: a file cannot be used; the text names its key.
    """
    mode = options["sslmode"]
    if mode == "disable" or where.startswith("/"):
        return [False]
    context = _context(name, tuple(sorted(options.items())), _stamps(options))
    both: list[Tls] = [context, False]
    return {"prefer": both, "allow": both[::-1]}.get(mode, both[:1])


def verifies(options: Options) -> bool:
    """Whether the server has to prove who it is."""
    return options["sslmode"].startswith("verify-") or bool(
        options["sslmode"] == "require" and _file(options, "sslrootcert")
    )


def check(options: Options) -> None:
    """Try all files that are named, or lie where libpq looks for them.

    Raises:
        ValueError: one cannot be used; the text names its key.
    """
    for key in DEFAULTS:
        if (path := options.get(key, "")) not in {"", "system"} and not os.access(path, os.R_OK):
            raise ValueError(f"{key}: cannot read that file")
    if any(not host.startswith("/") for host in options["host"].split(",")):
        attempts(options, "name", "")


def _file(options: Options, key: str) -> str:
    """The file that a key names, or its default where one is there that we may read."""
    if named := options.get(key):
        return named
    try:
        file = Path.home() / ".postgresql" / DEFAULTS[key]
    except RuntimeError:  # no home
        return ""
    return str(file) if os.access(file, os.R_OK) else ""


def _stamps(options: Options) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file is replaced; certificates are, every few months or days."""
    found = []
    for key in DEFAULTS:
        if (path := _file(options, key)) not in {"", "system"}:
            status = Path(path).stat()
            found.append((path, status.st_ino, status.st_mtime_ns))
    return tuple(found)


@lru_cache(maxsize=32)
def _context(
    name: str, items: tuple[tuple[str, str], ...], _: tuple[tuple[str, int, int], ...]
) -> ssl.SSLContext:
    options = dict(items)
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.name = name
    context.check_hostname = options["sslmode"] == "verify-full"
    root = _file(options, "sslrootcert")
    if not root and options["sslmode"].startswith("verify-"):
        raise ValueError(
            f"sslrootcert: missing, and sslmode={options['sslmode']} needs one; "
            "sslrootcert=system takes the system's"
        )
    if not root:
        context.verify_mode = ssl.CERT_NONE
    elif root == "system":
        context.load_default_certs()
    else:
        _load("sslrootcert", lambda: context.load_verify_locations(root))
        if revoked := _file(options, "sslcrl"):
            _load("sslcrl", lambda: context.load_verify_locations(revoked))
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    certificate, key = _file(options, "sslcert"), _file(options, "sslkey")
    if certificate and options.get("sslcertmode") != "disable":
        _check_private(key)
        password = options.get("sslpassword", "")  # without one, Python would ask a terminal
        _load(
            "sslcert", lambda: context.load_cert_chain(certificate, key or None, lambda: password)
        )
    for attribute, which in (("minimum_version", "min"), ("maximum_version", "max")):
        if version := options.get(f"ssl_{which}_protocol_version"):
            setattr(
                context,
                attribute,
                ssl.TLSVersion[version.upper().replace("V", "v").replace(".", "_")],
            )
    context.set_alpn_protocols(["postgresql"])
    return context


def _load(key: str, load: Callable[[], None]) -> None:
    try:
        load()
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise ValueError(f"{key}: cannot be used: {reason}") from None


def _check_private(key: str) -> None:
    """As libpq does: root's key may be read by its group, anybody else's by its owner alone."""
    if key:
        status = Path(key).stat()
        others = stat.S_IRWXO | (
            stat.S_IWGRP | stat.S_IXGRP if status.st_uid == 0 else stat.S_IRWXG
        )
        if status.st_mode & others:
            raise ValueError("sslkey: others may read it; chmod 600 mends that")
