"""Docker registries (the Registry v2 interface): lists, manifests and configurations. No image is pulled or run."""

import base64
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, cast

import aiohttp
from yarl import URL

from services.storage.core import registry as r
from shared.errors import NotFound, WherryError
from shared.outbound import BlockedAddressError, Outward, WayOut

TIMEOUT_S = 20.0
ANSWER_BYTES_MAX = 8 * 1024 * 1024
_PAGE, _PAGES_MAX = 500, 1000
_REDIRECTS_MAX = 5
_OURS = {"User-Agent": "wherry", "Accept-Encoding": "identity"}
_HOPS = frozenset({301, 302, 303, 307, 308})


class Registry(Outward):
    """Asks registries. Use as ``async with Registry(…) as registry:``.

    Args:
        plain: ``host:port`` of registries that are asked by http, whatever their address.
        logins: ``user:password`` by host.
    """

    def __init__(self, plain: frozenset[str], logins: Mapping[str, str]) -> None:
        super().__init__(WayOut(plain, aiohttp.ClientTimeout(total=TIMEOUT_S)))
        self._plain = plain
        self._logins = logins
        self._tokens: dict[tuple[str, str], str] = {}

    async def repositories(self, host: str) -> AsyncIterator[str]:
        """Give the names of all repositories.

        Raises:
            WherryError: ``registry_failed``: it does not answer, does not list them, or gives no sense;
                ``registry_refused``: it may not be asked.
        """
        async with aclosing(
            self._listed(host, f"/v2/_catalog?n={_PAGE}", "registry:catalog:*", "repositories")
        ) as pages:
            async for page in pages:
                for name in page:
                    yield name

    async def tags(self, host: str, repository: str) -> list[str]:
        """Return a repository's tags.

        Raises:
            WherryError: as `repositories`.
        """
        path, scope = f"/v2/{repository}/tags/list?n={_PAGE}", f"repository:{repository}:pull"
        async with aclosing(self._listed(host, path, scope, "tags")) as pages:
            return [tag async for page in pages for tag in page]

    async def image(self, reference: r.Reference) -> r.ImageFacts:
        """Return what an image says of itself. Its digest is that of what the reference names, an index too.

        Raises:
            NotFound: there is no such image.
            WherryError: ``registry_failed``: it does not answer, or not as it should.
        """
        manifest, digest = await self._manifest(reference, reference.what)
        if "manifests" in manifest:
            inner = r.chosen_manifest(manifest)
            if inner is None:
                raise _failed(reference.host, f"{reference.repository} is an index without an image")
            manifest, _ = await self._manifest(reference, inner)
        config = r.config_of(manifest)
        if config is None:
            raise _failed(reference.host, f"{reference.repository} has a manifest without a configuration")
        scope = f"repository:{reference.repository}:pull"
        path = f"/v2/{reference.repository}/blobs/{config[0]}"
        body, _ = await self._get(reference.api_host, path, scope)
        _check_digest(reference.host, body, config[0])
        return r.ImageFacts(digest, config[1], r.labels_of(_json(body, reference.host)))

    async def _listed(self, host: str, first: str, scope: str, what: str) -> AsyncGenerator[list[str], None]:
        """Give the texts of a list, page by page."""
        path: str | None = first
        for _ in range(_PAGES_MAX):
            body, headers = await self._get(host, path, scope)
            listed = _json(body, host).get(what)
            yield [one for one in cast("list[Any]", listed) if isinstance(one, str)] if isinstance(listed, list) else []
            path = r.next_page(headers.get("Link"))
            if path is None:
                return
        raise _failed(host, f"its list of {what} does not end")

    async def _manifest(self, reference: r.Reference, what: str) -> tuple[dict[str, Any], str]:
        path, scope = f"/v2/{reference.repository}/manifests/{what}", f"repository:{reference.repository}:pull"
        body, _ = await self._get(reference.api_host, path, scope, accept=", ".join((*r.MANIFESTS, *r.INDEXES)))
        if what.startswith("sha256:"):
            _check_digest(reference.host, body, what)
        return _json(body, reference.host), f"sha256:{hashlib.sha256(body).hexdigest()}"

    async def _get(
        self, host: str, path: str, scope: str, *, accept: str = "application/json"
    ) -> tuple[bytes, Mapping[str, str]]:
        scheme = "http" if host in self._plain else "https"
        try:
            root = URL(f"{scheme}://{host}")
            url = root.join(URL(path, encoded=True))
        except ValueError:
            raise _failed(host, "it names an address that is none") from None
        if url.host != root.host:
            raise _failed(host, "it leads to another host")
        headers = {"Accept": accept, **_OURS}
        key = (host, scope)
        for is_second in (False, True):
            known = self._tokens.get(key)
            answer = await self._call(host, url, headers | ({"Authorization": known} if known else {}))
            if answer.status == 401 and not is_second and (header := answer.headers.get("WWW-Authenticate")):
                self._tokens[key] = await self._authorized(host, header, scope)
                continue
            return answer.body, answer.checked(host, url.path).headers
        raise RuntimeError("unreachable")

    async def _authorized(self, host: str, header: str, scope: str) -> str:
        """Return what a registry wants to see, by the way that it names."""
        login = self._logins.get(host)
        basic = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
        scheme, named = r.challenge(header)
        if scheme == "basic" and basic:
            return basic
        if scheme != "bearer" or "realm" not in named:
            raise _failed(host, "it wants a login: give one with WHERRY_REGISTRY_LOGINS")
        try:
            realm = URL(named["realm"]).update_query(
                {"scope": named.get("scope", scope), "service": named.get("service", "")}
            )
        except ValueError:
            raise _failed(host, "it names an address for tokens that is none") from None
        # The password goes where this registry's operator has said; never to whom an answer names in plain http.
        may_know = basic is not None and (realm.scheme == "https" or realm.host == URL(f"http://{host}").host)
        answer = await self._call(host, realm, _OURS | ({"Authorization": basic} if basic and may_know else {}))
        answer.checked(host, realm.path)
        said = _json(answer.body, host)
        token = said.get("token") or said.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise _failed(host, "its token service gives no token")
        return f"Bearer {token}"

    async def _call(self, host: str, url: URL, headers: dict[str, str]) -> "_Answer":
        try:
            for _ in range(_REDIRECTS_MAX + 1):
                if why := self._way.refusal(str(url)):
                    raise _refused(host, why)
                async with self._way.session(url).get(url, headers=headers, allow_redirects=False) as answer:
                    place = answer.headers.get("Location")
                    if answer.status not in _HOPS or not place:
                        return _Answer(answer.status, await _body(answer, host), dict(answer.headers))
                    target = url.join(URL(place))
                    if target.host != url.host:  # whoever stores the bytes needs no login of ours
                        headers = {name: value for name, value in headers.items() if name != "Authorization"}
                    url = target
        except aiohttp.ClientConnectorError as error:
            blocked: Any = error.os_error
            if isinstance(blocked, BlockedAddressError):
                raise _refused(host, str(blocked)) from None
            raise _failed(host, f"it cannot be reached: {error.strerror or 'no connection'}") from None
        except TimeoutError:
            raise _failed(host, f"it gave no answer in {TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _failed(host, f"the connection broke ({type(error).__name__})") from None
        except ValueError:
            raise _failed(host, "its answer cannot be understood") from None
        raise _failed(host, "it leads on and on")


class _Answer:
    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    def checked(self, host: str, path: str) -> "_Answer":
        if self.status == 200:
            return self
        if self.status == 404:
            raise NotFound(f"Registry {host} has nothing at {path}.")
        if self.status in (401, 403):
            raise _failed(host, f"it refuses {path} ({self.status}): give a login with WHERRY_REGISTRY_LOGINS")
        if self.status == 429 or self.status >= 500:
            raise _failed(host, f"it answers {self.status}; try again later")
        raise _failed(host, f"it answers {self.status} to {path}")


async def _body(answer: aiohttp.ClientResponse, host: str) -> bytes:
    held = bytearray()
    async for piece in answer.content.iter_chunked(64 * 1024):
        held += piece
        if len(held) > ANSWER_BYTES_MAX:
            raise _failed(host, f"an answer has more than {ANSWER_BYTES_MAX} bytes")
    return bytes(held)


def _json(body: bytes, host: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _failed(host, "it answers with something else than JSON, which no registry does")
    return cast("dict[str, Any]", found)


def _check_digest(host: str, body: bytes, digest: str) -> None:
    if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
        raise _failed(host, f"what it gives for {digest} is something else")


def _refused(host: str, why: str) -> WherryError:
    message = f"Registry {host} may not be asked: {why}. An operator may allow it (WHERRY_REGISTRIES)."
    return WherryError("registry_refused", message)


def _failed(host: str, why: str) -> WherryError:
    return WherryError("registry_failed", f"Registry {host} could not be read: {why}.")
