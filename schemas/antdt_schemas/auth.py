"""Authentication of requests: a keyed hash of everything else in the record, by the job's secret.

Kafka's access control cannot tell keys of one topic apart, so the domain of trust is the job: whoever has its
secret may speak for any of its workers, nobody else for one.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from hmac import compare_digest

from antdt_schemas import codec, records

NONE = "none"
HMAC = "hmac-blake2b"
ENV_SECRET = "ANTDT_SECRET"


def sign(request: records.Request, secret: bytes | None) -> records.Request:
    """The request with its `auth`; unchanged where the job has no secret."""
    return request if secret is None else replace(request, auth=_code(request, secret))


def is_authentic(request: records.Request, secret: bytes | None) -> bool:
    """Was this request signed with the job's secret?"""
    return secret is None or compare_digest(request.auth, _code(request, secret))


def _code(request: records.Request, secret: bytes) -> bytes:
    return blake2b(codec.encode(replace(request, auth=b"")), digest_size=16, key=secret[:64]).digest()
