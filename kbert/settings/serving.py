"""Settings of `kbert.serve`, with the names of `tensorflow_model_server`'s flags if it has them."""

import dataclasses
import ipaddress

from kbert.errors import UserError
from kbert.fields import check_settings, common, setting
from kbert.settings.models import SERVER_BACKENDS
from kbert.settings.tasks import TaskModuleConfig

# Flags of tensorflow_model_server that kbert.serve accepts and ignores, so that the same command
# lines work. Most of them tune threads, batching and retries of TensorFlow Serving.
UNUSED_SWITCHES = (
    "allow_version_labels_for_unavailable_models",
    "enable_batching",
    "enable_grpc_healthcheck_service",
    "enable_per_model_batching_parameters",
    "enable_profiler",
    "enable_signature_method_name_check",
    "flush_filesystem_caches",
    "remove_unused_fields_from_bundle_metagraph",
    "skip_initialize_tpu",
    "xla_cpu_compilation_enabled",
    "xla_gpu_compilation_enabled",
)
UNUSED_VALUES = (
    "batching_parameters_file",
    "grpc_channel_arguments",
    "grpc_max_threads",
    "load_retry_interval_micros",
    "max_num_load_retries",
    "monitoring_config_file",
    "num_load_threads",
    "num_request_iterations_for_warmup",
    "num_unload_threads",
    "per_process_gpu_memory_fraction",
    "rest_api_num_threads",
    "tensorflow_inter_op_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_session_config_file",
    "tensorflow_session_parallelism",
    "thread_pool_factory_config_file",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig(TaskModuleConfig):
    """Settings of `kbert.serve`; each is a flag."""

    model_name: str = common("default", "name of the model in requests")
    model_base_path: str | None = common(
        None, "folder of numbered exports, such as models/bert, which contains models/bert/1"
    )
    model_config_file: str | None = common(
        None,
        "file that names several models: TensorFlow Serving's ModelServerConfig in text format",
    )
    model_config_file_poll_wait_seconds: float = setting(
        0.0, "seconds between reads of --model_config_file; 0: read it once", at_least=0
    )
    file_system_poll_wait_seconds: float = setting(
        1.0, "seconds between checks for new versions; 0: check only at startup", at_least=0
    )
    enable_model_warmup: bool = setting(
        True, "run the warmup requests that an export contains before serving it"
    )
    host: str = common(
        "127.0.0.1", "address to listen on; 0.0.0.0 accepts connections from other machines"
    )
    port: int = common(8500, "gRPC port; 0: disabled", at_least=0, at_most=65_535)
    rest_api_port: int = common(8501, "REST port; 0: disabled", at_least=0, at_most=65_535)
    rest_api_timeout_in_ms: int = setting(
        30_000, "timeout of a REST request in milliseconds", at_least=1
    )
    ssl_certificate: str | None = setting(
        None, "PEM file of the server certificate, for gRPC and REST with TLS; requires --ssl_key"
    )
    ssl_key: str | None = setting(None, "PEM file of the private key of --ssl_certificate")
    ssl_client_ca: str | None = setting(
        None,
        "PEM file of certificate authorities; clients must send a certificate that one of them "
        "signed",
    )
    api_key_file: str | None = setting(
        None,
        "file of API keys, one per line; clients must send one of them: x-api-key: KEY, or "
        "authorization: Bearer KEY",
    )
    allow_reload: bool | None = setting(
        None,
        "whether clients may replace the configuration (HandleReloadConfigRequest); default: only "
        "if --host is a loopback address",
    )
    monitoring_port: int = setting(
        0,
        "port for health checks and metrics, without TLS and API keys; 0: use the REST port",
        at_least=0,
        at_most=65_535,
    )
    access_log: bool = setting(
        False, "log a line for each request, except for health checks and metrics"
    )
    demo: bool = common(False, "serve a page to try the models in a browser, at / on the REST port")
    backend: str = common(
        "auto",
        "runtime of the models; auto: OpenVINO for float32 exports of kbert, if it is installed "
        "and there is no GPU, else TensorFlow",
        choices=SERVER_BACKENDS,
    )
    max_batch_size: int = setting(
        32, "maximum number of texts per batch; a batch may combine requests", at_least=1
    )
    max_queue_tokens: int = setting(
        1 << 19,
        "maximum number of tokens of all open requests, counted after tokenizing, in all windows "
        "and choices; a request with more than half of them is invalid, and one with more than "
        "half of the tokens that the others leave is rejected (RESOURCE_EXHAUSTED, 503)",
        at_least=1024,
    )
    max_concurrent_requests: int = setting(
        512, "maximum number of concurrent requests on each port", at_least=1
    )
    max_connections: int = setting(
        1024, "maximum number of connections on each port; further ones are closed", at_least=1
    )
    idle_timeout_seconds: float = setting(
        75.0,
        "seconds after which a connection without a request, or with incomplete headers, is closed",
        above=0,
        at_most=86_400,
    )
    max_request_bytes: int = setting(4 << 20, "maximum request size in bytes", at_least=1)
    lame_duck_seconds: float = setting(
        1.0,
        "seconds after SIGTERM or Ctrl-C during which the server still answers requests, while its "
        "health checks fail and HTTP connections are closed after their next response",
        at_least=0,
    )
    drain_seconds: float = setting(
        30.0, "seconds for open requests to finish after --lame_duck_seconds", at_least=0
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.model_base_path and self.model_config_file:
            raise UserError(
                "--model_base_path serves one model, --model_config_file several; set only one."
            )
        if not self.model_base_path and not self.model_config_file:
            raise UserError(
                "no model to serve: set --model_base_path to a folder of numbered exports, such as "
                "models/bert, or set --model_config_file."
            )
        if self.model_config_file and self.model_name != ServeConfig.model_name:
            raise UserError(
                "--model_name requires --model_base_path; --model_config_file names its models."
            )
        if self.model_base_path and self.model_config_file_poll_wait_seconds:
            raise UserError("--model_config_file_poll_wait_seconds requires --model_config_file.")
        timeout = self.rest_api_timeout_in_ms
        if not self.rest_api_port and timeout != ServeConfig.rest_api_timeout_in_ms:
            raise UserError(
                "--rest_api_timeout_in_ms requires REST, which --rest_api_port=0 disables."
            )
        self._check_ports()
        self._check_access()

    @property
    def reload_allowed(self) -> bool:
        """Whether clients may replace the configuration; see `allow_reload`."""
        return is_loopback(self.host) if self.allow_reload is None else self.allow_reload

    def _check_ports(self):
        if not self.port and not self.rest_api_port:
            raise UserError("--port and --rest_api_port are both 0; set at least one port.")
        ports = [port for port in (self.port, self.rest_api_port, self.monitoring_port) if port]
        if len(set(ports)) < len(ports):
            raise UserError(
                f"--port, --rest_api_port and --monitoring_port must differ; got {self.port}, "
                f"{self.rest_api_port} and {self.monitoring_port}."
            )
        if self.demo and not self.rest_api_port:
            raise UserError("--demo requires REST, which --rest_api_port=0 disables.")

    def _check_access(self):
        if self.demo and self.api_key_file:
            raise UserError(
                "--demo cannot be used with --api_key_file, because the page sends no key."
            )
        if bool(self.ssl_certificate) != bool(self.ssl_key):
            raise UserError("--ssl_certificate and --ssl_key must be set together; one is missing.")
        if self.ssl_client_ca and not self.ssl_certificate:
            raise UserError("--ssl_client_ca requires --ssl_certificate and --ssl_key.")


def is_loopback(host: str) -> bool:
    """Returns whether a host name or IP address can be reached only from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return False
