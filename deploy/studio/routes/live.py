"""Stream what changes: one connection for each open page, over SSE or a WebSocket.

Channels are ``training/<id>`` (events progress, checkpoint, completed, failed, stopped, running, pending, changed), ``sweep/<name>``
(progress), ``job/<id>``, ``trainings`` (changed) and ``bucket`` (unreachable, reachable, resync).
"""

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, WebSocket
from fastapi.responses import StreamingResponse
from starlette.websockets import WebSocketDisconnect

from scopemill.deploy.studio.service import TheStudio

router = APIRouter(tags=["live"])
RETRY_MILLISECONDS = 2000  # after a broken connection
Channels = Annotated[str, Query(description="Comma-separated, such as training/*,sweep/demo; absent: all.")]


@router.get("/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
async def events(
    studio: TheStudio,
    channels: Channels = "",
    last: Annotated[str | None, Query(description="As the header Last-Event-ID, which a browser sends after a break.")] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Stream messages as server-sent events: ``{channel, event, data}``, each with an id to resume from."""
    wanted = [name for name in channels.split(",") if name]

    async def stream() -> AsyncIterator[str]:
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        async for id, text in studio.hub.listen(wanted, last_event_id or last):
            yield f"id: {id}\ndata: {text}\n\n" if text else ": alive\n\n"

    headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


@router.websocket("/ws")
async def websocket(websocket: WebSocket, studio: TheStudio, channels: str = "", last: str | None = None) -> None:
    """Send the same messages, each with its id, over a WebSocket."""
    await websocket.accept()
    wanted = [name for name in channels.split(",") if name]
    try:
        async for id, text in studio.hub.listen(wanted, last):
            await websocket.send_text(json.dumps({"id": id} | json.loads(text)) if text else '{"event":"alive"}')
    except WebSocketDisconnect:
        pass
