"""The web configuration file: what is taken, what is refused and in which words, and how changes arrive."""

from __future__ import annotations

import base64
import logging
import os

import pytest
import trustme
from celeryscope.exporters.webconfig import WebConfig, WebConfigError

# Written down: the ids of tests that hold them are the same in every process.
HASH = "$2b$04$W4Rr9vQ7FAHyi5KW0zgro.XregdvZyVx0/kWYSVd.aerZZpfODgEa"  # s3cret
OTHER = "$2b$04$JPQtRAg6Mu9EgdrxSopcdOWx4ergdfopAp9Jh383FZ25ahszeSD6."  # other


@pytest.fixture(scope="module", name="ca")
def _ca():
    return trustme.CA()


@pytest.fixture(name="folder")
def _folder(tmp_path, ca):
    """A folder with a certificate, its key, and the certificate authority."""
    cert = ca.issue_cert("localhost", "127.0.0.1")
    cert.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    cert.private_key_pem.write_to_path(tmp_path / "server.key")
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    return tmp_path


def written(folder, text):
    path = folder / "web.yml"
    path.write_text(text, encoding="utf-8")
    return path


TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
VERIFIED = TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# all of it commented out\n",
        "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\n",
        "tls_server_config: {}\n",
        TLS,
        VERIFIED,
        VERIFIED + "  client_allowed_sans: [prometheus.example, 10.0.0.1]\n",
        TLS + "  client_auth_type: RequestClientCert\n",
        TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.crt\n",
        TLS + "  min_version: TLS13\n  max_version: TLS13\n",
        TLS + "  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]\n",
        TLS + "  prefer_server_cipher_suites: false\n  curve_preferences: [CurveP256]\n",
        "http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: deny\n    X-XSS-Protection: ''\n",
        f"basic_auth_users:\n  prometheus: {HASH}\n  'other one': {OTHER}\n",
        "rate_limit:\n  interval: 1m30s\n  burst: 5\n",
        "rate_limit:\n  interval: 0\n",
    ],
)
def test_what_the_toolkit_takes_is_taken(folder, text):
    config = WebConfig(written(folder, text))
    assert config.tls is text.startswith("tls_server_config:\n  cert")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls_config: {}\n", "unknown key 'tls_config'"),
        ("tls_server_config:\n  certfile: x\n", "tls_server_config: unknown key 'certfile'"),
        ("http_server_config:\n  http3: true\n", "http_server_config: unknown key 'http3'"),
        ("- a list\n", "Expected `object`"),
        ("tls_server_config: server.crt\n", "tls_server_config: Expected `object"),
        (TLS + "  min_version: [TLS12]\n", "tls_server_config.min_version: Expected `str`"),
        ("tls_server_config: {cert_file: server.crt\n", "not YAML in line 2"),
        (f"basic_auth_users:\n  a: {HASH}\n  a: {OTHER}\n", "key 'a' stands twice"),
        ("tls_server_config:\n  cert_file: server.crt\n", "tls_server_config.key_file: missing"),
        ("tls_server_config:\n  key_file: server.key\n", "tls_server_config.cert_file: missing"),
        ("tls_server_config:\n  client_auth_type: NoClientCert\n  min_version: TLS13\n", "cert_file: missing"),
        (TLS.replace("server.key", "none.key"), "tls_server_config.key_file: cannot read {folder}/none.key: No such"),
        (TLS.replace("server.crt", "none.crt"), "tls_server_config.cert_file: cannot read {folder}/none.crt: No such"),
        (TLS.replace("server.key", "web.yml"), "key_file: no usable private key in it, PEM is needed"),
        (TLS.replace("server.crt", "web.yml"), "cert_file: no usable certificate in it (PEM is needed)"),
        (TLS.replace("server.crt", "ca.crt"), "key_file: the key does not belong to the certificate in cert_file"),
        (TLS + "  cert: abc\n", "cert_file: give cert_file or cert, not both"),
        (TLS + "  min_version: TLS10\n", "min_version: 'TLS10' is none of TLS12, TLS13"),
        (TLS + "  min_version: TLS13\n  max_version: TLS12\n", "min_version: TLS13 is above max_version TLS12"),
        (TLS + "  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n", "cipher_suites: 'TLS_RSA_WITH_RC4_128_SHA' is not"),
        (TLS + "  curve_preferences: [P256]\n", "curve_preferences: 'P256' is none of"),
        (TLS + "  curve_preferences: [CurveP256, X25519]\n", "curve_preferences: only one curve"),
        (TLS + "  client_auth_type: Sometimes\n", "client_auth_type: 'Sometimes' is none of NoClientCert"),
        (TLS + "  client_auth_type: RequireAnyClientCert\n", "client_auth_type: RequireAnyClientCert would let any"),
        (TLS + "  client_auth_type: RequireAndVerifyClientCert\n", "client_ca_file: missing"),
        (TLS + "  client_ca_file: ca.crt\n", "client_ca_file: has no effect without client_auth_type"),
        (VERIFIED.replace("ca.crt", "server.key"), "client_ca_file: no usable certificate"),
        (VERIFIED.replace("ca.crt", "none.crt"), "client_ca_file: cannot read {folder}/none.crt"),
        (TLS + "  client_allowed_sans: [a]\n", "client_allowed_sans: needs client_auth_type"),
        (VERIFIED + "  client_allowed_sans: []\n", "client_allowed_sans: is empty"),
        (
            "basic_auth_users:\n  prometheus: s3cret\n",
            "the password of 'prometheus' is not a bcrypt hash; make one with",
        ),
        (f"basic_auth_users:\n  'a:b': {HASH}\n", "a user name cannot hold a colon"),
        ("basic_auth_users:\n  prometheus:\n", "basic_auth_users[...]: Expected `str`, got `null`"),
        ("http_server_config:\n  headers:\n    X-Powered-By: x\n", "http_server_config.headers: 'X-Powered-By' cannot"),
        ("http_server_config:\n  headers:\n    X-Frame-Options: allow\n", "X-Frame-Options: 'allow' is none of deny"),
        ('http_server_config:\n  headers:\n    X-XSS-Protection: "1\\r\\nA: b"\n', "X-XSS-Protection: only printable"),
        ("rate_limit:\n  interval: fast\n  burst: 1\n", "rate_limit.interval: 'fast' is not a duration"),
        ("rate_limit:\n  interval: 1s\n", "rate_limit.burst: must be at least 1"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_the_key(folder, text, said):
    with pytest.raises(WebConfigError) as caught:
        WebConfig(written(folder, text))
    message = str(caught.value)
    assert said.format(folder=folder) in message
    assert str(folder / "web.yml") in message
    assert "\n" not in message
    assert "s3cret" not in message
    assert HASH not in message


def test_an_encrypted_key_asks_nobody_for_a_passphrase(folder, ca):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    encrypted = serialization.BestAvailableEncryption(b"passphrase")
    (folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted)
    )
    with pytest.raises(WebConfigError, match="key_file: the key is encrypted"):
        WebConfig(written(folder, TLS))


def test_a_file_that_is_not_there_or_is_no_text_is_one_line(tmp_path):
    with pytest.raises(WebConfigError, match=r"--web\.config\.file: cannot read .*none\.yml: No such file"):
        WebConfig(tmp_path / "none.yml")
    (tmp_path / "web.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WebConfigError, match="not UTF-8"):
        WebConfig(tmp_path / "web.yml")


def test_certificates_may_stand_in_the_file_itself(folder):
    def inline(name):
        return "".join(f"    {line}\n" for line in (folder / name).read_text().splitlines())

    text = (
        f"tls_server_config:\n  cert: |\n{inline('server.crt')}  key: |\n{inline('server.key')}"
        f"  client_ca: |\n{inline('ca.crt')}  client_auth_type: RequireAndVerifyClientCert\n"
    )
    assert WebConfig(written(folder, text)).tls


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"page"]


def ask(guarded, user=None, password="s3cret"):
    """Return status, headers and body of a request."""
    said = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    if user:
        environ["HTTP_AUTHORIZATION"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    body = b"".join(guarded(environ, lambda status, headers: said.append((status, dict(headers)))))
    [(status, headers)] = said
    return status, headers, body


def test_without_users_everybody_passes(folder):
    assert ask(WebConfig(written(folder, "")).guard(app))[::2] == ("200 OK", b"page")


def test_with_users_nobody_else_passes(folder):
    guarded = WebConfig(written(folder, f"basic_auth_users:\n  prometheus: {HASH}\n")).guard(app)
    assert ask(guarded, "prometheus")[::2] == ("200 OK", b"page")
    for user, password in ((None, ""), ("prometheus", "wrong"), ("nobody", "s3cret")):
        status, headers, body = ask(guarded, user, password)
        assert status == "401 Unauthorized"
        assert headers["WWW-Authenticate"].startswith('Basic realm="celeryscope"')
        assert b"page" not in body


def test_headers_are_on_every_answer_refusals_too(folder):
    text = f"basic_auth_users:\n  a: {HASH}\nhttp_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    guarded = WebConfig(written(folder, text)).guard(app)
    for user in ("a", None):
        assert ask(guarded, user)[1]["X-Frame-Options"] == "deny"


def test_the_rate_limit_lets_a_burst_pass_and_then_one_an_interval(folder):
    now = 100.0
    guarded = WebConfig(written(folder, "rate_limit:\n  interval: 2s\n  burst: 3\n"), clock=lambda: now).guard(app)
    statuses = [ask(guarded)[0][:3] for _ in range(4)]
    now += 2
    statuses += [ask(guarded)[0][:3] for _ in range(2)]
    now += 1_000
    statuses += [ask(guarded)[0][:3] for _ in range(4)]
    assert statuses == ["200", "200", "200", "429", "200", "429", "200", "200", "200", "429"]


def test_a_changed_file_counts_for_the_next_request(folder):
    path = written(folder, f"basic_auth_users:\n  a: {HASH}\n")
    guarded = WebConfig(path).guard(app)
    assert ask(guarded, "a")[0] == "200 OK"
    written(folder, f"basic_auth_users:\n  bb: {HASH}\n")
    assert ask(guarded, "a")[0] == "401 Unauthorized"
    assert ask(guarded, "bb")[0] == "200 OK"


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_seen(folder):
    """As a Kubernetes secret or `mv` does it."""
    path = written(folder, f"basic_auth_users:\n  a: {HASH}\n")
    before = path.stat()
    guarded = WebConfig(path).guard(app)
    (folder / "new.yml").write_text(f"basic_auth_users:\n  b: {HASH}\n")
    os.utime(folder / "new.yml", ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "new.yml").replace(path)
    assert ask(guarded, "a")[0] == "401 Unauthorized"


def test_a_bad_change_is_logged_once_and_the_good_one_stays(folder, caplog):
    path = written(folder, f"basic_auth_users:\n  a: {HASH}\n")
    guarded = WebConfig(path).guard(app)
    for damage in ("basic_auth_users:\n  a: s3cret\n", None, TLS):
        caplog.clear()
        path.unlink() if damage is None else written(folder, damage)
        for _ in range(3):
            assert ask(guarded, "a")[0] == "200 OK"
            assert ask(guarded)[0] == "401 Unauthorized"
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert "the one before stays" in record.getMessage()
    written(folder, f"basic_auth_users:\n  b: {HASH}\n")
    assert ask(guarded, "b")[0] == "200 OK"


def test_a_file_named_later_is_watched_too(folder, ca):
    path = written(folder, TLS)
    config = WebConfig(path)
    first = config.context()
    (folder / "second.crt").write_bytes((folder / "server.crt").read_bytes())
    written(folder, TLS.replace("server.crt", "second.crt"))
    second = config.context()
    assert second is not first
    os.utime(folder / "second.crt", ns=(1, 1))
    third = config.context()
    assert third is not second
    assert config.context() is third
