"""Files on the tests' web server that are read by ranges, and the ways in which such servers go wrong."""

import asyncio
import re

from tests.support.web_server import response


def ranges(body, **headers):
    """A file, by single ranges: what nginx, Apache and CloudFront answer."""

    def answer(request):
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        named = {"ETag": '"one"', **headers}
        if found is None:
            return response(body, **named)
        first, last = int(found[1]), min(int(found[2]), len(body) - 1)
        if first >= len(body):
            return response(b"", 416, Content_Range=f"bytes */{len(body)}", **named)
        return response(body[first : last + 1], 206, Content_Range=f"bytes {first}-{last}/{len(body)}", **named)

    return answer


def cut_off(route, *numbers):
    """The connection ends in the middle of these answers (1: the first), and works at all others."""

    def answer(request):
        whole = route(request) if callable(route) else route
        assert isinstance(whole, bytes)
        return _half(request, whole) if request.count in numbers else whole

    return answer


async def _half(request, answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    request.write(head + b"\r\n\r\n" + body[: len(body) // 2])
    await asyncio.sleep(0.02)
    request.cut()


def in_turn(*routes):
    """The first answer from the first route, and so on; the last one gives all further answers."""

    def answer(request):
        route = routes[min(request.count, len(routes)) - 1]
        return route(request) if callable(route) else route

    return answer
