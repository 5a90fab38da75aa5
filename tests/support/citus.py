"""Databases on a Citus: made on each of its nodes, since a distributed one cannot be copied."""

import psycopg
from psycopg.conninfo import make_conninfo

from tests.support.cluster import GIVEN, Cluster

NODES = "select nodename, nodeport from pg_dist_node where isactive and groupid > 0"


def _workers() -> list[tuple[str, int]]:
    """Host and port of each worker of the server that was given; none, where it is no Citus."""
    if not GIVEN:
        return []
    with psycopg.connect(GIVEN) as connection:
        there = connection.execute("select to_regclass('pg_dist_node') is not null").fetchone()
        return connection.execute(NODES).fetchall() if there == (True,) else []


WORKERS = _workers()


def make(cluster: Cluster, name: str) -> None:
    """Make an empty database that knows the workers."""
    for node in (None, *WORKERS):
        _run(cluster.url(), node, f"create database {cluster.name(name)}")
        _run(cluster.url(name), node, "create extension citus")
    _run(
        cluster.url(name),
        None,
        "select citus_set_coordinator_host('127.0.0.1', current_setting('port')::int)",
        *(f"select citus_add_node('{host}', {port})" for host, port in WORKERS),
    )


def drop(cluster: Cluster, name: str) -> None:
    """Drop it everywhere."""
    for node in (None, *WORKERS):
        _run(cluster.url(), node, f"drop database {cluster.name(name)} with (force)")


def _run(url: str, node: tuple[str, int] | None, *commands: str) -> None:
    """Run each on the coordinator, or on a worker."""
    address = make_conninfo(url, host=node[0], port=node[1]) if node else url
    with psycopg.connect(address, autocommit=True) as session:
        for command in commands:
            session.execute(command)
