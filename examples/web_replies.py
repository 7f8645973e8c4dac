"""Answer the requests of a web application with the results of jobs, on asyncio.

    uv run examples/web_replies.py [DSN]

Start pricing.py first. This program sends three requests to its own application; a
server such as uvicorn serves `app` in the same way, with DSN in the environment.
"""

import asyncio
import os
import sys

import httpx
import psycopg
from fastapi import FastAPI, HTTPException
from pricing import price

import tocsin

app = FastAPI()


async def connect() -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(os.environ.get("DSN", "postgresql:///"))


@app.post("/prices")
async def ask(items: list[float]) -> dict[str, object]:
    async with await connect() as connection:
        async with connection.transaction():
            job = await price.submit(connection, items)
        return await answer(job, limit=5)


@app.get("/prices/{job_id}")
async def ask_again(job_id: int) -> dict[str, object]:
    async with await connect() as connection:
        return await answer(price.job(connection, job_id), limit=0)


async def answer(job: tocsin.Job[float], limit: float) -> dict[str, object]:
    try:
        return {"job": job.id, "price": await job.result(timeout=limit)}
    except TimeoutError:
        return {"job": job.id}
    except tocsin.JobNotFound:
        raise HTTPException(404) from None
    except tocsin.JobFailed as failed:
        raise HTTPException(422, failed.error) from None


async def main() -> None:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        replies = await asyncio.gather(
            client.post("/prices", json=[10, 5]),
            client.post("/prices", json=[2.5]),
            client.get("/prices/1000000"),
        )
    for reply in replies:
        print(reply.status_code, reply.json().get("price", "no price"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.environ["DSN"] = sys.argv[1]
    asyncio.run(main())
