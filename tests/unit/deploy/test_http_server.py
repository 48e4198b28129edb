import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from flowers.deploy.http_server import TimedProtocol, client_network


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def statuses(addresses: list[str], refused: int, max_of_client: int) -> list[bytes]:
    """Let each address connect, and all but the one that should be refused ask. Return what they are answered."""
    config = uvicorn.Config(answer, http=type("Protocol", (TimedProtocol,), {"max_of_client": max_of_client}))
    config.load()
    state = ServerState()

    def protocol() -> TimedProtocol:
        return config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg, return-value]

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    where = server.sockets[0].getsockname()
    opened = [await asyncio.open_connection(*where, local_addr=(address, 0)) for address in addresses]
    for number, (_, writer) in enumerate(opened):
        if number != refused:
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    found = [(await asyncio.wait_for(reader.readline(), 10))[9:12] for reader, _ in opened]
    for _, writer in opened:
        writer.close()
        await writer.wait_closed()
    while state.connections:  # the server learns of it in a later tick
        await asyncio.sleep(0)
    server.close()
    return found


def test_connections_of_one_client_leave_room_for_others():
    one, other = "127.0.0.1", "127.0.0.2"
    found = asyncio.run(statuses([one, one, one, one, other], refused=3, max_of_client=3))
    assert found == [b"200", b"200", b"200", b"503", b"200"]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
    ],
)
def test_client_network_is_an_address_or_the_network_of_a_client(address: str, network: str):
    assert client_network(address) == network
