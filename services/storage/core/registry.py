"""What a Docker registry says of an image, understood: references, manifests, and the labels that describe a model."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from shared.catalogue import SCHEMA_BYTES_MAX
from shared.errors import FieldProblem, WherryError

#: Docker's own registry, which nobody names.
HUB, HUB_HOST = "docker.io", "registry-1.docker.io"
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
#: Our labels, and what else says the same.
LABEL_NAME, LABEL_DESCRIPTION, LABEL_PARAMS = (
    "io.wherry.model.name",
    "io.wherry.model.description",
    "io.wherry.model.params",
)
_DESCRIPTIONS = (LABEL_DESCRIPTION, "org.opencontainers.image.description")
_COG = ("run.cog.openapi_schema", "org.cogmodel.openapi_schema")
DESCRIPTION_CHARS_MAX = 10_000
_REPOSITORY = re.compile(r"^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$")
_TAG = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
_HOST = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?$")
_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,127}$")
_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*rel="?next"?')
_SCHEMAS = "#/components/schemas/"
#: No layer has as many bytes: databases keep whole numbers of 64 bits.
_LAYER_BYTES_MAX = 2**50


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is: `what` is a tag or a digest."""

    host: str
    repository: str
    what: str

    @property
    def api_host(self) -> str:
        """Return the host that is called."""
        return HUB_HOST if self.host == HUB else self.host

    def pinned(self, digest: str) -> str:
        """Return the image as an engine takes it, by its digest."""
        return f"{self.host}/{self.repository}@{digest}"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image says of itself. `size` is that of its layers, compressed."""

    digest: str
    size: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Described:
    """A model, as the labels of its image describe it. `remarks` say what could not be understood."""

    name: str | None
    description: str
    params: dict[str, Any] | None
    remarks: tuple[str, ...]


def parse(text: str) -> Reference:
    """Return what ``[host[:port]/]repository[:tag][@digest]`` names, as Docker reads it.

    Raises:
        WherryError: ``invalid``.
    """
    name, _, digest = text.partition("@")
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, path = first, rest
    else:
        host, path = HUB, name
    repository, colon, tag = path.rpartition(":")
    if not colon:
        repository, tag = path, "latest"
    if host == HUB and "/" not in repository:
        repository = f"library/{repository}"
    what = digest or tag
    good = _DIGEST.match(what) if digest else _TAG.match(what)
    if not (_HOST.match(host) and _REPOSITORY.match(repository) and good):
        problem = FieldProblem(field="image", message="Give [host/]repository[:tag] or [host/]repository@sha256:…")
        raise WherryError("invalid", f"{text!r} is no reference of an image.", fields=(problem,))
    return Reference(host, repository, what)


def check_host(text: str) -> str:
    """Return a registry's ``host[:port]``.

    Raises:
        WherryError: ``invalid``.
    """
    if not _HOST.match(text):
        problem = FieldProblem(field="registry", message="Give host:port, without a scheme or a path")
        raise WherryError("invalid", f"{text!r} is no registry.", fields=(problem,))
    return text


def chosen_manifest(index: Mapping[str, Any]) -> str | None:
    """Return the digest of the image for Linux on amd64 of an index, else of any other than an attestation."""
    found = [one for one in _dicts(index.get("manifests")) if _DIGEST.match(str(one.get("digest")))]

    def rank(one: Mapping[str, Any]) -> tuple[bool, bool]:
        platform = one.get("platform")
        given = cast("Mapping[str, Any]", platform) if isinstance(platform, dict) else {}
        return given.get("os") != "linux", given.get("architecture") != "amd64"

    images = [one for one in found if "vnd.docker.reference.type" not in str(one.get("annotations"))]
    best = min(images, key=rank, default=None)
    return None if best is None else str(best["digest"])


def config_of(manifest: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the digest of an image's configuration and the bytes of its layers, or None if it is no such manifest."""
    config = manifest.get("config")
    digest = str(cast("Mapping[str, Any]", config).get("digest")) if isinstance(config, dict) else ""
    if not _DIGEST.match(digest):
        return None
    sizes = [one.get("size") for one in _dicts(manifest.get("layers"))]
    return digest, sum(size for size in sizes if isinstance(size, int) and 0 < size < _LAYER_BYTES_MAX)


def labels_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels in an image's configuration."""
    inner = config.get("config")
    labels = cast("Mapping[str, Any]", inner).get("Labels") if isinstance(inner, dict) else None
    found = cast("Mapping[str, Any]", labels) if isinstance(labels, dict) else {}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def describe(labels: Mapping[str, str]) -> Described:
    """Return the model that *labels* describe: our own, or Cog's schema as it is."""
    name, remarks = labels.get(LABEL_NAME), list[str]()
    if name is not None and not _NAME.match(name):
        remarks.append(f"{LABEL_NAME} is {name[:100]!r}, which is no name: small letters, digits, dots and dashes")
        name = None
    description = next((labels[label] for label in _DESCRIPTIONS if labels.get(label)), "")
    params: dict[str, Any] | None = None
    own, cog = labels.get(LABEL_PARAMS), next((label for label in _COG if label in labels), None)
    try:
        if own is not None:
            params = _object(own, LABEL_PARAMS)
        elif cog is not None:
            params = cog_params(_object(labels[cog], cog))
    except ValueError as error:
        remarks.append(str(error))
    except RecursionError:
        remarks.append(f"{cog} is nested too deeply")
    return Described(name, description[:DESCRIPTION_CHARS_MAX], params, tuple(remarks))


def cog_params(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a Cog model's input, out of its OpenAPI document.

    Raises:
        ValueError: it has none.
    """
    components = document.get("components")
    schemas = cast("Mapping[str, Any]", components).get("schemas") if isinstance(components, dict) else None
    found = cast("Mapping[str, Any]", schemas) if isinstance(schemas, dict) else {}
    wanted = found.get("Input")
    if not isinstance(wanted, dict):
        raise ValueError(f"{_COG[0]} has no components.schemas.Input")  # noqa: TRY004 - what is wrong is the value
    others = {name: schema for name, schema in found.items() if name in _referred(wanted, found)}
    whole = cast("dict[str, Any]", wanted) | ({"$defs": others} if others else {})
    return cast("dict[str, Any]", _moved(whole))


def model_name(repository: str) -> str:
    """Return the name of the model that a repository is, where its image does not say."""
    return repository.removeprefix("library/").replace("/", ".")[:128]


def chosen_tag(tags: Sequence[str], wanted: str) -> str | None:
    """Return *wanted* if it is among *tags*, else the one that sorts last, with numbers as numbers."""
    sound = [tag for tag in tags if _TAG.match(tag)]
    return wanted if wanted in sound else max(sound, key=_by_number, default=None)


def next_page(link: str | None) -> str | None:
    """Return the path of the next page that a Link header names."""
    match = _NEXT.search(link or "")
    return match[1] if match else None


def challenge(header: str) -> tuple[str, dict[str, str]]:
    """Return the scheme (in small letters) and the parameters of a WWW-Authenticate header."""
    scheme, _, rest = header.partition(" ")
    return scheme.lower(), dict(re.findall(r'([a-z_]+)="([^"]*)"', rest))


def _by_number(tag: str) -> list[tuple[bool, int, str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", tag) if part]


def _object(text: str, label: str) -> dict[str, Any]:
    if len(text.encode()) > SCHEMA_BYTES_MAX:
        raise ValueError(f"{label} has more than {SCHEMA_BYTES_MAX} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{label} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{label} is JSON, but no object")  # noqa: TRY004 - what is wrong is the value
    return cast("dict[str, Any]", found)


def _dicts(value: object) -> list[dict[str, Any]]:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [cast("dict[str, Any]", one) for one in items if isinstance(one, dict)]


def _referred(schema: object, known: Mapping[str, Any]) -> set[str]:
    """Return the names of all schemas that *schema* needs, itself or through others."""
    found: set[str] = set()
    left = [schema]
    while left:
        match left.pop():
            case dict() as one:
                fields = cast("dict[str, Any]", one)
                name = str(fields.get("$ref", "")).removeprefix(_SCHEMAS)
                if name in known and name not in found:
                    found.add(name)
                    left.append(known[name])
                left.extend(fields.values())
            case list() as many:
                left.extend(cast("list[Any]", many))
            case _:
                pass
    return found


def _moved(value: object) -> object:
    match value:
        case dict() as one:
            fields = cast("dict[str, Any]", one)
            return {
                name: part.replace(_SCHEMAS, "#/$defs/") if name == "$ref" and isinstance(part, str) else _moved(part)
                for name, part in fields.items()
            }
        case list() as many:
            return [_moved(part) for part in cast("list[Any]", many)]
        case _:
            return value
