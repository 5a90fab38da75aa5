"""The service with the list statement of before: what bell.py compares a badge and a list with."""

import sys
from dataclasses import replace
from unittest import mock

from bench.postgres import HERE
from service import __main__, app
from service.database.queries import load_queries

if __name__ == "__main__":
    queries = replace(load_queries(), list_events=(HERE / "list_before.sql").read_text())
    with mock.patch.object(app, "load_queries", return_value=queries):
        sys.exit(__main__.main(["serve"]))
