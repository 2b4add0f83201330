# SPDX-License-Identifier: GPL-3.0-or-later
"""The form in which a mailbox is looked up: folding, `+detail`, `@domain`.

One set of rules serves the keys of a table when it is loaded and the recipients when they are looked up, so the two
cannot drift apart. It knows nothing of backends, tables or the wire: text in, text out.

A domain has several spellings: letters of either case, a dot at its end, U-labels or A-labels (RFC 5890), composed and
decomposed characters. All of them are one key: lower case, no dot at the end, U-labels, NFC (RFC 6532 section 3.1).
Nothing else is mapped. What that takes is imported with the first address that is not plain ASCII.
"""

from dataclasses import dataclass

_ACE = "xn--"  # what an A-label begins with (RFC 5890 section 2.3.2.1)
_LONGEST_LABEL = 63  # octets (RFC 1035 section 2.3.4)


class FoldingError(Exception):
    """There is no telling the key of this address. The message says why."""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """How addresses become keys.

    Attributes:
        case_sensitive: leave the letters of local parts as they are (Cyrus and Dovecot both fold by default, so False
            is the rule). Those of a domain never matter (RFC 5321 section 2.4).
        recipient_delimiter: each character of it starts a `+detail`; empty switches details off.
        ignore_domain: the domain is no part of a key.
        default_domain: that of a name without one; empty if such a name is a key of its own.
    """

    case_sensitive: bool = False
    recipient_delimiter: str = "+"
    ignore_domain: bool = False
    default_domain: str = ""

    def table_key(self, text: str) -> str:
        """The key under which a table stores `text`, an address, a mailbox name or `@domain`.

        Empty when nothing is left, which is `@domain` while the domain is ignored. Raises FoldingError.
        """
        local_part, at, domain = text.rpartition("@")
        if not at:
            return self._fold(text) + self._suffix(self.default_domain)
        return self._fold(local_part) + ("" if self.ignore_domain else f"@{_domain(domain)}")

    def forms(self, local_part: str, domain: str) -> tuple[str, ...]:
        """The keys of one recipient in the order in which they are looked up; the first hit wins.

        `local_part` comes without quotes, `domain` may be empty (`RCPT TO:<u001>`). Never empty. Raises FoldingError.
        """
        suffix = self._suffix(domain or self.default_domain)
        user = self._fold(local_part)
        forms = [user + suffix]
        mailbox = self._without_detail(user)
        if mailbox != user:
            forms.append(mailbox + suffix)
        if suffix:
            forms.append(suffix)
        return tuple(forms)

    def mailboxes(self, forms: tuple[str, ...], domain: str) -> tuple[str, ...]:
        """Those of `forms`, which are of a recipient in `domain`, that name a mailbox: one or two."""
        return forms[:-1] if self._suffix(domain or self.default_domain) else forms

    def bare_key(self, key: str) -> str:
        """`key` as it begins where it is written without its domain: itself, unless that is the default domain."""
        return key.removesuffix(self._suffix(self.default_domain)) or key

    def _suffix(self, domain: str) -> str:
        return "" if self.ignore_domain or not domain else f"@{_domain(domain)}"

    def _fold(self, text: str) -> str:
        if text.isascii():
            return text if self.case_sensitive else text.lower()
        return _composed(text) if self.case_sensitive else _lower(text)

    def _without_detail(self, local_part: str) -> str:
        # A delimiter in front belongs to the name (`+alice`): an empty mailbox name would match nobody's mail.
        for mark in self.recipient_delimiter:
            if (cut := local_part.find(mark, 1)) > 0:
                local_part = local_part[:cut]
        return local_part


def is_plain(text: str) -> bool:
    """Whether lower case is all that folding `text` can mean: some addresses, in lower case, with any marks between."""
    return text.isascii() and _ACE not in text


def _domain(domain: str) -> str:
    if domain.endswith(".") and domain[-2:-1] not in ("", "."):  # two are no domain, and stay what they are
        domain = domain[:-1]
    folded = domain.lower()
    if is_plain(folded):
        return folded
    labels = [_u_label(label) if label.startswith(_ACE) else label for label in _lower(domain).split(".")]
    return _lower(".".join(labels))  # again: letters of Cherokee are capitals in a U-label


def _lower(text: str) -> str:
    """Lower case and NFC, the same for all that is canonically equivalent; each letter by itself.

    Python makes a capital sigma at the end of a word another letter than elsewhere. No standard of domains does so, and
    a key would depend on what stands behind it.
    """
    return _composed(_composed(text).replace("Σ", "σ").lower())


def _composed(text: str) -> str:
    from unicodedata import normalize

    return normalize("NFC", text)


def _u_label(label: str) -> str:
    """The U-label of an A-label in lower case; `label` itself if it is none.

    It is one only if the way back leads to the same octets (RFC 5891 section 5.4), so no two A-labels become one key.
    """
    if not label.isascii() or len(label) > _LONGEST_LABEL:
        return label
    try:
        from idna import alabel, ulabel
    except (ImportError, OSError) as error:  # the latter where there is no descriptor left
        what = f"what decodes {_ACE} cannot be imported ({error}): install idna (Debian: python3-idna)"
        raise FoldingError(what) from error
    try:
        decoded = ulabel(label)
        return decoded if alabel(decoded) == label.encode("ascii") else label
    except (ValueError, IndexError, OverflowError):  # IDNAError is the first of these
        return label
