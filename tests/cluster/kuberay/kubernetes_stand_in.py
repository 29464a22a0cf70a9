"""A stand-in for the part of the Kubernetes API that Ray's KubeRay provider uses, over HTTPS, in memory.

Reads, lists with label selectors, JSON patches and deletes of the pods and RayClusters of one namespace, with resource
versions. Clients are authenticated by a certificate, which Ray accepts in place of a service account's token.
"""

from __future__ import annotations

import copy
import datetime
import http.server
import json
import re
import ssl
import threading
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cluster.local.seaweed_security import own_certificate

Object = dict[str, Any]

HOST = "127.0.0.1"

_ROUTE = re.compile(r"^/(?:api|apis/ray\.io)/v1/namespaces/([^/]+)/(pods|rayclusters)(?:/([^/]+))?$")


class ApiError(Exception):
    """A request that is refused, as Kubernetes refuses it: a status and a message."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class KubernetesApi:
    """The objects, and the server that shows them. A context manager: the server runs inside the block.

    `changed` is notified of every change; who holds it sees the objects at rest.

    Args:
        folder: where the certificate is put.
        namespace: the only one there is.
    """

    def __init__(self, folder: Path, namespace: str) -> None:
        self.namespace = namespace
        self.changed = threading.Condition()
        self.patches: list[list[Object]] = []
        self._objects: dict[tuple[str, str], Object] = {}
        self._version = 0
        self._certificate, self._key = folder / "api.crt", folder / "api.key"

    def __enter__(self) -> Self:
        _write_certificate(self._certificate, self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        context.load_verify_locations(self._certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = http.server.ThreadingHTTPServer((HOST, 0), _handler_of(self))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which a process finds the server and is known to it: Kubernetes' own, and Ray's for TLS."""
        return {
            "KUBERNETES_SERVICE_HOST": HOST,
            "KUBERNETES_SERVICE_PORT_HTTPS": str(self._server.server_port),
            "RAY_KUBERAY_CA_CERT_PATH": str(self._certificate),
            "RAY_KUBERAY_CLIENT_CERT_PATH": str(self._certificate),
            "RAY_KUBERAY_CLIENT_KEY_PATH": str(self._key),
        }

    def get(self, kind: str, name: str) -> Object:
        """A copy of an object.

        Raises:
            ApiError: there is none.
        """
        with self.changed:
            return copy.deepcopy(self._find(kind, name))

    def list_pods(self, labels: Mapping[str, str], at_least: int = 0) -> Object:
        """Copies of the pods with all of these labels, the oldest first, as a PodList.

        Args:
            labels: names and values.
            at_least: resource version that the list must not be older than.

        Raises:
            ApiError: there has been no such version.
        """
        with self.changed:
            if at_least > self._version:
                raise ApiError(HTTPStatus.GATEWAY_TIMEOUT, f"Too large resource version: {at_least}")
            pods = [each for (kind, _), each in self._objects.items() if kind == "pods"]
            found = [each for each in pods if labels.items() <= each["metadata"]["labels"].items()]
            version = {"resourceVersion": str(self._version)}
            return {"kind": "PodList", "apiVersion": "v1", "metadata": version, "items": copy.deepcopy(found)}

    def create(self, kind: str, new: Object) -> None:
        """Keep a new object, under the name in its metadata."""
        with self.changed:
            self._objects[kind, new["metadata"]["name"]] = new = copy.deepcopy(new)
            self._touch(new)

    def set_status(self, name: str, status: Object) -> None:
        """What a pod has come to."""
        with self.changed:
            pod = self._find("pods", name)
            pod["status"] = copy.deepcopy(status)
            self._touch(pod)

    def patch(self, kind: str, name: str, operations: list[Object]) -> Object:
        """Apply a JSON patch of replacements, all or nothing; a copy of what it comes to.

        As in Kubernetes, a field that is replaced need not have been there, but what it is a field of must have been.

        Raises:
            ApiError: there is no such object, or the patch does not fit it.
        """
        with self.changed:
            found = self._find(kind, name)
            patched = copy.deepcopy(found)
            for operation in operations:
                _replace(patched, operation)
            found.update(patched)
            self.patches.append(operations)
            self._touch(found)
            return copy.deepcopy(found)

    def delete_pod(self, name: str) -> Object:
        """Ask for a pod's end: it is marked, and stays until its processes have ended. A copy of it.

        Raises:
            ApiError: there is none.
        """
        with self.changed:
            pod = self._find("pods", name)
            if "deletionTimestamp" not in pod["metadata"]:
                pod["metadata"]["deletionTimestamp"] = datetime.datetime.now(datetime.UTC).isoformat()
                self._touch(pod)
            return copy.deepcopy(pod)

    def remove_pod(self, name: str) -> None:
        """Forget a pod: it has ended."""
        with self.changed:
            del self._objects["pods", name]
            self._touch({"metadata": {}})

    def _find(self, kind: str, name: str) -> Object:
        if (kind, name) not in self._objects:
            raise ApiError(HTTPStatus.NOT_FOUND, f'{kind} "{name}" not found')
        return self._objects[kind, name]

    def _touch(self, changed: Object) -> None:
        self._version += 1
        changed["metadata"]["resourceVersion"] = str(self._version)
        self.changed.notify_all()


def _replace(document: Object, operation: Object) -> None:
    *parents, last = operation["path"].strip("/").split("/")
    place: Any = document
    try:
        if operation["op"] != "replace":
            raise KeyError(operation["op"])
        for part in parents:
            place = place[int(part) if isinstance(place, list) else part]
        place[int(last) if isinstance(place, list) else last] = operation["value"]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{operation}: {error!r}") from error


def _handler_of(api: KubernetesApi) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(lambda kind, name: api.get(kind, name) if name else self._list(kind))

        def do_PATCH(self) -> None:
            if self.headers["Content-Type"] != "application/json-patch+json":
                return self._send(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"kind": "Status"})
            operations = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(lambda kind, name: api.patch(kind, name, operations))

        def do_DELETE(self) -> None:
            self._answer(lambda kind, name: api.delete_pod(name))

        def _list(self, kind: str) -> Object:
            assert kind == "pods", kind
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            selector = query.get("labelSelector", "")
            labels = dict(part.split("=") for part in selector.split(",") if part)
            return api.list_pods(labels, at_least=int(query.get("resourceVersion", 0)))

        def _answer(self, respond: Any) -> None:
            route = _ROUTE.match(urlsplit(self.path).path)
            try:
                if route is None or route[1] != api.namespace:
                    raise ApiError(HTTPStatus.NOT_FOUND, f"{self.path} not found")
                self._send(HTTPStatus.OK, respond(route[2], route[3]))
            except ApiError as error:
                self._send(error.status, {"kind": "Status", "status": "Failure", "message": str(error)})

        def _send(self, status: HTTPStatus, body: Object) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

    return Handler


def _write_certificate(certificate: Path, key: Path) -> None:
    """One that vouches for itself: it is the server's, its clients', and the authority of both."""
    for path, pem in zip((certificate, key), own_certificate("kubernetes", HOST), strict=True):
        path.write_text(pem)
