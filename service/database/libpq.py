"""A database URL as libpq reads it: what it says, its service, the environment, defaults.

Run as a program, it takes a URL on standard input and prints its options, or what is wrong, as
JSON: psycopg would cost each serving process 9 MB for as long as it lives.
"""

import json
import re
import subprocess
import sys

STOP = "!"  # a value that no option has
QUOTED = re.compile('".*"', re.DOTALL)
UNKNOWN = re.compile(r'invalid URI query parameter: "([a-z_]+)"')


def read(url: str) -> dict[str, str]:
    """Ask libpq for all options that a URL comes to; no connection is made, no name looked up.

    `host` and `port` have an element for each host. What is not set is not there, or empty. A
    password is there only if it is not in a passfile.

    Raises:
        ValueError: libpq refuses it; the text quotes nothing of it but the name of an option.
    """
    if "psycopg" in sys.modules:
        return _read(url)
    answer = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-P", __file__],
        input=url,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    ).stdout
    options: dict[str, str] | str = json.loads(answer)
    if isinstance(options, str):
        raise ValueError(options)
    return options


def _read(url: str) -> dict[str, str]:
    from psycopg import OperationalError, pq
    from psycopg.conninfo import make_conninfo

    try:
        parsed = pq.Conninfo.parse(url.encode())
    except OperationalError as error:
        raise ValueError(_without_values(str(error), url)) from None
    given = {option.keyword.decode(): option.val.decode() for option in parsed if option.val}

    def stop_at(key: str, **instead: str) -> tuple[dict[str, str], str]:
        """All options but `key`, and the first host, as libpq knows them when it refuses `key`.

        Its value is one that no option has. libpq looks at it after most others, and before it
        connects to anything.
        """
        conninfo = make_conninfo("", **{**given, **instead, key: STOP})
        connection = pq.PGconn.connect_start(conninfo.encode())
        error = connection.error_message.decode(errors="replace")
        if f'"{STOP}"' not in error:
            raise ValueError(_without_values(error, url))
        options = {option.keyword.decode(): option.val for option in connection.info if option.val}
        return {name: value.decode() for name, value in options.items()}, connection.host.decode()

    options, _ = stop_at("load_balance_hosts")
    rest, default_host = stop_at("target_session_attrs", host="", hostaddr="", port="")
    options["load_balance_hosts"] = rest["load_balance_hosts"]
    addresses = options.get("hostaddr", "").split(",")
    hosts = options.get("host", "").split(",")
    count = max(len(hosts), len(addresses))
    hosts = hosts if len(hosts) == count else [""] * count
    addresses = addresses if len(addresses) == count else [""] * count
    ports = options["port"].split(",")
    options["host"] = ",".join(
        host or address or default_host for host, address in zip(hosts, addresses, strict=True)
    )
    options["port"] = ",".join(
        port or "5432" for port in (ports if len(ports) == count else ports * count)
    )
    return options


def _without_values(text: str, url: str) -> str:
    """What libpq says, without what it quotes: it may be a password, badly encoded."""
    unknown = UNKNOWN.match(text)
    if unknown and "@" not in url.partition("?")[2]:
        return f"{unknown[1]}: no parameter of a connection; a setting goes into options=-c..."
    return " ".join(QUOTED.sub('"..."', text).split())


def _main() -> None:
    try:
        answer: dict[str, str] | str = _read(sys.stdin.read())
    except ValueError as error:
        answer = str(error)
    print(json.dumps(answer))  # noqa: T201 - for who asked


if __name__ == "__main__":
    _main()
