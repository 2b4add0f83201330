# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pools a reload keeps."""

import dataclasses

from lmtp_proxy.config.values import Backend, Config, UnixAddress
from lmtp_proxy.generations.generation import first_generation, next_generation


def config(*backends: Backend, hostname: str = "mx.test") -> Config:
    return Config("/c.yml", (UnixAddress("/s"),), hostname, backends={backend.name: backend for backend in backends})


OLD = Backend("old", UnixAddress("/old"))
NEW = Backend("new", UnixAddress("/new"))


def test_an_equal_backend_keeps_its_pool() -> None:
    first = first_generation(config(OLD, NEW))
    second = next_generation(config(OLD, NEW), first)
    assert (first.number, second.number) == (1, 2)
    assert second.pools == first.pools
    assert second.pools["old"] is not second.pools["new"]


def test_a_backend_that_changed_gets_a_new_one() -> None:
    first = first_generation(config(OLD, NEW))
    for changed in (
        dataclasses.replace(OLD, address=UnixAddress("/elsewhere")),
        dataclasses.replace(OLD, max_connections=3),
        dataclasses.replace(OLD, user="u", password="p"),
    ):
        second = next_generation(config(changed, NEW), first)
        assert second.pools["old"] is not first.pools["old"]
        assert second.pools["new"] is first.pools["new"]


def test_another_hostname_is_said_to_all_backends() -> None:
    first = first_generation(config(OLD))
    assert next_generation(config(OLD, hostname="other.test"), first).pools["old"].hostname == "other.test"


def test_a_backend_that_is_gone_has_no_pool() -> None:
    assert set(next_generation(config(NEW), first_generation(config(OLD, NEW))).pools) == {"new"}
