"""A client of `config.metrics`: whole requests with http.client, and the numbers of an exposition."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.support.proxy import ProxyProcess, free_tcp_address


class Fetched(NamedTuple):
    """Status code, header (names in lower case) and body."""

    code: int
    header: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")


Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def add_metrics(proxy: ProxyProcess) -> tuple[str, int]:
    """Puts `metrics` into the configuration of a proxy that was not started yet; returns its address."""
    host, port = free_tcp_address()
    proxy.config["config"]["metrics"] = [host, port]
    proxy.write_config()
    return host, port


def fetch(
    address: tuple[str, int], path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Fetched:
    """One request over a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request(method, path, headers={"Connection": "close", **(headers or {})})
        answer = connection.getresponse()
        header = {name.lower(): value for name, value in answer.getheaders()}
        return Fetched(answer.status, header, answer.read())
    finally:
        connection.close()


def series(text: str) -> Series:
    """Every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Series, name: str, **labels: str) -> float:
    """Of one sample; its whole name without the prefix."""
    return found[(f"lmtp_proxy_{name}", frozenset(labels.items()))]
