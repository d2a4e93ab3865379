"""The sandbox as a server: its log and gate, its control door, bad clients, and a clean end."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import stripe

import customer_jobs
from customer_jobs.sandbox import Sandbox, journal
from tests.unit.sandbox_client import create, customers

AUTHORIZED = {"Authorization": "Bearer sk_test_shop_0123456789"}
FORM = {**AUTHORIZED, "Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] = FORM
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    status, document = answer.status, json.loads(answer.read())
    connection.close()
    return status, document


def control(sandbox: Sandbox, method: str, door: str, /, **arguments: Any) -> tuple[int, Any]:
    body = json.dumps(arguments).encode() if arguments else None
    return ask(sandbox.port, method, f"/_sandbox/{door}", body, {"Content-Type": "application/json"})


def raw(sandbox: Sandbox, request: bytes) -> bytes:
    """Everything that comes back until the sandbox closes the connection."""
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


# The log and the gate


def test_the_log_tells_all_about_a_request(sandbox: Sandbox) -> None:
    created = create(sandbox, "one", email="jenny@example.com", metadata={"k": "v"})

    [request] = sandbox.requests

    assert (request.number, request.method, request.path, request.endpoint) == (1, "POST", "/v1/customers", "create")
    assert request.params == {"email": "jenny@example.com", "metadata": {"k": "v"}}
    assert (request.account, request.mode, request.stripe_account) == ("acct_shop", "test", None)
    assert (request.status, request.idempotency_key, request.replayed) == (200, "one", False)
    assert request.request_id == created.last_response.request_id
    assert request.stripe_version == created.last_response.headers["Stripe-Version"]
    assert request.finished_at is not None
    assert time.time() - 5 < request.arrived_at <= request.finished_at <= time.time()


def test_a_held_request_is_in_mid_air_until_released(sandbox: Sandbox) -> None:
    sandbox.hold(lambda request: request.idempotency_key == "held")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(create, sandbox, "held")
        sandbox.wait_until_held()
        passed = create(sandbox, "passed")
        under_way = [request.idempotency_key for request in sandbox.requests if request.finished_at is None]
        before = [customer["id"] for customer in sandbox.customers()]

        sandbox.release()

        assert held.result().object == "customer"
    assert under_way == ["held"]
    assert before == [passed.id]


def test_a_request_can_be_held_after_the_deed(sandbox: Sandbox) -> None:
    sandbox.hold(after=True)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(create, sandbox, "one")
        sandbox.wait_until_held()
        [customer] = sandbox.customers()
        sandbox.release()

        assert held.result().id == customer["id"]


def test_a_request_can_be_awaited(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(1) as pool:
        awaited = pool.submit(sandbox.wait_until_request, lambda request: request.status == 200, 5.0, 2)
        create(sandbox, "one")
        create(sandbox, "two")

        assert awaited.result().idempotency_key == "two"
    assert sandbox.wait_until_request(lambda request: request.idempotency_key == "one").number == 1
    with pytest.raises(TimeoutError, match="0 of 1"):
        sandbox.wait_until_request(lambda request: request.status == 500, timeout_seconds=0.01)
    with pytest.raises(TimeoutError, match="0 of 1"):
        sandbox.wait_until_held(timeout_seconds=0.01)


def test_latency_delays_the_answer(sandbox: Sandbox) -> None:
    sandbox.set_latency((0.05, 0.06))
    began = time.monotonic()

    customers(sandbox).create()

    assert time.monotonic() - began >= 0.05
    with pytest.raises(ValueError, match="latency must be"):
        sandbox.set_latency(-1)


def test_clearing_forgets_everything_but_the_rules(sandbox: Sandbox) -> None:
    first = create(sandbox, "one")
    sandbox.faults.add("500", path="/v1/nowhere")

    sandbox.clear()

    assert (sandbox.customers(), sandbox.requests, len(sandbox.faults.rules())) == ([], [], 1)
    assert create(sandbox, "one").id != first.id


def test_the_log_is_bounded_and_forgets_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_REQUESTS", 3)
    with Sandbox() as sandbox:
        for number in range(5):
            create(sandbox, str(number))

        assert [request.number for request in sandbox.requests] == [3, 4, 5]
        assert [request.number for request in sandbox.requests_since(1)] == [3, 4, 5]
        assert [request.number for request in sandbox.requests_since(4)] == [5]
        assert sandbox.requests_since(9) == []


# The control door


def test_another_process_can_read_the_log_and_the_customers(sandbox: Sandbox) -> None:
    created = create(sandbox, "one", email="jenny@example.com")
    create(sandbox, "two")

    status, requests = control(sandbox, "GET", "requests")
    _, later = control(sandbox, "GET", "requests?since=1")
    _, found = control(sandbox, "GET", "customers?account=acct_shop&mode=test")

    assert status == 200
    assert [request["idempotency_key"] for request in requests] == ["one", "two"]
    assert [request["number"] for request in later] == [2]
    assert [customer["id"] for customer in found].index(created.id) == 0
    assert control(sandbox, "GET", "customers?mode=live")[1] == []


def test_another_process_can_script_faults(sandbox: Sandbox) -> None:
    status, rule = control(sandbox, "POST", "faults", fault="503", method="POST", path="/v1/customers", times=2)

    with pytest.raises(stripe.APIError):
        customers(sandbox).create()

    assert (status, rule["fault"], rule["times"]) == (200, "503", 2)
    assert [one["times"] for one in control(sandbox, "GET", "faults")[1]] == [1]
    assert control(sandbox, "DELETE", "faults")[0] == 200
    assert customers(sandbox).create().object == "customer"


def test_another_process_can_change_limits_latency_and_gate(sandbox: Sandbox) -> None:
    assert control(sandbox, "POST", "limits", rate=10, bucket_seconds=0.5)[1]["rate"] == 10
    assert control(sandbox, "POST", "limits", rate=None)[1] == {
        "rate": None,
        "account_rate": None,
        "bucket_seconds": 0.5,
        "concurrency": None,
        "account_concurrency": None,
    }
    assert control(sandbox, "POST", "latency", seconds=[0.001, 0.002])[0] == 200
    assert control(sandbox, "POST", "hold")[1] == {"held": True}
    assert control(sandbox, "POST", "release")[1] == {"held": False}
    assert customers(sandbox).create().object == "customer"
    assert control(sandbox, "POST", "clear")[0] == 200
    assert control(sandbox, "GET", "health")[1]["status"] == "ok"
    assert sandbox.customers() == []


def test_another_process_can_configure_webhooks_without_reading_secrets(sandbox: Sandbox) -> None:
    url = "http://127.0.0.1:1/hooks"

    _, one = control(sandbox, "POST", "webhooks", url=url, secret="whsec_1", types=["customer.created"], max_attempts=1)
    sent = control(sandbox, "POST", "events", type="customer.created", object={"id": "cus_1"})[1]
    sandbox.webhooks.wait_until_idle(5)
    _, none = control(sandbox, "POST", "webhooks", endpoints=[])

    assert [(endpoint["url"], endpoint["secret"]) for endpoint in one] == [(url, "whsec_****")]
    assert [delivery["event_id"] for delivery in control(sandbox, "GET", "deliveries")[1]] == [sent["id"]]
    assert none == []


def test_a_customer_comes_with_an_id_of_ones_choice_by_the_control_door(sandbox: Sandbox) -> None:
    status, added = control(sandbox, "POST", "customers", id="cus_ABC123XYZ456", account="acct_shop", name="Jenny")

    assert (status, added["id"], added["name"]) == (200, "cus_ABC123XYZ456", "Jenny")
    assert customers(sandbox).retrieve("cus_ABC123XYZ456").to_dict() == added
    assert control(sandbox, "POST", "customers", id="cus_ABC123XYZ456", account="acct_shop")[0] == 400


@pytest.mark.parametrize(
    ("method", "door", "arguments", "status"),
    [
        ("GET", "nowhere", {}, 404),
        ("PUT", "faults", {}, 405),
        ("POST", "faults", {"fault": "frobnicate"}, 400),
        ("POST", "faults", {"fault": "500", "colour": "red"}, 400),
        ("POST", "limits", {"speed": 1}, 400),
        ("POST", "latency", {}, 400),
        ("GET", "requests?since=yesterday", {}, 400),
    ],
)
def test_a_wrong_control_call_is_told_so(
    sandbox: Sandbox, method: str, door: str, arguments: dict[str, Any], status: int
) -> None:
    answered, document = control(sandbox, method, door, **arguments)

    assert answered == status
    assert document["error"]["message"]


# Bad clients


@pytest.mark.parametrize("path", ["/v1/customers/", "/v1/foo", "/", "/v1/customers/cus_1/sources"])
def test_an_unknown_path_is_answered_as_stripe_does(sandbox: Sandbox, path: str) -> None:
    status, document = ask(sandbox.port, "GET", path)

    assert status == 404
    assert document["error"]["message"].startswith(f"Unrecognized request URL (GET: {path}).")
    assert ("remove the trailing slash" in document["error"]["message"]) == (path == "/v1/customers/")


@pytest.mark.parametrize(
    "body", [b"email=%zz", b"email=%ff", b"a[b=1", b"[a]=1", b"address=1&address[line1]=2", b"x" * 10, b"\xff=1"]
)
def test_a_malformed_form_is_a_400(sandbox: Sandbox, body: bytes) -> None:
    status, document = ask(sandbox.port, "POST", "/v1/customers", body)

    assert status == 400
    assert document["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_not_a_form_is_a_400(sandbox: Sandbox) -> None:
    status, _ = ask(sandbox.port, "POST", "/v1/customers", b"{}", {**AUTHORIZED, "Content-Type": "application/json"})

    assert status == 400


def test_too_many_parameters_and_too_deep_ones_are_a_400(sandbox: Sandbox) -> None:
    many = urlencode({f"metadata[{number}]": "x" for number in range(2000)}).encode()
    deep = b"metadata" + b"[a]" * 50 + b"=1"

    assert ask(sandbox.port, "POST", "/v1/customers", many)[0] == 400
    assert ask(sandbox.port, "POST", "/v1/customers", deep)[0] == 400


def test_a_huge_body_is_a_413(sandbox: Sandbox) -> None:
    status, document = ask(sandbox.port, "POST", "/v1/customers", b"x" * ((1 << 20) + 1))

    assert status == 413
    assert "larger than" in document["error"]["message"]


def test_a_chunked_body_is_read(sandbox: Sandbox) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=5)
    connection.request("POST", "/v1/customers", iter([b"email=jenny%40", b"example.com"]), FORM, encode_chunked=True)
    answer = json.loads(connection.getresponse().read())
    connection.close()

    assert answer["email"] == "jenny@example.com"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /v1/customers HTTP/9.9\r\n\r\n", b"505"),
        (b"BREW /v1/customers HTTP/1.1\r\n\r\n", b"501"),
        (b"POST /v1/customers HTTP/1.1\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"POST /v1/customers HTTP/1.1\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n", b"413"),
        (b"POST /v1/customers HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST /v1/customers HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", b"413"),
        (b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET http://[::bad HTTP/1.1\r\n\r\n", b"401"),
        (b"GET /%ff%00 HTTP/1.1\r\nAuthorization: Bearer sk_test_shop\r\nConnection: close\r\n\r\n", b"404"),
    ],
)
def test_a_malformed_request_is_answered_and_the_server_lives(sandbox: Sandbox, request_: bytes, status: bytes) -> None:
    answer = raw(sandbox, request_)

    assert answer.split(b" ")[1] == status
    assert customers(sandbox).create().object == "customer"


def test_a_client_that_hangs_up_in_the_middle_does_no_harm(sandbox: Sandbox) -> None:
    assert raw(sandbox, b"POST /v1/customers HTTP/1.1\r\nContent-Length: 100\r\n\r\nemail=") == b""
    assert raw(sandbox, b"") == b""

    assert customers(sandbox).create().object == "customer"
    assert len(sandbox.customers()) == 1


def test_one_connection_carries_many_requests(sandbox: Sandbox) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=5)
    sockets = set()
    for _ in range(20):
        connection.request("POST", "/v1/customers", b"", FORM)
        connection.getresponse().read()
        sockets.add(id(connection.sock))
    connection.close()

    assert len(sockets) == 1
    assert len(sandbox.customers()) == 20


# A clean end


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_stopping_leaves_no_thread_and_no_socket() -> None:
    threads, files = threading.active_count(), open_files()
    sandbox = Sandbox().start()
    sandbox.hold()
    idle = socket.create_connection(("127.0.0.1", sandbox.port))
    held = http.client.HTTPConnection("127.0.0.1", sandbox.port)
    held.request("POST", "/v1/customers", b"", FORM)
    sandbox.wait_until_held()

    sandbox.stop()

    assert threading.active_count() == threads
    assert idle.recv(1) == b""
    with pytest.raises((http.client.HTTPException, OSError)):
        held.getresponse()
    idle.close()
    held.close()
    assert open_files() == files


def test_a_taken_port_is_an_error_and_a_sandbox_starts_once() -> None:
    with Sandbox() as sandbox:
        with pytest.raises(OSError, match="in use"):
            Sandbox(sandbox.port).start()
        with pytest.raises(RuntimeError, match="already"):
            sandbox.start()
    with pytest.raises(RuntimeError, match="not been started"):
        _ = Sandbox().url


SERVE = "from customer_jobs.sandbox import serve; serve(0, on_ready=lambda sandbox: print(sandbox.url, flush=True))"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sandbox_of_its_own_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-W", "error", "-c", SERVE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        status, _ = ask(int(url.rpartition(":")[2]), "POST", "/v1/customers", b"")
        process.send_signal(number)
        rest = process.stdout.read()

    assert (status, rest, process.returncode) == (200, "", 0)


def test_the_sandbox_needs_nothing_but_the_standard_library() -> None:
    # The package around it may import more; here it is only a place to look in.
    program = (
        "import sys, types\n"
        "package = sys.modules['customer_jobs'] = types.ModuleType('customer_jobs')\n"
        f"package.__path__ = [{str(Path(customer_jobs.__file__).parent)!r}]\n"
        "import customer_jobs.sandbox\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)\n"
    )

    loaded = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)

    assert set(loaded.stdout.split()) <= {"customer_jobs", "__main__"}
