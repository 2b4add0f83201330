# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command has made ready for the process that is to serve: one value, whoever takes it.

One process that serves takes it, or a supervisor of several. It is made before gevent is there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmtp_proxy.config.values import Config
from lmtp_proxy.start.ready import Notifier
from lmtp_proxy.start.sockets import Listener


@dataclass(frozen=True, slots=True)
class Start:
    """How a process is to begin to serve.

    Attributes:
        config: as the start has loaded it. Where there are workers its table is closed: each has its own.
        users: how many keys its table has.
        mail: where clients connect, at least one.
        control: the control socket; None where there is to be none.
        metrics: where /metrics and the status page are; None where nowhere.
        daemonised: it is in the background.
        received: signals that came before the process could handle them. It may grow until it does.
        ready: to be called once, when clients are served.
        notifier: wants to know how it goes on.
    """

    config: Config
    users: int
    mail: Sequence[Listener]
    control: Listener | None
    metrics: Listener | None
    daemonised: bool
    received: Sequence[int]
    ready: Callable[[], None]
    notifier: Notifier

    @property
    def after_crash(self) -> bool:
        """The proxy before this one did not end well."""
        return any(each.after_crash for each in (*self.mail, self.control, self.metrics) if each)

    @property
    def addresses(self) -> list[str]:
        """Where clients connect, for people."""
        return [str(each.address) for each in self.mail]

    def remove_mail(self) -> None:
        """First thing on a stop: nobody is to connect any more."""
        for each in self.mail:
            each.remove()

    def remove_control(self) -> None:
        """Last thing on a stop.

        Until then what is under way can be seen, and no other process takes over that knows nothing of it.
        """
        if self.control is not None:
            self.control.remove()
