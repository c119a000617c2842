"""What the gateway can be told by ``WHERRY_…`` variables."""

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from shared.guard import places
from shared.settings import ServiceSettings
from shared.spec import ImageRef


class GatewaySettings(ServiceSettings):
    """Address, identity and limits. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    #: Hex of at least 32 bytes, the same for every gateway: job ids under an Idempotency-Key are made with it.
    gateway_key: SecretStr = SecretStr("")
    gateway_id: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,64}$")  # made up at start when empty
    gateway_metrics_port: int | None = None
    system_name: str = "wherry"
    #: Addresses of proxies whose X-Forwarded-For is believed, separated by commas; none: nobody's.
    trusted_proxies: str = ""
    access_log: bool = True

    token_cache_s: float = Field(default=60.0, gt=0, le=60)  # a revocation that was missed lives this long at most
    token_cache_max: int = Field(default=20_000, gt=0)
    spec_bytes_max: int = Field(default=512 * 1024, gt=0)
    batch_bytes_max: int = Field(default=16 * 1024 * 1024, gt=0)
    batch_jobs_max: int = Field(default=1000, gt=0, le=1000)
    items_bytes_max: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)  # of all items of a map job, as JSON
    form_bytes_max: int = Field(default=64 * 1024, gt=0)
    uploads_max: int = Field(default=64, gt=0)  # at once; each holds a chunk or two, and all share two windows of them
    upload_bytes_max: int = Field(default=512 * 1024**3, gt=0)  # of one upload that resumes (tus)
    downloads_max: int = Field(default=12, gt=0)
    transfer_wait_s: float = Field(default=30.0, ge=0)  # for one of those places, before 503
    live_bytes_max: int = Field(default=1024**3, gt=0)  # of one look at what a running job has left so far
    live_timeout_s: float = Field(default=120.0, gt=0)  # for its node to answer
    upload_idle_s: float = Field(default=60.0, gt=0)  # an upload of which so long nothing comes is given up
    streams_max: int = Field(default=1000, gt=0)  # event and log streams at once
    #: What a slow reader may leave lying; then it is dropped.
    stream_backlog_bytes: int = Field(default=2 * 1024 * 1024, gt=0)
    heartbeat_s: float = Field(default=15.0, gt=0)
    drain_s: float = Field(default=10.0, ge=0)  # for open requests after SIGTERM
    serve_bytes_max: int = Field(default=64 * 1024 * 1024, gt=0)  # of a request to a service, and its answer
    #: Requests to services at once, and bytes of their bodies, and as many of answers; the rest waits, then is sent
    #: away. A service's owner may hold as much of each as is left for the others.
    serve_at_once: int = Field(default=256, gt=0)
    serve_bodies_bytes: int = Field(default=512 * 1024 * 1024, gt=0)
    serve_wait_s: float = Field(default=60.0, gt=0)  # for a replica, where none runs
    serving_image: str = "wherry/serving:latest"  # of deployments that name none

    #: What trainings run in that name no image.
    training_image: str = "wherry/training:latest"
    #: What filters the images of workloads: this image, or (process, for machines without Docker) the package
    #: images/filters, which has to be beside wherry on every node.
    filters_image: ImageRef = "wherry/filters:latest"
    filters_runtime: Literal["docker", "process"] = "docker"
    #: Names of the filters that there are, separated by commas; none: those of images/filters/filters.py.
    filters: str = ""
    filters_parallelism: int = Field(default=8, ge=1, le=1000)  # containers of one workload at a time
    image_bytes_max: int = Field(default=256 * 1024**2, gt=0)

    #: host:port, separated by commas, as storage has it: inputs may come from there whatever their address.
    fetch_allow: str = ""

    @property
    def fetch_places(self) -> frozenset[str]:
        """Return the places of `fetch_allow`."""
        return places(self.fetch_allow)

    @field_validator("gateway_key")
    @classmethod
    def _is_hex(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and len(bytes.fromhex(text)) < 32:
            raise ValueError("give at least 64 hex digits")
        return value
