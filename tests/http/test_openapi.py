"""openapi.yaml: what it says is what the service does."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests.conftest import ROOT, bearer

Client = TestClient[Any, Any]
FILE = ROOT / "openapi.yaml"
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


async def test_is_served_to_everybody(client: Client) -> None:
    """GET /openapi.yaml needs no token and answers the file in the repository."""
    answer = await client.get("/openapi.yaml")
    assert (answer.status, answer.content_type) == (200, "application/yaml")
    assert await answer.text() == FILE.read_text()


@pytest.mark.parametrize("user", ["owner", "nobody", "stranger"])
async def test_every_answer_conforms(client: Client, user: str, tmp_path: Path) -> None:
    """Whatever is generated from the document, valid or not, the answer is one it describes."""
    # What a schema cannot say: a list with one valid id is good, whatever else is in it; a window
    # of time must not end before it begins; and a user needs an organization.
    unfit = "negative_data_rejection,positive_data_acceptance"
    process = await asyncio.create_subprocess_exec(
        *(SCHEMATHESIS, "run", FILE, "--url", str(client.make_url("/")).rstrip("/")),
        *("--header", f"Authorization: {bearer(user)['Authorization']}"),
        *("--exclude-checks", unfit, "--max-examples", "15", "--no-color"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=tmp_path,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
