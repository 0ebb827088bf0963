"""What pages are told, and how a page that was away catches up."""

import asyncio
import json

from hypothesis import given
from hypothesis import strategies as st
from support.studio import served

from scopemill.deploy.studio.hub import KEPT, WAITING, Hub


def listen(hub: Hub, channels: list[str], last: str | None, wanted: int, while_open=lambda: None) -> list[tuple[str, dict]]:
    """The first messages that a page gets; ``while_open`` sends some once it listens."""

    async def run() -> list[tuple[str, dict]]:
        found: list[tuple[str, dict]] = []
        stream = hub.listen(channels, last)

        async def read() -> None:
            async for id, text in stream:
                found.append((id, json.loads(text)))
                if len(found) == wanted:
                    return

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.02)
        while_open()
        await asyncio.wait([reading], timeout=2 if wanted > len(found) else 0.05)
        reading.cancel()
        return found

    return asyncio.run(run())


@given(before=st.integers(0, 30), seen=st.integers(0, 30), after=st.integers(1, 10))
def test_a_page_that_comes_back_gets_each_message_that_it_missed_once_and_in_order(before, seen, after):
    hub, seen = Hub(), min(seen, before)
    for number in range(before):
        hub.send("training/a", "progress", number)

    def more() -> None:
        for number in range(before, before + after):
            hub.send("training/a", "progress", number)

    found = listen(hub, [], hub.id_of(seen), before - seen + after, more)
    assert [message["data"] for _, message in found] == list(range(seen, before + after))
    assert [id for id, _ in found] == [hub.id_of(number + 1) for number in range(seen, before + after)]


def test_a_page_whose_messages_are_gone_or_of_another_service_is_told_to_read_the_lists_again():
    hub = Hub()
    for number in range(KEPT + 5):
        hub.send("training/a", "progress", number)
    for last in (hub.id_of(2), Hub().id_of(1), "nonsense"):
        ((id, message),) = listen(hub, [], last, 1)
        assert (message["channel"], message["event"]) == ("bucket", "resync") and id == hub.id_of(KEPT + 5)
    assert listen(hub, [], hub.id_of(KEPT + 4), 1)[0][1]["data"] == KEPT + 4


def test_a_page_hears_its_channels_only():
    hub = Hub()

    def send() -> None:
        for channel in ("training/a", "training/b", "sweep/s", "trainings"):
            hub.send(channel, "progress", channel)

    heard = [message["channel"] for _, message in listen(hub, ["training/b", "sweep/*"], None, 3, send)]
    assert heard == ["training/b", "sweep/s"]


def test_a_page_that_does_not_read_holds_nothing_up_and_costs_a_bounded_memory():
    hub = Hub()

    def flood() -> None:
        for number in range(WAITING * 3):
            hub.send("training/a", "progress", number)

    found = listen(hub, [], None, 1, flood)
    assert found[0][1]["event"] == "resync", "it lost messages, and is told so"


def test_open_streams_end_with_the_service(bucket, capfd):
    service = served(bucket.url)
    with service.__enter__().events() as messages:
        service.__exit__(None, None, None)
        assert list(messages) == []
    assert capfd.readouterr().err == ""
