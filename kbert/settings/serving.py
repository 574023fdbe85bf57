"""Settings of `kbert.serve`, named like the flags of `tensorflow_model_server` if they exist."""

import dataclasses

from kbert.errors import UserError
from kbert.fields import check_settings, setting
from kbert.settings.models import SERVER_BACKENDS
from kbert.settings.tasks import TaskModuleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig(TaskModuleConfig):
    """Settings of `kbert.serve`, one flag each."""

    model_name: str = setting("default", "name of the model in requests", group="common")
    model_base_path: str | None = setting(
        None,
        "folder of numbered exports, such as models/bert, which contains models/bert/1",
        group="common",
    )
    model_config_file: str | None = setting(
        None,
        "file that names several models: TensorFlow Serving's ModelServerConfig in text format",
        group="common",
    )
    model_config_file_poll_wait_seconds: float = setting(
        0.0, "seconds between reads of --model_config_file; 0: read it once", at_least=0
    )
    file_system_poll_wait_seconds: float = setting(
        1.0, "seconds between checks for new versions; 0: check only at startup", at_least=0
    )
    enable_model_warmup: bool = setting(
        True, "run the warmup requests stored in an export before serving it"
    )
    host: str = setting(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 accepts connections from other machines",
        group="common",
    )
    port: int = setting(8500, "gRPC port; 0: disabled", at_least=0, group="common")
    rest_api_port: int = setting(8501, "REST port; 0: disabled", at_least=0, group="common")
    rest_api_timeout_in_ms: int = setting(
        30_000, "timeout of a REST request in milliseconds", at_least=1
    )
    ssl_certificate: str | None = setting(
        None, "PEM file of the server certificate, for TLS on both ports; requires --ssl_key"
    )
    ssl_key: str | None = setting(None, "PEM file of the private key of --ssl_certificate")
    ssl_client_ca: str | None = setting(
        None, "PEM file of the CAs that must have signed the clients' certificates"
    )
    demo: bool = setting(
        False, "serve a page to try the models in a browser, at / on the REST port", group="common"
    )
    backend: str = setting(
        "auto",
        "runtime of the models; auto: OpenVINO if installed, the model is a kbert export and there "
        "is no GPU, else TensorFlow",
        choices=SERVER_BACKENDS,
        group="common",
    )
    max_batch_size: int = setting(
        32, "maximum number of texts per batch; a batch combines requests", at_least=1
    )
    max_queue_tokens: int = setting(
        1 << 17,
        "maximum number of tokens in the queue; further requests are rejected "
        "(RESOURCE_EXHAUSTED, 503)",
        at_least=1,
    )
    max_concurrent_requests: int = setting(
        512, "maximum number of concurrent requests on each port", at_least=1
    )
    max_request_bytes: int = setting(4 << 20, "maximum request size in bytes", at_least=1)
    drain_seconds: float = setting(
        30.0, "seconds that running requests have to finish after SIGTERM or Ctrl-C", at_least=0
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
        default = {field.name: field.default for field in dataclasses.fields(self)}
        if self.model_config_file and self.model_name != default["model_name"]:
            raise UserError(
                "--model_name requires --model_base_path; --model_config_file names its models."
            )
        if self.model_base_path and self.model_config_file_poll_wait_seconds:
            raise UserError("--model_config_file_poll_wait_seconds requires --model_config_file.")
        timeout = self.rest_api_timeout_in_ms
        if not self.rest_api_port and timeout != default["rest_api_timeout_in_ms"]:
            raise UserError(
                "--rest_api_timeout_in_ms requires REST, which --rest_api_port=0 disables."
            )
        if not self.port and not self.rest_api_port:
            raise UserError("--port and --rest_api_port are both 0; set at least one port.")
        if self.demo and not self.rest_api_port:
            raise UserError("--demo requires REST, which --rest_api_port=0 disables.")
        if bool(self.ssl_certificate) != bool(self.ssl_key):
            raise UserError("--ssl_certificate and --ssl_key must be set together; one is missing.")
        if self.ssl_client_ca and not self.ssl_certificate:
            raise UserError("--ssl_client_ca requires --ssl_certificate and --ssl_key.")
