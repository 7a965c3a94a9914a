"""Certificates for tests of TLS, made by openssl: an authority, what it has signed, and what is wrong with some."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = "127.0.0.1"
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificates:
    """Files by name: NAME.key, NAME.pem, and NAME.both, the key with the certificate behind it."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def certificates(folder: Path) -> Certificates:
    """ca; of servers good, expired and elsewhere (another host's); of clients client; and stranger, of nobody's."""
    for name in ("ca", "stranger"):
        out = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")
        openssl("req", "-x509", *KEY, *out, "-subj", f"/CN={name}", "-days", "2")
    signed = (("good", HERE, "2"), ("expired", HERE, "-1"), ("elsewhere", "10.9.8.7", "2"), ("client", HERE, "2"))
    for name, host, days in signed:
        (folder / "san").write_text(f"subjectAltName=IP:{host}")
        request, key, out = folder / "request", folder / f"{name}.key", folder / f"{name}.pem"
        openssl("req", *KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        by = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", days)
        openssl("x509", "-req", "-in", request, *by, "-extfile", folder / "san", "-out", out)
    for name in ("good", "expired", "elsewhere", "client", "stranger"):
        (folder / f"{name}.both").write_text(
            (folder / f"{name}.key").read_text() + (folder / f"{name}.pem").read_text()
        )
    return Certificates(folder)
