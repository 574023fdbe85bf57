"""A server of all kinds of exports."""

import pytest
from exports import KINDS
from server_process import serving


@pytest.fixture(scope="session")
def server(exported, tmp_path_factory):
    """One that serves all kinds, by TensorFlow."""
    lines = [f'config {{ name: "{kind}" base_path: "{exported(kind)[0]}" }}' for kind in KINDS]
    path = tmp_path_factory.mktemp("config") / "models.config"
    path.write_text("model_config_list {\n" + "\n".join(lines) + "\n}\n")
    flags = (f"model_config_file={path}", "backend=tensorflow", "max_request_bytes=2000000")
    with serving(*flags, "max_queue_tokens=12799872") as server:
        yield server
        assert "Traceback" not in server.said
