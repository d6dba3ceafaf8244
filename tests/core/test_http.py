"""The one HTTP client: consent, redirects, proxies, bounds, keys, cancellation. Real sockets."""

from __future__ import annotations

import ssl
import threading
import time

import pytest
import trustme
from support.bad_server import bad_server, closed_port

from hintdistill.core import masking
from hintdistill.core.errors import ConfigError, HintdistillError, InputError, ServiceError
from hintdistill.core.http import (
    CancelledError,
    CutError,
    HttpClient,
    OversizedError,
    RedirectError,
    Server,
    TimedOutError,
    UnreachableError,
)
from hintdistill.core.threads import as_finished, in_order, stop_all

KEY = "sk-test-7Qd+0/Zr==9Lm4"
TRACE = {"messages": [{"role": "user", "content": "the trace's own words"}]}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def client(url: str, **settings) -> HttpClient:
    return HttpClient(Server(url, "the critic", "critic.llm", **{"timeout_s": 5.0, "retries": 0} | settings))


def test_an_answer_and_what_was_sent():
    with bad_server() as server:
        assert b"verdict" in client(server.url("none")).post("/chat/completions", TRACE).body
        (got,) = server.received
    assert got["target"] == "/none/v1/chat/completions" and "the trace's own words" in got["body"]
    assert got["headers"]["authorization"] == f"Bearer {KEY}" and got["headers"]["host"] == server.host


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("verb", ["post", "get"])
def test_no_redirect_is_followed_and_its_target_is_named(status, verb):
    with bad_server() as server, bad_server("127.0.0.2") as other:
        server.elsewhere = other.url("none")
        asked = client(server.url(f"moved{status}"), retries=3)
        with pytest.raises(RedirectError, match=f"127.0.0.2:{other.server_address[1]}/none/v1") as caught:
            asked.post("/chat/completions", TRACE) if verb == "post" else asked.get("/models")
        assert other.received == [] and len(server.received) == 1
    assert caught.value.exit_code == 5 and not caught.value.retryable


@pytest.mark.parametrize("mode", ["hangs", "drips", "drips_head", "drips_chunks", "drips_continue"])
def test_one_bound_of_time_holds_for_the_whole_answer(mode):
    with bad_server() as server, pytest.raises(TimedOutError, match=r"no answer within 0.2 s \(1 time\)") as caught:
        client(server.url(mode), timeout_s=0.2).post("/x", TRACE)
    assert caught.value.retryable and "critic.llm.timeout_s" in caught.value.hint


@pytest.mark.parametrize("mode", ["floods", "bomb"])
def test_one_bound_of_bytes_holds_for_the_whole_answer_unpacked_too(mode):
    with bad_server() as server, pytest.raises(OversizedError, match="more than 1000000 bytes"):
        client(server.url(mode)).post("/x", TRACE, most_bytes=1_000_000)


@pytest.mark.parametrize("mode", ["cut", "no_http"])
def test_what_is_no_whole_answer_is_an_error(mode):
    with bad_server() as server, pytest.raises(CutError, match="in the middle of an answer"):
        client(server.url(mode)).post("/x", TRACE)


def test_nobody_there():
    with pytest.raises(UnreachableError, match=r"cannot reach the critic at http://127.0.0.1:\d+/v1 \(1 attempt\)"):
        client(f"http://127.0.0.1:{closed_port()}/v1").post("/x", TRACE)
    with pytest.raises(UnreachableError):
        client("http://localhost:9/v1").get("/models")


@pytest.mark.parametrize("loopback", ["127.0.0.1", "localhost", "127.0.0.2"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_this_machine_is_reached_past_every_proxy(monkeypatch, loopback, variable):
    with bad_server() as proxy, bad_server("127.0.0.2" if loopback == "127.0.0.2" else "127.0.0.1") as server:
        monkeypatch.setenv(variable, f"http://{proxy.host}")
        url = server.url("none").replace("127.0.0.1", loopback)
        client(url).post("/x", TRACE)
        assert proxy.received == [] and len(server.received) == 1


def test_a_proxy_before_another_host_is_named_and_has_to_be_allowed(monkeypatch):
    url = "http://critic.example/none/v1"
    monkeypatch.setenv("HTTP_PROXY", "http://ann:pr0xypassword@proxy.example:3128")
    with pytest.raises(ConfigError, match=r"HTTP_PROXY.*proxy\.example") as caught:
        client(url, allow_hosts=("critic.example",), allow_key="critic.allow_hosts")
    assert "critic.allow_hosts=[proxy.example]" in caught.value.hint and "pr0xy" not in str(caught.value)
    assert client(url, allow_hosts=("critic.example", "proxy.example")).notes
    monkeypatch.setenv("HTTP_PROXY", "socks5://proxy.example")
    with pytest.raises(ConfigError, match="socks5"):
        client(url, allow_hosts=("critic.example", "proxy.example"))
    monkeypatch.setenv("NO_PROXY", "critic.example")
    assert client(url, allow_hosts=("critic.example",)).proxy is None
    monkeypatch.delenv("NO_PROXY")
    with bad_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        client(url, allow_hosts=("critic.example",)).post("/x", TRACE)
        assert proxy.received[0]["target"] == "http://critic.example/none/v1/x"


@pytest.mark.parametrize("url", ["http://critic.example/v1", "https://10.0.0.7:8000/v1", "http://[2001:db8::1]/v1"])
def test_a_host_outside_this_machine_has_to_be_allowed(url):
    with pytest.raises(ConfigError, match="outside this machine"):
        client(url)
    with pytest.raises(ConfigError, match="outside this machine"):
        client(url, allow_hosts=("example", "critic.example.com"))


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http:///v1", "http://[x/v1", "http://h:p/v1", "http://h/v1?k=1", ""]
)
def test_what_is_no_address_is_a_config_error(url):
    with pytest.raises(ConfigError, match=r"critic\.llm\.base_url"):
        client(url)


def test_a_key_with_a_line_break_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abcdefgh\r\nx-evil: 1")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        client("http://localhost/v1")
    assert "abcdefgh" not in str(caught.value)


@pytest.mark.parametrize("mode", ["echo401", "echo500", "echo_page", "echo_moved"])
def test_a_key_is_covered_in_whatever_comes_back(mode):
    with bad_server() as server:
        try:
            said = client(server.url(mode)).post("/x", TRACE).text
        except ServiceError as error:
            said = f"{error} {error.message} {error!r}"
    assert KEY not in said and KEY[8:] not in said and masking.COVER in said


def test_a_key_is_covered_in_every_spelling_and_placeholders_are_not():
    masking.hide(KEY)
    masking.hide("none")
    for spelled in (KEY, KEY.upper(), KEY.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D")):
        assert masking.mask(f"a {spelled} b") == f"a {masking.COVER} b"
    assert masking.mask('{"verdict":"none"}') == '{"verdict":"none"}'
    assert str(HintdistillError(f"x {KEY}", hint=KEY)) == f"x {masking.COVER}\n  → {masking.COVER}"


def test_a_password_in_the_address_is_sent_and_never_shown():
    with bad_server() as server:
        url = server.url("echo500").replace("http://", "http://ann:hunter22hunter@")
        with pytest.raises(ServiceError) as caught:
            client(url).post("/x", TRACE)
        sent = server.received[0]["headers"]["authorization"]
    assert (
        sent.startswith("Basic ") and sent.split()[1] not in str(caught.value) and "hunter22" not in str(caught.value)
    )


@pytest.mark.parametrize("mode", ["hangs", "drips", "busy"])
def test_work_that_is_no_longer_wanted_ends_at_once(mode):
    """The threads are gone when the iterator is closed, although each had 60 seconds and many tries."""
    failed = []

    def ask(i: int) -> None:
        try:
            asked.post("/x", TRACE)
        except CancelledError as error:
            failed.append(error.retryable)
            raise

    with bad_server() as server:
        asked = client(server.url(mode), timeout_s=60, retries=50)
        running = as_finished(lambda i: None if i == 0 else ask(i), range(5), 4)
        next(running)
        while len(server.received) < 3:
            time.sleep(0.01)
        running.close()
    assert failed and all(failed)


def test_all_work_can_be_stopped_from_outside():
    with bad_server() as server:
        asked = client(server.url("hangs"), timeout_s=60)
        threading.Timer(0.2, stop_all).start()
        with pytest.raises(CancelledError, match="before it was answered"):
            in_order(lambda i: asked.post("/x", TRACE), range(2), 2)


def test_in_order():
    assert in_order(lambda x: x * x, [3, 1, 2], 2) == [9, 1, 4] and in_order(lambda x: x, [], 3) == []
    with pytest.raises(InputError):
        in_order(lambda x: (_ for _ in ()).throw(InputError("x")), [1], 1)


@pytest.fixture
def certified(tmp_path, monkeypatch):
    """A server that speaks TLS; makes its certificate for a name, and trusts it where asked."""
    authority = trustme.CA()

    def start(name: str, trusted: bool):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        if trusted:
            authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        return bad_server(tls=context)

    return start


def test_tls_whose_certificate_is_trusted(certified):
    with certified("127.0.0.1", True) as server:
        url = server.url("none")
        assert url.startswith("https://") and b"verdict" in client(url).post("/chat/completions", TRACE).body
        for mode, error in (("floods", OversizedError), ("cut", CutError)):
            with pytest.raises(error):
                client(server.url(mode), timeout_s=30).post("/x", TRACE, most_bytes=1_000_000)


@pytest.mark.parametrize(("name", "trusted"), [("127.0.0.1", False), ("critic.example", True)])
def test_tls_that_cannot_be_trusted_gets_no_word_of_a_trace(certified, name, trusted):
    with certified(name, trusted) as server:
        with pytest.raises(UnreachableError, match="certificate verify failed") as caught:
            client(server.url("none")).post("/chat/completions", TRACE)
        assert server.received == [] and "SSL_CERT_FILE" in str(caught.value.hint)
