"""TLS with real handshakes: certificates of both sides, slow clients, new certificates without a restart."""

from __future__ import annotations

import contextlib
import socket
import ssl

import bcrypt
import httpx
import pytest
import trustme
from celeryscope.exporters import http
from celeryscope.exporters.http import THREADS, Server
from celeryscope.exporters.webconfig import WebConfig
from celeryscope.monitor.values import Address

HASH = bcrypt.hashpw(b"s3cret", bcrypt.gensalt(4)).decode()
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
VERIFIED = TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"


class Metrics:
    def render(self, *, openmetrics=False):
        return b"celery_x 1\n" * 1_000


@pytest.fixture(scope="module", name="ca")
def _ca():
    return trustme.CA()


def issue(ca, folder):
    cert = ca.issue_cert("127.0.0.1")
    cert.private_key_pem.write_to_path(folder / "server.key")
    cert.cert_chain_pems[0].write_to_path(folder / "server.crt")


@pytest.fixture(name="serve")
def _serve(tmp_path, ca):
    """Start a server with a web configuration, its files in `tmp_path`."""
    issue(ca, tmp_path)
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    with contextlib.ExitStack() as stack:

        def serve(text):
            (tmp_path / "web.yml").write_text(text)
            config = WebConfig(tmp_path / "web.yml")
            return stack.enter_context(Server(Address("127.0.0.1", 0), {"/metrics": Metrics()}, web_config=config))

        yield serve


def trusting(ca, cert=None):
    context = ssl.create_default_context()
    ca.configure_trust(context)
    if cert is not None:
        cert.configure_cert(context)
    return context


def get(server, context, **options):
    return httpx.get(f"{server.url}/metrics", verify=context, timeout=20, **options)


def refused(server, context):
    """Whether the server ends the connection; with TLS 1.3 a client learns that only after its own handshake."""
    with pytest.raises(httpx.TransportError):
        get(server, context)
    return True


def serial(server, context):
    with (
        socket.create_connection(("127.0.0.1", server.port), 20) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as tls,
    ):
        return tls.getpeercert()["serialNumber"]


def test_pages_over_tls_and_basic_auth(serve, ca):
    server = serve(TLS + f"basic_auth_users:\n  prometheus: {HASH}\n")
    assert server.url.startswith("https://127.0.0.1:")
    context = trusting(ca)
    for path in ("/metrics", "/-/healthy", "/-/ready", "/", "/nothing"):
        assert httpx.get(server.url + path, verify=context).status_code == 401
    response = get(server, context, auth=("prometheus", "s3cret"))
    assert (response.status_code, len(response.content)) == (200, 11_000)
    assert get(server, context, auth=("prometheus", "wrong")).status_code == 401


def test_plain_http_is_told_to_speak_https(serve):
    server = serve(TLS)
    response = httpx.get(f"http://127.0.0.1:{server.port}/metrics")
    assert (response.status_code, response.text) == (400, "This port speaks HTTPS.\n")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_only_a_client_with_a_certificate_of_the_authority_comes_in(serve, ca, version):
    server = serve(VERIFIED)

    def client(cert=None):
        context = trusting(ca, cert)
        context.minimum_version = context.maximum_version = version
        return context

    assert refused(server, client())
    assert refused(server, client(trustme.CA().issue_cert("prometheus.example")))
    assert get(server, client(ca.issue_cert("prometheus.example"))).status_code == 200


def test_a_certificate_may_be_left_out_where_it_is_only_verified_if_given(serve, ca):
    server = serve(VERIFIED.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"))
    assert get(server, trusting(ca)).status_code == 200
    assert get(server, trusting(ca, ca.issue_cert("a.example"))).status_code == 200
    assert refused(server, trusting(ca, trustme.CA().issue_cert("a.example")))


@pytest.mark.parametrize(
    ("names", "comes_in"),
    [
        (["prometheus.example"], True),
        (["other.example", "prometheus.example"], True),
        (["10.1.2.3"], True),
        (["2001:db8::1"], True),
        (["ops@example.com"], True),
        (["other.example"], False),
        (["sub.prometheus.example"], False),
    ],
)
def test_client_allowed_sans(serve, ca, names, comes_in):
    server = serve(
        VERIFIED + "  client_allowed_sans: [prometheus.example, 10.1.2.3, '2001:DB8:0::1', ops@example.com]\n"
    )
    context = trusting(ca, ca.issue_cert(*names))
    if comes_in:
        assert get(server, context).status_code == 200
    else:
        assert refused(server, context)


def test_versions_and_suites_are_held(serve, ca):
    server = serve(TLS + "  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]\n")
    old, new = trusting(ca), trusting(ca)
    new.minimum_version = ssl.TLSVersion.TLSv1_3
    old.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384")
    assert get(server, old).status_code == 200
    old.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305")
    assert refused(server, old)
    assert refused(server, new)


def test_slow_handshakes_hold_nobody_up(serve, ca, monkeypatch):
    """A silent client takes no thread; one in the middle of a handshake has its thread taken away in time."""
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.5)
    server = serve(TLS)
    with contextlib.ExitStack() as stack:
        for data in (b"", b"\x16\x03\x01\x02\x00\x01"):
            for _ in range(THREADS * 2):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
                sock.sendall(data)
        assert get(server, trusting(ca)).status_code == 200


def test_connections_are_kept_so_that_a_scrape_needs_no_handshake(serve, ca):
    server = serve(TLS)
    with httpx.Client(verify=trusting(ca)) as client:
        ports = {
            client.get(f"{server.url}/metrics").extensions["network_stream"].get_extra_info("client_addr")
            for _ in range(3)
        }
    assert len(ports) == 1


def test_a_new_certificate_needs_no_restart_and_a_broken_one_does_no_harm(serve, ca, tmp_path, caplog):
    server = serve(TLS)
    context = trusting(ca)
    first = serial(server, context)
    issue(ca, tmp_path)
    second = serial(server, context)
    assert second != first
    (tmp_path / "server.crt").write_text("half a certif")
    assert [serial(server, context) for _ in range(3)] == [second] * 3
    assert len([r for r in caplog.records if "the one before stays" in r.getMessage()]) == 1
    issue(ca, tmp_path)
    assert serial(server, context) not in (first, second)


def test_stopping_with_tls_clients_connected(serve, ca, monkeypatch):
    monkeypatch.setattr(http, "REQUEST_SECONDS", 100)
    server = serve(TLS)
    with (
        socket.create_connection(("127.0.0.1", server.port), 20) as silent,
        socket.create_connection(("127.0.0.1", server.port), 20) as half,
        socket.create_connection(("127.0.0.1", server.port), 20) as idle,
        trusting(ca).wrap_socket(idle, server_hostname="127.0.0.1") as tls,
    ):
        half.sendall(b"\x16\x03\x01")
        tls.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tls.recv(100).startswith(b"HTTP/1.1 200")
        server.stop()
        for sock in (silent, half):
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
