"""The SQL files, loaded once at startup, and the names of the migrations."""

from dataclasses import dataclass, fields
from pathlib import Path

from service import resource


@dataclass(frozen=True)
class Queries:
    """The text of each file in sql/, by its name."""

    applied_migrations: str
    backends: str
    caller: str
    count_unread: str
    limit: str
    list_events: str
    lock_migrations: str
    mark_all: str
    mark_read: str
    mark_unread: str
    our_tables: str
    page_events: str
    place: str
    platform_faults: str
    position: str
    prune_delete: str
    prune_events: str
    prune_size: str
    prune_user: str
    replayed: str
    session: str
    view_definitions: str

    def name(self, text: str) -> str:
        """The name of the file that holds a text."""
        return next(name for name, query in vars(self).items() if query == text)


def load_queries(folder: Path | None = None) -> Queries:
    """Read every file of `folder`, by default the one that ships with the service.

    Raises:
        LookupError: a file that no field names, or a field without a file.
    """
    folder = folder or resource("sql")
    texts = {file.stem: file.read_text("utf-8") for file in folder.glob("*.sql")}
    names = {field.name for field in fields(Queries)}
    if unused := texts.keys() - names:
        raise LookupError(f"{folder}: no user for {', '.join(sorted(unused))}")
    if missing := names - texts.keys():
        raise LookupError(f"{folder}: no file for {', '.join(sorted(missing))}")
    return Queries(**texts)


def migration_names() -> set[str]:
    """The ids of the migrations that the service needs: all but the views."""
    files = resource("migrations").glob("[0-9]*.sql")
    return {file.stem for file in files if "." not in file.stem}
