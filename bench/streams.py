"""A bare gRPC server that sends the messages of a file to all who connect, once it is told to.

python -m bench.streams ADDRESS FILE
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import grpc

STREAM, GO = "/bench.Floor/Stream", "/bench.Floor/Go"


async def serve(address: str, messages: list[bytes]) -> None:
    """Serve until killed: the first message at once, the others after `GO`."""
    told = asyncio.Event()

    async def stream(_request: bytes, context: Any) -> None:
        await context.write(messages[0])
        await told.wait()
        for message in messages[1:]:
            await context.write(message)

    async def go(_request: bytes, _context: Any) -> bytes:
        told.set()
        return b""

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Go": grpc.unary_unary_rpc_method_handler(go),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Floor", handlers),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    asyncio.run(serve(sys.argv[1], [base64.b64decode(message) for message in given]))
