"""Java-style client properties: the file format of `java.util.Properties`, and Java's names in librdkafka's terms.

Pure text to text; knows no client. Owns which settings are this project's own (`settings_ours.py` lists them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from antdt_schemas.errors import UsageError
from antdt_schemas.settings_ours import JAVA_ONLY, OURS, TUNING

BLANK = " \t\f"
ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\u(.{0,4})|\\(.?)", re.DOTALL)
PAIR = re.compile(rf"((?:[^\\=:{BLANK}]|\\.)*)[{BLANK}]*[=:]?[{BLANK}]*(.*)", re.DOTALL)

Found = Mapping[str, tuple[str, str]]
"""Key -> (value, where it came from)."""

# Java's names, and those of service-binding secrets, that only need another name.
RENAMED = {
    "ssl.truststore.certificates": "ssl.ca.pem",
    "ssl.truststore.crt": "ssl.ca.pem",
    "ssl.keystore.certificate.chain": "ssl.certificate.pem",
    "ssl.keystore.crt": "ssl.certificate.pem",
    "ssl.keystore.key": "ssl.key.pem",
    "username": "sasl.username",
    "user": "sasl.username",
    "password": "sasl.password",
    "sasl.oauthbearer.client.credentials.client.id": "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.credentials.client.secret": "sasl.oauthbearer.client.secret",
}

PLAIN_MODULES = ("PlainLoginModule", "ScramLoginModule")


def parse_properties(text: str) -> dict[str, str]:
    """Keys and values of a properties file, by the rules of `java.util.Properties.load`. The last of a key counts.

    Raises:
        UsageError: a malformed \\uXXXX escape.
    """
    out = {}
    for line in _logical_lines(text):
        found = PAIR.match(line)
        assert found is not None  # of nothing and nothing, at least
        out[_unescaped(found[1])] = _unescaped(found[2])
    return out


def _logical_lines(text: str) -> list[str]:
    lines: list[str] = []
    pending: str | None = None
    for natural in re.split(r"\r\n|\n|\r", text):
        line = natural.lstrip(BLANK)
        if not pending and (not line or line[0] in "#!"):  # only a fresh line can be blank or a comment
            pending = None
            continue
        line = (pending or "") + line
        if (len(line) - len(line.rstrip("\\"))) % 2:
            pending = line[:-1]
            continue
        lines.append(line)
        pending = None
    if pending:
        lines.append(pending)
    return [line for line in lines if line]


def _unescaped(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        digits, wrong, char = found.groups()
        if wrong is not None:
            raise UsageError(f"Malformed escape \\u{wrong}: four hexadecimal digits must follow \\u.")
        return chr(int(digits, 16)) if digits else ESCAPES.get(char, char)

    try:  # two escapes may be the halves of one character
        return ESCAPE.sub(one, text).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise UsageError("An escape \\uD800 to \\uDFFF stands alone: such characters are written as a pair.") from error


def to_librdkafka(found: Found) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """The same settings under librdkafka's names, and a line for each that is ignored, and why. What librdkafka already
    knows passes through untouched, and so does what nobody knows: librdkafka refuses it.

    Raises:
        UsageError: a setting that only a JVM can honour, such as a JKS key store; it says what to write instead.
    """
    out: dict[str, tuple[str, str]] = {}
    for key, (value, origin) in found.items():
        if key in OURS or JAVA_ONLY.fullmatch(key):
            continue
        if key == "sasl.jaas.config":
            out.update({k: (v, origin) for k, v in _jaas(value).items()})
        elif key in ("ssl.truststore.location", "ssl.keystore.location"):
            kind = found.get(key.replace("location", "type"), ("", ""))[0]
            out.update({k: (v, origin) for k, v in _store(key, value, kind).items()})
        elif key == "ssl.endpoint.identification.algorithm":
            out[key] = (value or "none", origin)
        elif key == "config.providers":
            raise UsageError(
                f"{key} (from {origin}): only Java looks values up elsewhere. Write the values themselves, or set them "
                "as ANTDT_KAFKA_... in the environment."
            )
        elif key in TUNING:
            name, tuned = TUNING[key]
            if name == key or name not in found:  # librdkafka's own name says more exactly what is meant
                out[name] = (_tuned(key, value, origin, tuned), origin)
        else:
            out[RENAMED.get(key, key)] = (value, origin)
    if "sasl.oauthbearer.token.endpoint.url" in out:
        out.setdefault("sasl.oauthbearer.method", ("oidc", out["sasl.oauthbearer.token.endpoint.url"][1]))
    return out, _ignored(found)


def _ignored(found: Found) -> list[str]:
    """One line for each setting that is ours, one for all that only Java knows from the same place."""
    lines = [f"{key} (from {origin}) is ignored: {OURS[key]}." for key, (_, origin) in found.items() if key in OURS]
    java: dict[str, list[str]] = {}
    for key, (_, origin) in found.items():
        if key not in OURS and JAVA_ONLY.fullmatch(key):
            java.setdefault(origin, []).append(key)
    return lines + [f"{', '.join(keys)} (from {where}): ignored, only Java has them." for where, keys in java.items()]


def _tuned(key: str, value: str, origin: str, tuned: Callable[[int], int]) -> str:
    try:
        return str(tuned(int(float(value))))
    except (ValueError, OverflowError):
        raise UsageError(f"{key}={value} (from {origin}) is no number.") from None


def _jaas(config: str) -> dict[str, str]:
    """User and password of a JAAS line: `….PlainLoginModule required username="u" password="p";`"""
    module, *_ = config.split(None, 1) or [""]
    quoted = re.findall(r"""(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s;"']+))""", config)
    options = {key: re.sub(r"\\(.)", r"\1", double or single or bare) for key, double, single, bare in quoted}
    if module.endswith(PLAIN_MODULES) and {"username", "password"} <= options.keys():
        return {"sasl.username": options["username"], "sasl.password": options["password"]}
    if module.endswith("OAuthBearerLoginModule"):
        names = {"clientId": "client.id", "clientSecret": "client.secret", "scope": "scope"}
        return {f"sasl.oauthbearer.{names[key]}": value for key, value in options.items() if key in names}
    raise UsageError(
        f"sasl.jaas.config names {module or 'nothing'}: only PLAIN and SCRAM (with username and password) and "
        "OAUTHBEARER can be taken from it. Write librdkafka's own settings instead, sasl.username for example."
    )


def _store(key: str, path: str, kind: str) -> dict[str, str]:
    """A key or trust store. librdkafka reads PEM for both and PKCS#12 for keys, never JKS."""
    trust = key.startswith("ssl.truststore")
    kind = kind.upper() or {"pem": "PEM", "crt": "PEM", "p12": "PKCS12", "pfx": "PKCS12"}.get(
        path.rsplit(".", maxsplit=1)[-1], ""
    )
    if kind == "PEM":
        if trust:
            return {"ssl.ca.location": path}
        return {"ssl.certificate.location": path, "ssl.key.location": path}
    if not trust and kind == "PKCS12":
        return {key: path}
    wanted = "ssl.ca.location" if trust else "ssl.certificate.location and ssl.key.location"
    raise UsageError(
        f"{key}={path} is a {kind or 'JKS'} store, which only Java reads. Export it as PEM (keytool -exportcert -rfc, "
        f"openssl pkcs12) and set {wanted}."
    )
