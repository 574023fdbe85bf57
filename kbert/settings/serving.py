"""Settings of `kbert.serve`: names of `tensorflow_model_server`, where it has the same."""

import dataclasses

from kbert.config import check_settings, setting
from kbert.errors import UserError
from kbert.settings.models import SERVER_BACKENDS
from kbert.settings.tasks import TaskModuleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig(TaskModuleConfig):
    """Settings of `kbert.serve`, one flag each."""

    model_name: str = setting("default", "name of the model in requests", group="common")
    model_base_path: str | None = setting(
        None,
        "folder of numbered exports, such as models/bert with models/bert/1 in it",
        group="common",
    )
    model_config_file: str | None = setting(
        None,
        "several models: ModelServerConfig as text, as TensorFlow Serving reads it",
        group="common",
    )
    model_config_file_poll_wait_seconds: float = setting(
        0.0, "how often that file is read again, in seconds; 0: never", at_least=0
    )
    file_system_poll_wait_seconds: float = setting(
        1.0, "how often to look for versions, in seconds; 0: only at the start", at_least=0
    )
    enable_model_warmup: bool = setting(True, "answer the requests that ride with an export first")
    host: str = setting(
        "127.0.0.1", "address to listen on; 0.0.0.0 for other machines, too", group="common"
    )
    port: int = setting(8500, "port of gRPC; 0: none", at_least=0, group="common")
    rest_api_port: int = setting(8501, "port of REST; 0: none", at_least=0, group="common")
    rest_api_timeout_in_ms: int = setting(30_000, "time for a request of REST", at_least=1)
    ssl_certificate: str | None = setting(None, "PEM file: TLS on both ports; with --ssl_key")
    ssl_key: str | None = setting(None, "PEM file, the key of --ssl_certificate")
    ssl_client_ca: str | None = setting(None, "PEM file: clients must show a certificate of these")
    demo: bool = setting(
        False, "a page to try the models in a browser, at / of the REST port", group="common"
    )
    backend: str = setting(
        "auto",
        "what computes models; auto: OpenVINO if it is installed, the model is an export of kbert "
        "and there is no GPU, else TensorFlow",
        choices=SERVER_BACKENDS,
        group="common",
    )
    max_batch_size: int = setting(32, "texts computed together, of all requests", at_least=1)
    max_queue_tokens: int = setting(
        1 << 17,
        "tokens of requests that wait; more are rejected (RESOURCE_EXHAUSTED, 503)",
        at_least=1,
    )
    max_concurrent_requests: int = setting(512, "requests at a time, on each port", at_least=1)
    max_request_bytes: int = setting(4 << 20, "size of a request", at_least=1)
    drain_seconds: float = setting(
        30.0, "on SIGTERM and Ctrl-C: time for requests that have begun", at_least=0
    )

    def __post_init__(self):
        check_settings(self)
        if self.model_base_path and self.model_config_file:
            raise UserError("--model_base_path is for one model, --model_config_file for several.")
        if not self.model_base_path and not self.model_config_file:
            raise UserError(
                "name a folder of numbered exports with --model_base_path=models/bert, or several "
                "models with --model_config_file."
            )
        default = {field.name: field.default for field in dataclasses.fields(self)}
        if self.model_config_file and self.model_name != default["model_name"]:
            raise UserError("--model_name is for --model_base_path; --model_config_file has names.")
        if self.model_base_path and self.model_config_file_poll_wait_seconds:
            raise UserError("--model_config_file_poll_wait_seconds is for --model_config_file.")
        timeout = self.rest_api_timeout_in_ms
        if not self.rest_api_port and timeout != default["rest_api_timeout_in_ms"]:
            raise UserError("--rest_api_timeout_in_ms is for REST, which --rest_api_port=0 closes.")
        if not self.port and not self.rest_api_port:
            raise UserError("--port and --rest_api_port are both 0: there is nothing to listen on.")
        if self.demo and not self.rest_api_port:
            raise UserError("--demo is a page on the port of REST, which --rest_api_port=0 closes.")
        if bool(self.ssl_certificate) != bool(self.ssl_key):
            raise UserError("--ssl_certificate and --ssl_key go together; one of them is missing.")
        if self.ssl_client_ca and not self.ssl_certificate:
            raise UserError("--ssl_client_ca needs --ssl_certificate and --ssl_key.")
