"""One URL, two drivers: psycopg and asyncpg go to the same place, or both refuse to go."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import asyncpg
import psycopg
import pytest
from psycopg import pq
from psycopg.conninfo import make_conninfo

from service import config
from service.database import libpq, passfile, tls, url
from service.database.connections import COMMON_SETTINGS
from service.database.connector import Connection, Connector
from service.database.failures import Unusable, is_hopeless, is_transient
from service.database.migrations import migrate
from service.errors import ConfigError
from tests.conftest import psql
from tests.support.certificates import Authority
from tests.support.cluster import BIN, Cluster

KEYS = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
ROLE = "bell"
PASSWORD = "right:\\one"
SEEN = """
    select current_user, current_database(), version, client_dn,
      case when ssl then 'TLS' else 'plain' end as ssl,
      current_setting('application_name') as application_name,
      current_setting('work_mem') as options
    from pg_stat_ssl where pid = pg_backend_pid()
"""
OPTIONS = {
    "keepalives": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "keepalives_idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "keepalives_interval": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "keepalives_count": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "tcp_user_timeout": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
}


def with_tls() -> Path | None:
    """The programs of a PostgreSQL that speaks TLS; the wheel's does not."""
    for programs in (BIN, *Path("/usr/lib/postgresql").glob("*/bin")):
        command = [str(programs / "pg_config"), "--configure"]
        if "ssl" in subprocess.run(command, capture_output=True, text=True, check=False).stdout:
            return programs
    return None


TLS = with_tls()
needs_tls = pytest.mark.skipif(TLS is None, reason="no PostgreSQL that speaks TLS is installed")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with certificates, a passfile and a service file, none where libpq looks by itself."""
    folder = tmp_path_factory.mktemp("home")
    authority = Authority(folder, "authority")
    server = authority.sign("server", "", "db.example", "127.0.0.1")
    authority.sign("client")
    authority.sign("locked", "opens")
    authority.revoke("nothing")
    authority.revoke("all", server)
    Authority(folder, "stranger")
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Cluster]:
    """A server that asks a role for its password, over TLS where it can."""
    server = Cluster(TLS or BIN)
    if TLS:
        for name in ("server.crt", "server.key", "authority.crt"):
            file = Path(shutil.copy(home / name, server.data))
            shutil.chown(file, server.data.owner(), server.data.group())
        server.configure(ssl="on", ssl_ca_file="authority.crt")
    access = server.data / "pg_hba.conf"
    plain = f"host all {ROLE} all scram-sha-256\nhostnossl all plain all trust\n"
    secure = "hostssl all secure all trust\n" if TLS else ""
    access.write_text(plain + secure + "host all plain,secure all reject\n" + access.read_text())
    server.start()
    quoted = PASSWORD.replace("\\", "\\\\")
    psql(server.url(), f"create role {ROLE} login password E'{quoted}'", "create database app")
    psql(server.url(), "create role plain login", "create role secure login")
    (home / "passfile").touch(mode=0o600)
    (home / "passfile").write_text(
        f"#\nother:*:*:*:wrong\n127.0.0.1:{server.port}:app:{ROLE}:right\\:\\\\one\n*:*:*:*:wrong\n"
    )
    (home / "services").write_text(
        f"[here]\nhost=127.0.0.1\nport={server.port}\ndbname=app\nuser=postgres\n"
    )
    yield server
    server.remove()


async def both(address: str) -> list[dict[str, Any]]:
    """What each driver reaches by a URL, as their commands use it: migrate, then serve."""
    options = url.read(address)

    def by_psycopg() -> dict[str, Any]:
        conninfo = make_conninfo("", **url.for_libpq(options))
        with psycopg.connect(conninfo, row_factory=psycopg.rows.dict_row) as connection:
            row = connection.execute(SEEN).fetchone() or {}
            with socket.socket(fileno=os.dup(connection.fileno())) as peer:
                return row | {key: peer.getsockopt(*option) for key, option in OPTIONS.items()}

    connector = Connector(config.Database(url=address))
    loop = asyncio.get_running_loop()
    connection: Connection = await connector.connect(loop.time() + 30, COMMON_SETTINGS)
    (row,) = await connection.fetch(SEEN)
    peer = connection._transport.get_extra_info("socket")
    sockets = {key: peer.getsockopt(*option) for key, option in OPTIONS.items()}
    await connection.close()
    return [await asyncio.to_thread(by_psycopg), dict(row) | sockets]


def test_every_option_of_libpq_has_its_place() -> None:
    """Honoured, dropped, or some values only; a newer libpq's is refused until it has one."""
    places = [*url.HONOURED, *url.DROPPED, *url.ONLY]
    assert sorted(places) == sorted(KEYS)
    tried = {key for (it,), *_ in CASES for key, _ in parse_qsl(it.query)}
    assert tried | {"port"} >= url.HONOURED


class Case(NamedTuple):
    """An option, in the URL or the environment, with what shows it, and how."""

    query: str
    seen: str
    value: object
    user: str
    environ: Mapping[str, str]


def case(query: str, seen: str, value: object, user: str = "", **environ: str) -> Any:
    """One of them; skipped where it takes TLS, and there is none."""
    marks = [needs_tls] * ("ssl" in query or "channel" in query)
    return pytest.param(Case(query, seen, value, user, environ), id=query or None, marks=marks)


IN = f"{ROLE}:{PASSWORD.replace(':', '%3A')}"
CA = "sslrootcert={home}/authority.crt"
CASES = [
    case("", "current_user", "postgres", PGUSER="postgres"),
    case("dbname=app", "current_database", "app"),
    case("", "current_database", "app", PGDATABASE="app"),
    case("service=here", "current_database", "app", PGSERVICEFILE="{home}/services"),
    case("", "current_database", "app", PGSERVICE="here", PGSERVICEFILE="{home}/services"),
    case("user=bell&password=right%3A%5Cone", "current_user", ROLE),
    case("", "current_user", ROLE, "bell", PGPASSWORD=PASSWORD),
    case("dbname=app&passfile={home}/passfile", "current_user", ROLE, "bell"),
    case("dbname=app", "current_user", ROLE, "bell", PGPASSFILE="{home}/passfile"),
    case("host=nowhere.invalid&hostaddr=127.0.0.1", "current_user", "postgres"),
    case("options=-c%20work_mem%3D123kB", "options", "123kB"),
    case("", "options", "123kB", PGOPTIONS="-c work_mem=123kB"),
    case("application_name=mine", "application_name", "mine"),
    case("", "application_name", "mine", PGAPPNAME="mine"),
    case("fallback_application_name=mine", "application_name", "mine"),
    case("", "application_name", url.APPLICATION),
    case("keepalives=0", "keepalives", 0),
    case("", "keepalives", 1),
    case("keepalives_idle=77", "keepalives_idle", 77),
    case("keepalives_interval=7", "keepalives_interval", 7),
    case("keepalives_count=7", "keepalives_count", 7),
    case("tcp_user_timeout=7000", "tcp_user_timeout", 7000),
    case("connect_timeout=7", "current_user", "postgres"),
    case("target_session_attrs=read-write", "current_user", "postgres"),
    case("load_balance_hosts=random", "current_user", "postgres"),
    case("sslmode=disable", "ssl", "plain"),
    case("sslmode=prefer", "ssl", "TLS"),
    case("sslmode=allow", "ssl", "plain"),
    case("sslmode=prefer", "ssl", "plain", "plain"),  # the server wants none
    case("sslmode=allow", "ssl", "TLS", "secure"),
    case("sslmode=require", "ssl", "TLS"),
    case("", "ssl", "TLS", PGSSLMODE="require"),
    case("sslnegotiation=postgres", "ssl", "TLS"),
    case(f"sslmode=verify-full&{CA}", "ssl", "TLS"),
    case(f"host=db.example&hostaddr=127.0.0.1&sslmode=verify-full&{CA}", "ssl", "TLS"),
    case("sslrootcert=system", "ssl", "TLS", SSL_CERT_FILE="{home}/authority.crt"),
    case("channel_binding=require", "ssl", "TLS", IN, SSL_CERT_FILE="{home}/authority.crt"),
    case(f"channel_binding=require&sslmode=verify-ca&{CA}", "ssl", "TLS", IN),
    case("ssl_max_protocol_version=TLSv1.2", "version", "TLSv1.2"),
    case("ssl_min_protocol_version=TLSv1.3", "version", "TLSv1.3"),
    case(
        "sslcert={home}/client.crt&sslkey={home}/client.key&sslmode=require",
        "client_dn",
        "/CN=client",
    ),
    case(
        "sslcert={home}/client.crt&sslkey={home}/client.key&sslcertmode=disable", "client_dn", None
    ),
    case(
        "sslcert={home}/locked.crt&sslkey={home}/locked.key&sslpassword=opens",
        "client_dn",
        "/CN=locked",
    ),
    case(f"sslmode=verify-ca&{CA}&sslcrl={{home}}/nothing.crl", "ssl", "TLS"),
]


@pytest.fixture
def environ(home: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing of PostgreSQL's in the environment, and a home without any of its files."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return monkeypatch


@pytest.mark.parametrize("case", CASES)
async def test_both_drivers_honour_an_option(
    case: Case, server: Cluster, home: Path, environ: pytest.MonkeyPatch
) -> None:
    """As libpq does."""
    for name, text in case.environ.items():
        environ.setenv(name, text.format(home=home))
    query, user, name = case.query, case.user, "postgres"
    if "service" in f"{query}{case.environ}".lower():
        name = ""
    else:
        query += f"&port={server.port}" + "&host=127.0.0.1" * ("host=" not in query)
        if not user and "user=" not in query and "PGUSER" not in case.environ:
            user = "postgres"
    if "dbname=" in query or "PGDATABASE" in case.environ:
        name = ""
    address = f"postgresql://{user}{'@' * bool(user)}/{name}?{query.lstrip('&').format(home=home)}"
    for row in await both(address.rstrip("?")):
        assert row[case.seen] == case.value


async def test_tls_from_the_first_byte(server: Cluster, home: Path, environ: object) -> None:
    """PostgreSQL 17 and newer; here it is a proxy that speaks it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(home / "server.crt", home / "server.key")
    context.set_alpn_protocols(["postgresql"])

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(forward(reader, there[1]), forward(there[0], writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        query = f"sslmode=verify-full&sslrootcert={home}/authority.crt&sslnegotiation=direct"
        for row in await both(f"postgresql://postgres@127.0.0.1:{port}/postgres?{query}"):
            assert row["current_user"] == "postgres"


@pytest.mark.parametrize(
    "query",
    [
        "client_encoding=SQL_ASCII", "sslcompression=1", "krbsrvname=x", "gsslib=gssapi",
        "max_protocol_version=latest", "channel_binding=prefer", "channel_binding=disable",
        "gssencmode=prefer", "sslsni=1", "sslcertmode=allow", "load_balance_hosts=disable",
        "replication=off", "min_protocol_version=3.0", "gssdelegation=0",
    ],
)  # fmt: skip
async def test_what_asks_for_nothing_is_dropped(
    query: str, server: Cluster, environ: object
) -> None:
    """Both drivers connect."""
    for row in await both(f"{server.url()}?{query}"):
        assert row["current_user"] == "postgres"


REFUSED = [
    "gssencmode=require", "requirepeer=postgres", "require_auth=scram-sha-256", "sslsni=0",
    "sslcertmode=require", "sslcrldir=/tmp", "min_protocol_version=3.2", "replication=database",
    f"scram_client_key={'A' * 43}%3D", f"scram_server_key={'A' * 43}%3D", "oauth_issuer=x",
    "oauth_client_id=x", "oauth_client_secret=x", "oauth_scope=x", "sslkeylogfile=/tmp/x",
    "gssdelegation=1", "target_session_attrs=standby", "target_session_attrs=prefer-standby",
    "load_balance_hosts=x", "search_path=app", "work_mem=1MB", "service=nowhere",
    "keepalives_idle=x", "port=x", "port=0", "host=@abstract", "sslmode=bogus",
    "sslrootcert=/nowhere", "sslcert=/nowhere", "sslkey=/nowhere", "sslcrl=/nowhere",
    "sslrootcert=&sslmode=verify-full&host=h", "sslrootcert=&sslmode=verify-ca&host=h",
    "channel_binding=require&sslmode=disable",
]  # fmt: skip


@pytest.mark.parametrize("query", REFUSED)
def test_what_one_driver_cannot_do_both_refuse_by_name(query: str, environ: object) -> None:
    """Nothing is connected or waited for."""
    for refuse in (migrate, lambda address: Connector(config.Database(url=address))):
        with pytest.raises(ConfigError) as refusal:
            refuse(f"postgresql:///?{query}")
        assert query.partition("=")[0] in str(refusal.value)


def test_a_replica_is_no_primary(environ: object) -> None:
    """What its URL may ask for is the opposite; and the key that is wrong is named."""
    for kind in ("standby", "prefer-standby", "read-only", "any"):
        database = config.Database(read_url=f"postgresql:///?target_session_attrs={kind}")
        Connector(database, replica=True)
    for query in ("target_session_attrs=primary", "target_session_attrs=read-write", "port=x"):
        with pytest.raises(ConfigError) as refusal:
            Connector(config.Database(read_url=f"postgresql:///?{query}"), replica=True)
        assert str(refusal.value).startswith(f"database.read_url: {query.partition('=')[0]}: ")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:se/x?cret=s@h/x", "postgresql://u:se/cret@h/x", "postgresql://u:cret%zz@h/x",
        'postgresql://u:"cret"%zz@h/x', "postgresql://u:cret@[::1/x", "postgresql://u@h:cret/x",
        "postgresql://u@h/x?sslmode=cret",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_not_told(address: str, environ: object) -> None:
    """It may hold a password."""
    with pytest.raises(ConfigError) as refusal:
        url.read(address)
    assert "cret" not in str(refusal.value)


def test_the_process_that_serves_is_spared_psycopg(environ: object) -> None:
    """Another one asks libpq, and says the same: what a URL means, or why it is refused."""
    for address in ("postgresql://u:p@a,b:2/x?sslmode=allow", "postgresql:///?service=nowhere"):
        program = (
            "import sys\nfrom service.database import libpq\n"
            "try:\n  print(libpq.read(sys.argv[1]))\nexcept ValueError as error:\n  print(error)\n"
            "assert 'psycopg' not in sys.modules"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, address], capture_output=True, text=True, check=True
        )
        try:
            expected: object = libpq.read(address)
        except ValueError as error:
            expected = error
        assert done.stdout == f"{expected}\n"


@needs_tls
@pytest.mark.parametrize(
    "query",
    [
        "sslmode=verify-ca&sslrootcert={home}/stranger.crt",
        "sslmode=require&sslrootcert={home}/stranger.crt",
        "sslmode=verify-full&sslrootcert={home}/authority.crt&host=localhost&hostaddr=127.0.0.1",
        "sslmode=verify-full&sslrootcert={home}/authority.crt&sslcrl={home}/all.crl",
        "sslrootcert=system",
        "channel_binding=require",
    ],
)
async def test_a_server_that_cannot_prove_who_it_is(
    query: str, server: Cluster, home: Path, environ: object
) -> None:
    """Both drivers refuse it, and a service that starts ends."""
    host = "" if "host=" in query else "host=127.0.0.1&"
    address = f"postgresql://postgres@/postgres?port={server.port}&{host}{query.format(home=home)}"
    options = url.read(address)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(make_conninfo("", **url.for_libpq(options)))
    connector = Connector(config.Database(url=address))
    with pytest.raises(ssl.SSLCertVerificationError) as refusal:
        await connector.connect(asyncio.get_running_loop().time() + 30, {})
    assert is_hopeless(refusal.value)


@pytest.mark.parametrize("others", ["", ",127.0.0.1:1"], ids=["alone", "beside one that is away"])
async def test_a_server_without_tls(others: str, environ: object) -> None:
    """Where the URL asks for TLS: the reason is told, a start ends, a request may try again."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}{others}"
        connector = Connector(config.Database(url=f"postgresql://u@{host}/x?sslmode=require"))
        with pytest.raises(Unusable, match="sslmode=require: the server does not") as refusal:
            await connector.connect(asyncio.get_running_loop().time() + 30, {})
    assert is_hopeless(refusal.value)
    assert is_transient(refusal.value)


def test_keys_that_cannot_be_used(home: Path, environ: object) -> None:
    """Each with its reason; a key that others may read is refused as libpq does."""

    def refused(query: str) -> str:
        with pytest.raises(ConfigError) as refusal:
            url.read(f"postgresql://h/?{query.format(home=home)}")
        return str(refusal.value)

    shutil.copy(home / "client.key", home / "open.key")
    (home / "open.key").chmod(0o644)
    assert "sslkey: others may read" in refused("sslcert={home}/client.crt&sslkey={home}/open.key")
    assert "KEY_VALUES_MISMATCH" in refused("sslcert={home}/client.crt&sslkey={home}/server.key")
    assert "sslcert: " in refused("sslcert={home}/locked.crt&sslkey={home}/locked.key")
    assert "sslrootcert: " in refused("sslrootcert={home}/client.key&sslmode=verify-ca")


def test_a_certificate_that_was_replaced_is_used(home: Path, environ: object) -> None:
    """The next connection has it, without a restart."""
    options = dict(url.read(f"postgresql://h/?sslrootcert={home}/authority.crt"))
    first, again = (tls.attempts(options, "h", "127.0.0.1")[0] for _ in range(2))
    assert first is again
    os.utime(home / "authority.crt", (1, 1))
    assert tls.attempts(options, "h", "127.0.0.1")[0] is not first


def test_a_home_that_may_not_be_read(tmp_path: Path, environ: pytest.MonkeyPatch) -> None:
    """As that of another user: it is as if nothing were there."""
    hidden = tmp_path / "hidden"
    (hidden / ".postgresql").mkdir(parents=True)
    (hidden / ".postgresql" / "root.crt").write_text("none")
    (hidden / ".pgpass").write_text("none")
    hidden.chmod(0)
    environ.setenv("HOME", str(hidden))
    me = os.getuid()
    os.setresuid(me or 65534, me or 65534, me)  # root may read everything
    try:
        options = url.read("postgresql://u@h/x?sslmode=require")
        assert passfile.find(options["passfile"], "h", 5432, "x", "u") == ""
        assert not tls.verifies(options)
    finally:
        os.setresuid(me, me, me)


PASSFILE = r"""
# h:1:d:u:comment
h:1:d:u:plain
h2:*:d:u:a\:b\\c:ignored
*:2:*:u:star:
localhost:1:d:u:socket
/elsewhere:1:d:u:folder
h3:1:d\:x:u:escaped
short:1:d:u
h4:1:d:u:
h4:1:d:u:second
"""


@pytest.mark.parametrize(
    ("host", "port", "database"),
    [
        ("h", 1, "d"), ("h2", 7, "d"), ("x", 2, "y"), ("/var/run/postgresql", 1, "d"),
        ("/elsewhere", 1, "d"), ("h3", 1, "d:x"), ("short", 1, "d"), ("h4", 1, "d"), ("h5", 1, "d"),
    ],
)  # fmt: skip
def test_a_passfile_is_read_as_libpq_does(
    host: str, port: int, database: str, tmp_path: Path, environ: object
) -> None:
    """By line, field and escape; and not at all where others may read it."""
    file = tmp_path / "passfile"
    file.touch(mode=0o600)
    file.write_text(PASSFILE)
    for mode in (0o600, 0o640):
        file.chmod(mode)
        conninfo = make_conninfo(
            host=host, port=port, dbname=database, user="u", passfile=str(file), sslmode="!"
        )
        connection = pq.PGconn.connect_start(conninfo.encode())  # which that sslmode ends
        expected = connection.password.decode()
        assert passfile.find(str(file), host, port, database, "u") == expected


async def test_a_password_that_was_changed_is_used(
    server: Cluster, tmp_path: Path, environ: object
) -> None:
    """The passfile is read for each connection: new ones work without a restart."""
    file = tmp_path / "passfile"
    file.touch(mode=0o600)
    address = f"{server.url('app', ROLE)}?passfile={file}"
    connector = Connector(config.Database(url=address))
    loop = asyncio.get_running_loop()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await connector.connect(loop.time() + 30, {})
    file.write_text(r"*:*:*:*:right\:\\one")
    await (await connector.connect(loop.time() + 30, {})).close()
