"""The page's server over real sockets: what it serves, and what it refuses."""

import http.client
import json
import shutil
import socket
import threading

import pytest
from annotated_runs import annotated_run

from polypersona.annotation.server import AnnotationServer
from polypersona.annotation.session import open_session
from polypersona.annotation.store import load_rater
from polypersona.errors import PolypersonaError
from polypersona.storage import RunDirectory

NO_ENTRY = '{"entry": "none", "realism": 1, "consistency": 1, "guess": "human"}'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return annotated_run(tmp_path_factory.mktemp("server"))


@pytest.fixture
def server(made, tmp_path):
    shutil.copytree(made.location, tmp_path / "run")
    server = AnnotationServer(open_session(RunDirectory.at(tmp_path / "run"), 8, "anna"))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server, method, name, body=None, token=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    sent = {"Host": f"127.0.0.1:{server.port}", **{key.replace("_", "-"): value for key, value in headers.items()}}
    connection.request(method, f"/{token or server.token}/{name}", body, sent)
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    return reply, data


def rating(server, **changes):
    entry = server.session.entries[0].entry_id
    return json.dumps({"entry": entry, "realism": 4, "consistency": 3, "guess": "synthetic", "seconds": 2.5, **changes})


def test_it_listens_on_this_machine_only_with_a_token_nobody_guesses(server):
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32
    assert server.token in server.url


@pytest.mark.parametrize(
    ("name", "kind"),
    [("", "text/html"), ("page.js", "text/javascript"), ("page.css", "text/css"), ("api/session", "application/json")],
)
def test_the_page_and_its_parts_are_served_and_never_kept(server, name, kind):
    reply, data = ask(server, "GET", name)
    assert (reply.status, reply.headers.get_content_type()) == (200, kind)
    assert data
    assert reply.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert "unsafe" not in reply.headers["Content-Security-Policy"]


def test_what_the_page_gets_does_not_say_of_which_kind_an_answer_is(server):
    _, data = ask(server, "GET", "api/session")
    content = json.loads(data)
    assert len(content["entries"]) == 8
    for word in (b'"kind"', b"shuffled", b"answered_by", b"persona_id"):
        assert word not in data


def test_a_rating_is_on_the_disk_when_it_is_acknowledged(server):
    reply, data = ask(server, "POST", "api/ratings", rating(server), Content_Type="application/json",
                      Origin=f"http://127.0.0.1:{server.port}")  # fmt: skip
    assert (reply.status, json.loads(data)) == (200, {"num_rated": 1})
    (saved,) = load_rater(server.session.run, "anna").ratings.values()
    assert (saved.realism, saved.consistency, saved.guess, saved.seconds) == (4, 3, "synthetic", 2.5)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_hosts_name_gets_nothing(server, host):
    reply, data = ask(server, "GET", "api/session", Host=host.format(port=server.port))
    assert reply.status == 403
    assert b"entries" not in data
    reply, _ = ask(server, "POST", "api/ratings", rating(server), Content_Type="application/json", Host=host)
    assert reply.status == 403
    assert server.session.num_rated == 0


@pytest.mark.parametrize("token", ["x", "%C3%A9", "api"])
def test_without_the_token_there_is_no_page(server, token):
    for name in ("", "page.js", "api/session"):
        assert ask(server, "GET", name, token=token)[0].status == 404
    assert ask(server, "POST", "api/ratings", rating(server), token, Content_Type="application/json")[0].status == 404


@pytest.mark.parametrize("name", ["../session.py", "..%2fsession.py", "server.py", "index.html/..", "api/other"])
def test_nothing_else_is_served(server, name):
    assert ask(server, "GET", name)[0].status == 404


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (None, {"Content_Type": "text/plain"}, 415),
        (None, {"Content_Type": "application/json", "Origin": "http://evil.example"}, 403),
        (None, {"Content_Type": "application/json", "Origin": "null"}, 403),
        ("{", {"Content_Type": "application/json"}, 400),
        ("[]", {"Content_Type": "application/json"}, 400),
        ("null", {"Content_Type": "application/json"}, 400),
        (NO_ENTRY, {"Content_Type": "application/json"}, 400),
        ("x" * 70_000, {"Content_Type": "application/json"}, 413),
    ],
)  # fmt: skip
def test_what_is_no_rating_of_this_page_is_refused_and_leaves_no_trace(server, body, headers, status):
    reply, data = ask(server, "POST", "api/ratings", body or rating(server), **headers)
    assert reply.status == status
    assert json.loads(data)["error"]
    assert not server.session.run.exists("annotations/anna.jsonl")
    assert ask(server, "GET", "api/session")[0].status == 200


def test_a_rating_that_cannot_be_written_is_not_acknowledged(server):
    server.session.run.local_path("annotations/anna.jsonl").mkdir()
    reply, data = ask(server, "POST", "api/ratings", rating(server), Content_Type="application/json")
    assert reply.status == 507
    assert "cannot be written" in json.loads(data)["error"]
    assert server.session.num_rated == 0


def test_a_taken_port_is_named(server):
    with pytest.raises(PolypersonaError, match=f"port {server.port} cannot be used"):
        AnnotationServer(server.session, server.port)


def test_a_silent_client_keeps_nobody_waiting(server):
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.send(b"GET /")
        assert ask(server, "GET", "api/session")[0].status == 200
