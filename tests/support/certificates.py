"""Certificates for a test, made by openssl(1) while it runs: a CA of its own, and what it signs. No date is fixed."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

DAY = 86400


def openssl(*arguments: str, text: str = "") -> str:
    return subprocess.run(["openssl", *arguments], input=text, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its key, as paths of PEM files."""

    certificate: str
    key: str

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(Path(self.certificate).read_text("ascii"))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.der).hexdigest()

    @property
    def key_digest(self) -> str:
        public = openssl("pkey", "-in", self.key, "-pubout", "-outform", "PEM").splitlines()
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(_as_certificate(public))).hexdigest()

    def server(self, **options: object) -> ssl.SSLContext:
        """What a server speaks TLS with. options: attributes of the context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        for name, value in options.items():
            setattr(context, name, value)
        return context


def _as_certificate(public: list[str]) -> str:
    return "\n".join([ssl.PEM_HEADER, *public[1:-1], ssl.PEM_FOOTER]) + "\n"


class Authority:
    """A CA in a directory of its own."""

    def __init__(self, directory: Path, name: str = "Test CA") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.signed: dict[str, Signed] = {}
        self.ca = self.self_signed(
            "ca", name, "basicConstraints=critical,CA:true", "keyUsage=critical,keyCertSign,cRLSign"
        )

    @property
    def path(self) -> str:
        return self.ca.certificate

    def self_signed(self, file: str, name: str, *extensions: str, kind: str = "ec") -> Signed:
        signed = self._files(file)
        added = [word for extension in extensions for word in ("-addext", extension)]
        openssl(
            *(
                "req",
                "-x509",
                "-utf8",
                "-config",
                self._config(),
                "-subj",
                f"/O=lmtp-proxy tests/CN={name}",
                "-days",
                "30",
            ),
            *(*_new_key(kind), "-nodes", "-keyout", signed.key, "-out", signed.certificate, *added),
        )
        return signed

    def sign(
        self, *names: str, file: str | None = None, begins: float = -1, ends: float = 30, client: bool = False,
        kind: str = "ec",
    ) -> Signed:  # fmt: skip
        """A certificate for these DNS names and IP addresses. begins, ends: in days from now."""
        signed = self._files(file or names[0])
        request = str(self.directory / "request.pem")
        openssl(
            *("req", "-new", "-config", self._config(), "-subj", f"/CN={names[0]}", *_new_key(kind), "-nodes"),
            *("-keyout", signed.key, "-out", request),
        )
        kinds = [f"IP:{name}" if name.replace(".", "").isdigit() or ":" in name else f"DNS:{name}" for name in names]
        usage = "clientAuth" if client else "serverAuth"
        text = (
            f"[ca]\ndefault_ca=c\n[c]\ndatabase={self._made('index', '')}\nserial={self._made('serial', '01')}\n"
            f"new_certs_dir={self.directory}\ndefault_md=sha256\npolicy=p\nx509_extensions=x\nunique_subject=no\n"
            "[p]\ncommonName=supplied\n"
            f"[x]\nsubjectAltName={','.join(kinds)}\nextendedKeyUsage={usage}\nkeyUsage=digitalSignature\n"
            "basicConstraints=CA:false\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        config = self.directory / "sign.cnf"
        config.write_text(text, "ascii")
        openssl(
            *("ca", "-batch", "-notext", "-config", str(config), "-cert", self.ca.certificate, "-keyfile", self.ca.key),
            *("-in", request, "-out", signed.certificate, "-startdate", _date(begins), "-enddate", _date(ends)),
        )
        self.signed[file or names[0]] = signed
        return signed

    def _files(self, name: str) -> Signed:
        return Signed(str(self.directory / f"{name}.pem"), str(self.directory / f"{name}.key"))

    def _config(self) -> str:
        return self._made("request.cnf", "[req]\ndistinguished_name=d\n[d]\n")

    def _made(self, name: str, text: str) -> str:
        path = self.directory / name
        if not path.exists():
            path.write_text(text, "ascii")
        return str(path)


def _new_key(kind: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256") if kind == "ec" else ("-newkey", kind)


def _date(days: float) -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + days * DAY))
