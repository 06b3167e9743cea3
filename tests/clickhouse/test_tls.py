"""TLS to a server: whom the client trusts, and the certificate that it shows."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.errors import ClickHouseError
from tests.harness.http_server import SECRET, USERS, Running, running, settings_of_server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, and certificates of the first for a server and a client."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "other-ca"):
        openssl(
            *("req", "-x509", *key, "-subj", f"/CN={authority}"),
            *("-addext", "keyUsage=critical,keyCertSign", "-days", "2"),
            *("-keyout", f"{authority}.key", "-out", f"{authority}.pem"),
        )
    for name, extension in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "")):
        openssl(
            *("req", "-x509", *key, "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt"),
            *(("-addext", extension) if extension else ()),
            *("-addext", "basicConstraints=critical,CA:false"),
        )
        pem = (folder / f"{name}.crt").read_text() + (folder / f"{name}.key").read_text()
        (folder / f"{name}.pem").write_text(pem)
    return folder


@pytest.fixture(scope="module")
def tls_server(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(
        tmp_path_factory.mktemp("tls"), *USERS, "--certificate", str(certificates / "server.pem")
    ) as server:
        yield server


@pytest.fixture(scope="module")
def strict_server(
    certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A server that demands a client certificate."""
    with running(
        tmp_path_factory.mktemp("strict"),
        *(*USERS, "--certificate", str(certificates / "server.pem")),
        *("--client-ca", str(certificates / "ca.pem")),
    ) as server:
        yield server


def one_over_tls(folder: Path, port: int, **values: Path | str) -> object:
    """Ask a server that speaks TLS for the number 1."""
    settings = settings_of_server(
        folder,
        port,
        CLICKHOUSE_ENDPOINT=f"https://127.0.0.1:{port}",
        CLICKHOUSE_DATABASE="default",
        **{f"CLICKHOUSE_{name}": str(value) for name, value in values.items()},
    )
    with connect(settings) as database:
        return database.value("SELECT 1")


def test_a_server_of_the_named_authority_is_trusted(
    tmp_path: Path, tls_server: Running, certificates: Path
) -> None:
    assert one_over_tls(tmp_path, tls_server.port, CA_CERT=certificates / "ca.pem") == 1


@pytest.mark.parametrize("authority", ["other-ca.pem", ""], ids=["another", "the usual ones"])
def test_a_server_of_another_authority_is_refused_at_once(
    tmp_path: Path, tls_server: Running, certificates: Path, waits: list[float], authority: str
) -> None:
    ca_cert = certificates / authority if authority else ""
    with pytest.raises(
        ClickHouseError,
        match=r"^ClickHouse: no TLS connection: .*certificate verify failed.*; see CLICKHOUSE_CA_C",
    ) as caught:
        one_over_tls(tmp_path, tls_server.port, CA_CERT=ca_cert)
    assert "\n" not in str(caught.value)
    assert waits == []


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_without_verification_any_server_is_taken(tmp_path: Path, tls_server: Running) -> None:
    assert one_over_tls(tmp_path, tls_server.port, VERIFY="false") == 1


CLIENT_FILES = {"CLIENT_CERT": "crt", "CLIENT_KEY": "key"}


@pytest.mark.parametrize("password", [SECRET, ""], ids=["beside a password", "alone"])
def test_a_client_certificate_is_shown(
    tmp_path: Path, strict_server: Running, certificates: Path, password: str
) -> None:
    options = {name: certificates / f"client.{end}" for name, end in CLIENT_FILES.items()}
    ca_cert = certificates / "ca.pem"
    port = strict_server.port
    assert one_over_tls(tmp_path, port, PASSWORD=password, CA_CERT=ca_cert, **options) == 1


def test_without_the_client_certificate_that_is_demanded_the_error_names_it(
    tmp_path: Path, strict_server: Running, certificates: Path, waits: list[float]
) -> None:
    # TLS 1.3 asks for it after the client's handshake, so that the server's alert can be lost when
    # it closes; what to do is said in either case.
    repair = "; see CLICKHOUSE_CA_CERT, CLICKHOUSE_CLIENT_CERT and CLICKHOUSE_CLIENT_KEY$"
    with pytest.raises(
        ClickHouseError,
        match=rf"^ClickHouse: no TLS connection: .*(CERTIFICATE_REQUIRED|EOF).*{repair}",
    ):
        one_over_tls(tmp_path, strict_server.port, CA_CERT=certificates / "ca.pem")
    assert waits == []
