"""`tls_server_config`: from the keys of the file to a TLS context, with one clear line for what cannot be used."""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec


class WebConfigError(Exception):
    """The web configuration cannot be used; the message is for the user, one line, without secrets."""


class TlsSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`tls_server_config` as it stands in the file; paths are relative to the file."""

    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    client_auth_type: str = "NoClientCert"
    client_ca_file: str | None = None
    client_allowed_sans: list[str] | None = None
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    cipher_suites: list[str] | None = None
    prefer_server_cipher_suites: bool = True
    curve_preferences: list[str] | None = None


_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_CLIENT_AUTH = {
    # What a certificate that is asked for and never looked at would change: nothing.
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_UNVERIFIED = ("RequireAnyClientCert", "RequireClientCert")
_TLS13_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
_SUITES = {
    f"TLS_ECDHE_{kind}_WITH_{go}": f"ECDHE-{kind}-{openssl}"
    for kind in ("ECDSA", "RSA")
    for go, openssl in (
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
    )
}
"""Go's names of the suites that it holds for secure, in OpenSSL's."""


def files_of(section: TlsSection | None, folder: Path) -> list[Path]:
    """Return the files that the section names, so that they can be watched."""
    names = (section.cert_file, section.key_file, section.client_ca_file) if section else ()
    return [folder / name for name in names if name]


def server_context(section: TlsSection, path: Path) -> ssl.SSLContext:
    """Return the TLS context that the section of the file at `path` asks for.

    Raises:
        WebConfigError: a value is unknown or cannot be had with Python's ssl, or a file cannot be used.
    """

    def wrong(key: str, text: str) -> WebConfigError:
        return WebConfigError(f"{path}: tls_server_config.{key}: {text}")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for key in ("min_version", "max_version"):
        name = getattr(section, key)
        if name not in _VERSIONS:
            raise wrong(key, f"{name!r} is none of {', '.join(_VERSIONS)}")
    if section.min_version > section.max_version:
        raise wrong("min_version", f"{section.min_version} is above max_version {section.max_version}")
    context.minimum_version = _VERSIONS[section.min_version]
    context.maximum_version = _VERSIONS[section.max_version]
    context.set_alpn_protocols(["http/1.1"])
    if not section.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    _set_algorithms(context, section, wrong)
    _set_certificate(context, section, path.parent, wrong)
    _set_client_auth(context, section, path.parent, wrong)
    return context


def _set_algorithms(context: ssl.SSLContext, section: TlsSection, wrong: Any) -> None:
    suites = section.cipher_suites or []
    for suite in suites:
        if suite not in _SUITES and suite not in _TLS13_SUITES:
            raise wrong("cipher_suites", f"{suite!r} is not known; names are Go's, of its secure suites")
    chosen = [_SUITES[suite] for suite in suites if suite in _SUITES]  # those of TLS 1.3 are always all there, as in Go
    if chosen:
        context.set_ciphers(":".join(chosen))
    curves = section.curve_preferences or []
    for curve in curves:
        if curve not in _CURVES:
            raise wrong("curve_preferences", f"{curve!r} is none of {', '.join(_CURVES)}")
    if len(curves) > 1:
        raise wrong("curve_preferences", "only one curve can be set here (a limit of Python's ssl module)")
    for curve in curves:
        context.set_ecdh_curve(_CURVES[curve])


def _set_certificate(context: ssl.SSLContext, section: TlsSection, folder: Path, wrong: Any) -> None:
    for inline, named in (("cert", "cert_file"), ("key", "key_file")):
        if not getattr(section, inline) and not getattr(section, named):
            raise wrong(named, "missing; TLS needs cert_file and key_file")
        if getattr(section, inline) and getattr(section, named):
            raise wrong(named, f"give {named} or {inline}, not both")
    with (
        _file(section.cert, section.cert_file, folder, "cert_file", wrong) as cert,
        _file(section.key, section.key_file, folder, "key_file", wrong) as key,
    ):
        try:
            context.load_cert_chain(cert, key, password=_no_password)
        except _EncryptedKeyError:
            raise wrong("key_file", "the key is encrypted; give one without a passphrase") from None
        except ssl.SSLError as error:
            key_name, text = _certificate_problem(error, cert)
            raise wrong(key_name, text) from None


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> str:
    """Stand in for OpenSSL's own question on the terminal, which would wait for ever in a service."""
    raise _EncryptedKeyError


def _certificate_problem(error: ssl.SSLError, cert: str) -> tuple[str, str]:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "key_file", "the key does not belong to the certificate in cert_file"
    try:
        ssl.create_default_context(cafile=cert)
    except (ssl.SSLError, OSError):
        return "cert_file", "no usable certificate in it (PEM is needed)"
    return "key_file", f"no usable private key in it, PEM is needed ({error.reason or error})"


def _set_client_auth(context: ssl.SSLContext, section: TlsSection, folder: Path, wrong: Any) -> None:
    kind = section.client_auth_type
    if kind in _UNVERIFIED:
        raise wrong("client_auth_type", f"{kind} would let any certificate in; use RequireAndVerifyClientCert")
    if kind not in _CLIENT_AUTH:
        raise wrong("client_auth_type", f"{kind!r} is none of {', '.join(_CLIENT_AUTH)}")
    mode = _CLIENT_AUTH[kind]
    has_ca = bool(section.client_ca or section.client_ca_file)
    if has_ca and kind == "NoClientCert":
        raise wrong("client_ca_file", "has no effect without client_auth_type")
    if mode != ssl.CERT_NONE and not has_ca:
        raise wrong("client_ca_file", f"missing; {kind} needs it")
    if section.client_allowed_sans is not None and mode != ssl.CERT_REQUIRED:
        raise wrong("client_allowed_sans", "needs client_auth_type: RequireAndVerifyClientCert")
    if section.client_allowed_sans == []:
        raise wrong("client_allowed_sans", "is empty: nobody could connect")
    context.verify_mode = mode
    if has_ca:
        with _file(section.client_ca, section.client_ca_file, folder, "client_ca_file", wrong) as authority:
            try:
                context.load_verify_locations(authority)
            except (ssl.SSLError, OSError):
                raise wrong("client_ca_file", "no usable certificate in it (PEM is needed)") from None


@contextmanager
def _file(inline: str | None, name: str | None, folder: Path, key: str, wrong: Any) -> Iterator[str]:
    """Give the path of a readable file with the text: the one named or, for inline text, a private temporary one."""
    if name:
        path = folder / name
        try:
            path.open("rb").close()
        except (OSError, ValueError) as error:  # ValueError: no path at all
            raise wrong(key, f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
        yield str(path)
        return
    handle, temporary = tempfile.mkstemp()  # readable by this user only; OpenSSL takes files alone
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(inline or "")
        yield temporary
    finally:
        Path(temporary).unlink()


def allowed_peer(certificate: Mapping[str, Any] | None, allowed: Sequence[str]) -> bool:
    """Whether a subject alternative name (DNS, IP, e-mail or URI) of the certificate is one of the allowed ones."""
    names = {
        str(value) if kind != "IP Address" else _plain_ip(str(value))
        for kind, value in (certificate or {}).get("subjectAltName", ())
        if kind in ("DNS", "IP Address", "email", "URI")
    }
    return any(name in names or _plain_ip(name) in names for name in allowed)


def _plain_ip(text: str) -> str:
    """Return an IP address in its usual spelling (OpenSSL spells IPv6 in full), and other text as it is."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return text
