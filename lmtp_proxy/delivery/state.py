# SPDX-License-Identifier: GPL-3.0-or-later
"""What one backend's share of a transaction waits for."""

import enum


class DeliveryState(enum.Enum):
    """What a delivery waits for, or has to do next. How far its message is, a drain asks its commit point."""

    NEW = "no place in the pool"
    RESERVED = "a place, on which a session has to be opened"
    ANEW = "the same, in the place of one that was dead or not fit for use: a new one, to be asked anew"
    OPEN = "a session, on which nothing is outstanding"
    ASKED = "replies to MAIL, RCPT or DATA are to come"
    DOUBTED = "MAIL or DATA seems to be refused; RSET and DATA have to tell whether that was its reply"
    PROVING = "replies to these are to come"
    DATA = "the backend takes the message"
    HEARING = "half a reply has come out of turn; the rest is waited for, and ends the delivery"
    HEARING_LAST = "the same, where the final dot is due"
    NO_ROOM = "the final dot is due, and there was no room for any of it"
    DOT = "the final dot, or some of it, went out; final replies are to come"
    OVER = "the place was given back"


AWAITS_SESSION = (DeliveryState.RESERVED, DeliveryState.ANEW)
"""A place, and nothing is connected to it."""
