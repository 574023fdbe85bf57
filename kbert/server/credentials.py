"""Certificates and API keys, which are read again when their files change."""

import hashlib
import hmac
import logging
import os
import pathlib
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from kbert.errors import UserError

log: logging.Logger = logging.getLogger("kbert.serve")
_T = TypeVar("_T")


class WatchedFiles(Generic[_T]):
    """A value that is read from files, and read again when one of them changes.

    If the new files cannot be read, the error is logged and the previous value stays.

    Args:
        paths: the files. read: function that returns the value; raises UserError.

    Raises:
        UserError: the files cannot be read.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], _T]) -> None:
        self._paths, self._read, self._lock = paths, read, threading.Lock()
        self._stamps = self._look()
        self._value = read()

    def current(self) -> _T:
        """Returns the value for the files as they are now; gRPC calls it in its own threads."""
        with self._lock:
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._value = self._read()
                    log.info("read %s again", ", ".join(self._paths))
                except UserError as error:
                    log.error("%s The previous contents stay in use.", error)
        return self._value

    def _look(self):
        return [self._stamp(path) for path in self._paths]

    @staticmethod
    def _stamp(path):
        try:
            status = os.stat(path)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


class Certificates:
    """The certificates of a server with TLS.

    Args:
        key, chain: PEM files of the private key and of the server certificate.
        client_ca: PEM file of the CAs that must have signed the clients' certificates; or None.

    Raises:
        UserError: a file cannot be read or is not valid.
    """

    def __init__(self, key: str, chain: str, client_ca: str | None = None) -> None:
        self._files = {"ssl_key": key, "ssl_certificate": chain, "ssl_client_ca": client_ca}
        self._files = {flag: path for flag, path in self._files.items() if path}
        self.needs_client: bool = client_ca is not None
        self._watched = WatchedFiles([*self._files.values()], self._read)

    def pem(self) -> tuple[bytes, bytes, bytes | None]:
        """Returns the current contents of the files, (key, chain, client_ca)."""
        return self._watched.current()[0]

    def context(self) -> ssl.SSLContext:
        """Returns an SSLContext that uses the current files for each new connection."""
        context = self._watched.current()[1]
        context.sni_callback = self._use_current
        return context

    def _use_current(self, connection, name, context):
        connection.context = self._watched.current()[1]

    def _read(self):
        contents = []
        for flag in ("ssl_key", "ssl_certificate", "ssl_client_ca"):
            path = self._files.get(flag)
            contents.append(path and _contents(flag, path))
        key, chain, client_ca = self._files["ssl_key"], self._files["ssl_certificate"], contents[2]
        try:
            context = ssl.create_default_context(
                ssl.Purpose.CLIENT_AUTH, cadata=client_ca and client_ca.decode("ascii")
            )
            # With an empty password, an encrypted key does not prompt on the terminal.
            context.load_cert_chain(chain, key, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise UserError(
                f"--ssl_certificate, --ssl_key and --ssl_client_ca must be PEM files without a "
                f"password, and the key must match the certificate: {error}."
            ) from error
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
        return tuple(contents), context


class ApiKeys:
    """The API keys in a file, one per line; clients must send one of them.

    Args:
        path: file of keys; empty lines are ignored.

    Raises:
        UserError: the file cannot be read or has no key.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._digests = WatchedFiles([path], self._read)

    def accept(self, headers: Mapping[str, str | bytes]) -> bool:
        """Whether headers have a valid key: `x-api-key: KEY` or `authorization: Bearer KEY`.

        All comparisons take the same time.
        """
        scheme, _, token = str(headers.get("authorization", "")).partition(" ")
        key = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        digest = _digest(str(key).encode("utf-8", "surrogateescape"))
        return any([hmac.compare_digest(digest, known) for known in self._digests.current()])

    def _read(self):
        keys = [line.strip() for line in _contents("api_key_file", self._path).splitlines()]
        if not any(keys):
            raise UserError(f"--api_key_file: {self._path} has no key; write one key per line.")
        if short := [number for number, key in enumerate(keys, 1) if key and len(key) < 16]:
            raise UserError(
                f"--api_key_file: the key in line {short[0]} of {self._path} has fewer than 16 "
                f"characters. Make one with: openssl rand -hex 32"
            )
        return [_digest(key) for key in keys if key]


def _digest(key):
    return hashlib.sha256(key).digest()


def _contents(flag, path):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--{flag}: cannot read {path}: {error.strerror}.") from error
