from __future__ import annotations

import socket
import threading

from cluster.head_watch import HeadWatch


def test_a_head_that_answers_is_not_lost_and_one_that_is_gone_is_told_once() -> None:
    lost = threading.Event()
    told: list[str] = []

    def tell(address: str) -> None:
        told.append(address)
        lost.set()

    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watch = HeadWatch(tell, address, patience_s=0.3)
        assert not lost.wait(1.5)
    assert lost.wait(10)
    watch.stop()
    assert told == [address]


def test_who_has_stopped_watching_is_told_nothing() -> None:
    told: list[str] = []
    watch = HeadWatch(told.append, "127.0.0.1:9", patience_s=0)
    watch.stop()
    assert told == []
