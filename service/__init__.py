"""systemevent-read: marks system events as read, per user and within the user's organization."""

from pathlib import Path

__version__ = "1.0.0"


def resource(name: str) -> Path:
    """Path of a file or folder that ships with the service: `sql`, `client`, `openapi.yaml`.

    They lie at the top level of the repository, and inside the package in a wheel.
    """
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.exists() else package.parent / name
