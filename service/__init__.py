"""systemevent-read: marks system events as read, per user and within the user's organization."""

from pathlib import Path


def resource(name: str) -> Path:
    """Path of a file or folder that ships with the service: `sql`, `migrations`, `openapi.yaml`.

    They lie at the top level of the repository, and inside the package in a wheel.
    """
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.exists() else package.parent / name
