"""The same endpoint in FastAPI and asyncpg, as one would write it: the contender from outside."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import asyncpg
import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, PositiveInt

MARK = (Path(__file__).parent / "mark_one.sql").read_text("utf-8")


class Body(BaseModel):
    """What to mark."""

    id: PositiveInt | None = None
    ids: list[PositiveInt] = []


class Success(BaseModel):
    """The answer."""

    success: bool = True


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep a pool of connections, as many as the service has statements in flight."""
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=16, max_size=16) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


async def caller(
    credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())],
) -> str:
    """Return the user whose token it is."""
    try:
        claims = jwt.decode(credentials.credentials, os.environ["SECRET"], algorithms=["HS256"])
        return str(claims["userId"])
    except (jwt.InvalidTokenError, KeyError):
        raise HTTPException(401, "invalid token") from None


@app.post("/systemevent/read")
async def mark_read(body: Body, user_id: Annotated[str, Depends(caller)]) -> Success:
    """Mark events as read."""
    ids = [*body.ids, body.id] if body.id else body.ids
    if not ids:
        raise HTTPException(400, "Provide either id or ids")
    row = await app.state.pool.fetchrow(MARK, user_id, ids)
    if row is None:
        raise HTTPException(401, "user not found")
    if row["organization_id"] is None:
        raise HTTPException(403, "user not associated with an organization")
    return Success()
