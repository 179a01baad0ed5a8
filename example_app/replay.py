"""The requests of the case, sent as a browser does when it loads the page."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx2

from example_app.data import TAG_IDS, USER_ID


@dataclass(frozen=True)
class Call:
    """
    One request of the page.

    Attributes:
        path: Without the flavour's prefix.
        after: How many of the others are answered before it is sent, into the midst of the rest.
    """

    method: str
    path: str
    body: dict[str, str] | None = None
    after: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Flavour:
    """A mapping (`guilty` or `mended`) with a kind of session (`sync` or `async`)."""

    mapping: str
    session: str

    def __str__(self) -> str:
        return f"{self.mapping} {self.session}"

    @property
    def prefix(self) -> str:
        return f"/{self.mapping}/{self.session}"

    def request_id(self, number: int) -> str:
        """The `x-request-id` of the page's nth request, which finds its log line."""
        return f"{self.mapping}-{self.session}-{number}"

    def request_ids(self, calls: tuple[Call, ...], call: str | None = None) -> list[str]:
        """Of all calls, or of one that may be made several times."""
        return [self.request_id(number) for number, each in enumerate(calls) if call in (None, str(each))]


_REFRESHES = (1, 2, 3, 4)  # answers of the page: by seconds, a machine would be too fast or too slow for it

FLAVOURS = tuple(Flavour(mapping, session) for mapping in ("guilty", "mended") for session in ("sync", "async"))


def page_load(refresh_token: str) -> tuple[Call, ...]:
    """
    The calls of the case, in its order.

    The token is refreshed several times: one alone may find the event loop free by luck, between two that hold it.
    """
    body = {"refresh_token": refresh_token}
    return (
        *(Call("POST", "/api/users/token/refresh", body, after=answers) for answers in _REFRESHES),
        Call("GET", f"/api/contents/bookmarks/user/{USER_ID}"),
        Call("GET", f"/api/tags/user/{USER_ID}"),
        Call("GET", f"/api/contents/user/{USER_ID}/all"),
        *(Call("GET", f"/api/tags/{tag_id}/contents/all") for tag_id in TAG_IDS),
    )


async def replay(
    url: str, flavour: Flavour, calls: tuple[Call, ...], answered: Callable[[str, float], object]
) -> list[str]:
    """
    Load the page once.

    Args:
        answered: Called after each answer, with the request id, and the seconds that its client waited.

    Returns:
        What failed, one sentence each.
    """

    answers = 0
    progress = asyncio.Condition()

    async def send(number: int, call: Call) -> str | None:
        nonlocal answers
        async with progress:
            await progress.wait_for(lambda: answers >= call.after)
        request_id = flavour.request_id(number)
        headers = {"x-request-id": request_id}
        sent = time.perf_counter()
        try:
            response = await client.request(call.method, flavour.prefix + call.path, json=call.body, headers=headers)
        except httpx2.HTTPError as error:
            return f"{flavour}: {call} had no answer: {error!r}"
        finally:
            answered(request_id, time.perf_counter() - sent)
            async with progress:
                answers += not call.after
                progress.notify_all()
        return None if response.is_success else f"{flavour}: {call} answered {response.status_code}"

    # A connection for each call: a kept one might be closed by the server, idle for too long, just as it is used again.
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
        faults = await asyncio.gather(*(send(number, call) for number, call in enumerate(calls)))
    return [fault for fault in faults if fault]
