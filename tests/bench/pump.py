"""What a proxy costs that only passes bytes on, with the libraries that the gateway uses: the yardstick of the benchmark."""

import contextlib
import sys

import aiohttp
import httpx
import uvicorn
from httpx_aiohttp.transport import AiohttpResponseStream, AiohttpTransport
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

AiohttpResponseStream.CHUNK_SIZE = 64 * 1024  # the stock 16 kB make it ten times slower than it need be


def app(upstream: str) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        transport = AiohttpTransport(client=lambda: aiohttp.ClientSession(read_bufsize=128 * 1024))
        async with httpx.AsyncClient(transport=transport, base_url=upstream, timeout=60) as app.state.client:
            yield

    async def passed_on(request: Request) -> StreamingResponse:
        client = request.app.state.client
        headers = {"Accept": request.headers["accept"], "Accept-Encoding": "identity"}
        asked = client.build_request("GET", request.url.path, headers=headers)
        answer = await client.send(asked, stream=True)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, media_type=answer.headers["content-type"])

    return Starlette(routes=[Route("/{path:path}", passed_on)], lifespan=lifespan)


if __name__ == "__main__":
    uvicorn.run(app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning", access_log=False)
