# SPDX-License-Identifier: GPL-3.0-or-later
"""The form in which a mailbox is looked up: folding, `+detail`, `@domain`.

One set of rules serves the keys of a table when it is loaded and the recipients when they are looked up, so the two
cannot drift apart. It knows nothing of backends, tables or the wire: text in, text out.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyRules:
    """How addresses become keys.

    case_sensitive: leave the letters of local parts as they are (Cyrus and Dovecot both fold by default, so False is
    the rule). Those of a domain never matter (RFC 5321 section 2.4).
    recipient_delimiter: each character of it starts a `+detail`; empty switches details off.
    ignore_domain: the domain is no part of a key.
    """

    case_sensitive: bool = False
    recipient_delimiter: str = "+"
    ignore_domain: bool = False

    def table_key(self, text: str) -> str:
        """The key under which a table stores `text`, an address, a mailbox name or `@domain`.

        Empty when nothing is left, which is `@domain` while the domain is ignored.
        """
        local_part, at, domain = text.rpartition("@")
        if not at:
            return self._fold(text)
        return self._fold(local_part) + ("" if self.ignore_domain else f"@{domain.lower()}")

    def forms(self, local_part: str, domain: str) -> tuple[str, ...]:
        """The keys of one recipient in the order in which they are looked up; the first hit wins.

        `local_part` comes without quotes, `domain` may be empty (`RCPT TO:<u001>`). Never empty.
        """
        suffix = "" if self.ignore_domain or not domain else f"@{domain.lower()}"
        forms = [self._fold(local_part) + suffix]
        mailbox = self._without_detail(local_part)
        if mailbox != local_part:
            forms.append(self._fold(mailbox) + suffix)
        if suffix:
            forms.append(suffix)
        return tuple(forms)

    def mailboxes(self, forms: tuple[str, ...], domain: str) -> tuple[str, ...]:
        """Those of `forms`, which are of a recipient in `domain`, that name a mailbox: one or two."""
        return forms if self.ignore_domain or not domain else forms[:-1]

    def _fold(self, text: str) -> str:
        return text if self.case_sensitive else text.lower()

    def _without_detail(self, local_part: str) -> str:
        # A delimiter in front belongs to the name (`+alice`): an empty mailbox name would match nobody's mail.
        for mark in self.recipient_delimiter:
            if (cut := local_part.find(mark, 1)) > 0:
                local_part = local_part[:cut]
        return local_part
