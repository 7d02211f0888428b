"""Clients that go and bad bodies leave nothing behind; `python -m tests.faults.server` sends thousands of them."""

from tests.faults.server import Address, attack, differences, state_of


def test_dropped_connections_and_bad_bodies(served):
    host, port = served.url.removeprefix("http://").split(":")
    address = Address(host, int(port))
    state_of(address)
    before = state_of(address)
    tally = attack(address, dropped=60, bodies=60, seed=3)
    assert tally.violations == []
    assert sum(tally.done.values()) == 120
    served.wait_until_idle()
    assert differences(before, state_of(address)) == []
