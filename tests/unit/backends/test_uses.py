"""What connections in use wait for."""

from lmtp_proxy.backends.uses import uses
from lmtp_proxy.wire.client import ClientProtocol, Command
from lmtp_proxy.wire.envelope import Envelope


def opened() -> ClientProtocol:
    protocol = ClientProtocol()
    protocol.receive_verbatim(b"220 ready\r\n")
    protocol.offers(["pipelining"])
    return protocol


def test_each_step_has_its_words_and_the_most_come_first() -> None:
    idle, asked, in_data, done, back, odd = conversations = [opened() for _ in range(6)]
    for protocol in (asked, in_data, done):
        protocol.envelope(Envelope(b"<s@x>"), [b"RCPT TO:<u@x>\r\n"], True)
    for protocol in (in_data, done):
        protocol.receive(b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go on\r\n")
    done.dot_begun(1)
    back.command(Command.RSET, b"RSET")
    odd.command(Command.OTHER, b"NOOP")
    found = uses([*conversations, asked, asked], 10)
    assert found == {
        "its replies to recipients": 3,
        "its greeting": 2,
        "the client's next command": 1,
        "the client's message": 1,
        "its final replies": 1,
        "its reply to RSET": 1,
        "a reply": 1,
    }
    assert list(found)[:2] == ["its replies to recipients", "its greeting"]
    assert uses([idle], 1) == {"the client's next command": 1} and uses([], 0) == {}


def test_data_by_itself() -> None:
    protocol = opened()
    protocol.envelope(Envelope(b"<s@x>"), [b"RCPT TO:<u@x>\r\n"], False)
    protocol.receive(b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n")
    protocol.data()
    assert uses([protocol], 1) == {"its replies to DATA": 1}
