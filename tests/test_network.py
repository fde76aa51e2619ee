"""Messages about a network that stands in the way. Each server and proxy is a real one on the loopback interface."""

from vae.runtime import command, mirrors, network

import os
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from mlflow import MlflowClient

from vae.errors import InputError
from vae.tracking.address import store_errors

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """Removes the user's own settings."""
    for name in (*PROXIES, *CERTIFICATES):
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)


@pytest.fixture
def serve():
    """Starts a server that answers everything with a status and a body, and returns its port."""
    started = []

    def start(status: int = 200, body: bytes = b"", certificate=None) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_CONNECT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None  # a client that does not trust the certificate hangs up
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        started.append((server, thread))
        return server.server_port

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for localhost that nobody has signed, with its key."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run(
        [*request.split(), "-keyout", "key", "-out", "crt"], cwd=path.parent, capture_output=True, check=True
    )
    path.write_bytes((path.parent / "key").read_bytes() + (path.parent / "crt").read_bytes())
    return path


def reason(*urls: str, own: str = "", name: str = "mnist") -> list[mirrors.Failure]:
    """Why these public mirrors of MNIST failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mirrors.MIRRORS, name, urls)
        patch.setattr(mirrors.time, "sleep", lambda _: None)
        return mirrors.unreachable(name, {"MNIST_MIRROR": own})


@pytest.fixture
def trusted_dns(monkeypatch):
    """The loopback interface stands for a public address."""
    monkeypatch.setattr(network, "_inner_addresses", lambda _: [])


def test_an_untrusted_certificate(serve, certificate, trusted_dns, monkeypatch):
    url = f"https://localhost:{serve(certificate=certificate)}"
    (failure,) = reason(url)
    assert "its certificate is not trusted, self-signed certificate; set REQUESTS_CA_BUNDLE to" in failure.reason
    assert not failure.away
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    (failure,) = reason(url)
    assert "certificate" not in failure.reason  # the advice helps: now it is the file that is missing


def test_a_certificate_of_another_host(serve, certificate, trusted_dns, monkeypatch):
    """As of a login page, or of the page of a company that blocks the mirror."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    (failure,) = reason(f"https://127.0.0.1:{serve(certificate=certificate)}")
    assert "certificate is not valid for '127.0.0.1'" in failure.reason
    assert "something in this network answers in its place; log in to it" in failure.reason
    assert not failure.away


def test_a_server_without_tls(serve, trusted_dns):
    (failure,) = reason(f"https://127.0.0.1:{serve()}")
    assert "something in this network answers in its place" in failure.reason
    assert not failure.away


def test_a_certificate_file_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/company.pem")
    (failure,) = reason("https://127.0.0.1:9")
    assert failure.reason == "/nowhere/company.pem: no such certificate file; correct REQUESTS_CA_BUNDLE"
    assert not failure.away


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses(serve, monkeypatch, scheme):
    """The password in its address is not printed."""
    proxy = f"127.0.0.1:{serve(407)}"
    monkeypatch.setenv(f"{scheme}_proxy", f"http://user:secret@{proxy}")
    (failure,) = reason(f"{scheme}://mirror.example/mnist")
    assert f"the proxy {proxy} " in failure.reason
    assert "407" in failure.reason
    assert f"correct {scheme.upper()}_PROXY, or add mirror.example to NO_PROXY" in failure.reason
    assert "secret" not in str(failure)
    assert not failure.away


@pytest.mark.parametrize(
    ("proxy", "word"),
    [
        ("http://u:secret@127.0.0.1:9", "127.0.0.1:9"),
        ("u:secret@127.0.0.1:9", "127.0.0.1:9"),
        ("http://u:secret@proxy.invalid:80", "proxy.invalid:80"),
    ],
)
def test_a_proxy_that_is_away(monkeypatch, proxy, word):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    (failure,) = reason("https://mirror.example/mnist")
    assert word in failure.reason
    assert "HTTPS_PROXY" in failure.reason
    assert "secret" not in str(failure)
    assert not failure.away


def test_a_proxy_that_is_no_address(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://")
    (failure,) = reason("https://mirror.example/mnist")
    assert "correct HTTPS_PROXY" in failure.reason
    assert not failure.away


@pytest.mark.parametrize("page", [b"<html>Welcome! Log in.</html>", b"\n <!DOCTYPE html>"])
def test_a_login_page(serve, trusted_dns, page):
    (failure,) = reason(f"http://127.0.0.1:{serve(200, page)}")
    assert failure.reason.startswith("a web page in place of the file; something in this network")
    assert "browser" in failure.reason
    assert not failure.away


def test_a_network_that_demands_a_login(serve):
    (failure,) = reason(f"http://127.0.0.1:{serve(511)}")
    assert "HTTP 511: this network demands a login" in failure.reason
    assert not failure.away


@pytest.mark.parametrize("answer", ["127.0.0.1", "0.0.0.0", "10.1.2.3"])
def test_dns_that_lies(monkeypatch, answer):
    """The name of a public mirror leads into the private network, where nothing answers."""
    found = [(2, 1, 6, "", (answer, 0))]
    monkeypatch.setattr(network.socket, "getaddrinfo", lambda *_, **__: found)
    error = requests.ConnectionError()
    assert f"DNS says that mirror.example is {answer}, inside your" in network.fault(
        error, "http://mirror.example", True
    )
    assert network.fault(error, "http://intranet/mnist") is None  # which is there indeed
    found.append((2, 1, 6, "", ("8.8.8.8", 0)))
    assert network.fault(error, "http://mirror.example", True) is None


def test_no_network_at_all_is_nothing_that_the_user_can_mend():
    """Then `make run` takes the digits."""
    (failure,) = reason("http://mirror.invalid/mnist")
    assert (failure.reason, failure.away) == ("cannot be reached", True)


def run_reachable(folder, root, **environment) -> subprocess.CompletedProcess:
    command_ = [sys.executable, str(root / "tools/reachable.py"), str(root / "params.yaml"), str(folder)]
    inherited = {name: value for name, value in os.environ.items() if name != "MNIST_MIRROR"}
    environment = inherited | {"PYTHONPATH": str(root / "src")} | environment
    return subprocess.run(command_, env=environment, capture_output=True, text=True)


def test_make_run_takes_the_digits_only_without_a_network(serve, root, tmp_path):
    """A proxy that refuses, or a wrong MNIST_MIRROR, is an error."""
    proxy = f"http://u:secret@127.0.0.1:{serve(407)}"
    for environment in ({"https_proxy": proxy}, {"https_proxy": proxy, "MNIST_MIRROR": str(tmp_path)}):
        done = run_reachable(tmp_path / "data", root, **environment)
        assert done.returncode == 1
        assert done.stderr.startswith("error: mnist: ")
        assert "HTTPS_PROXY" in done.stderr
        assert "dvc exp run -S data.name=digits" in done.stderr
        assert "secret" not in done.stderr
        assert ("no such file" in done.stderr) is ("MNIST_MIRROR" in environment)


def test_a_store_behind_a_proxy_names_the_proxy(monkeypatch):
    """The message of the client library is longer than what is shown of it."""
    monkeypatch.setenv("HTTP_PROXY", "http://u:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = MlflowClient("http://mlflow.example")
    with pytest.raises(InputError) as caught, store_errors("http://mlflow.example"):
        client.get_experiment_by_name(500 * "x")
    assert "the proxy 127.0.0.1:9 does not help: Connection refused; correct HTTP_PROXY" in str(caught.value)
    assert "add mlflow.example to NO_PROXY" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_local_servers_are_asked_directly(serve, monkeypatch, name):
    """Other exceptions of the user stay."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv(name, "intranet.example")
    for _ in range(2):
        command.ask_local_servers_directly()
    for spelling in ("NO_PROXY", "no_proxy"):
        assert os.environ[spelling] == "intranet.example,127.0.0.1,localhost"
    assert requests.get(f"http://127.0.0.1:{serve()}", timeout=99).ok
    assert requests.get(f"http://localhost:{serve()}", timeout=99).ok


def test_without_a_proxy_nothing_is_set():
    """On macOS, requests would then no longer ask the system for its proxy."""
    command.ask_local_servers_directly()
    assert not {"NO_PROXY", "no_proxy"} & set(os.environ)
