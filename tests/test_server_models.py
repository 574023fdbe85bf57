"""Which versions are served: what a refused configuration leaves, and what is forgotten."""

import asyncio
import contextlib
import shutil
import threading

import event_loop
import pytest
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.config import model_server_config_pb2

from kbert.errors import UserError
from kbert.server.errors import RequestError
from kbert.server.models import STATES, Models


def write_version(base, number, text="good"):
    folder = base / str(number)
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_text(text)


def loaded(folder):
    """What stands for a Servable: its folder. Raises UserError if the file in it is bad."""
    with open(f"{folder}/saved_model.pb") as file:
        if file.read() == "bad":
            raise UserError(f"{folder} is bad.")
    return folder


def model(name, base, **labels):
    config = model_server_config_pb2.ModelConfig(name=name, base_path=str(base))
    config.version_labels.update(labels)
    return config


def spec(name, number=None):
    found = predict_pb2.PredictRequest().model_spec
    found.name = name
    if number is not None:
        found.version.value = number
    return found


@contextlib.contextmanager
def models(load=loaded):
    found = Models(load)
    yield found
    found.close()


def test_a_refused_configuration_changes_nothing(tmp_path):
    """Though the versions that it names can be loaded."""
    here, there = tmp_path / "here", tmp_path / "there"
    write_version(here, 1)
    write_version(there, 7)

    async def run():
        with models() as served:
            await served.configure([model("bert", here)])
            write_version(here, 2)
            with pytest.raises(
                RequestError, match="label stable is for version 9, which is not available"
            ):
                await served.configure([model("bert", here, stable=9)])
            with pytest.raises(RequestError, match="model other: no versions in"):
                await served.configure([model("bert", there), model("other", tmp_path / "none")])
            assert served.find(spec("bert")) == (1, f"{here}/1")
            assert served.available() == {"bert": [1]}
            assert [version.number for version in served.status(spec("bert"))] == [1]
            with pytest.raises(RequestError, match="has no version 7"):
                served.find(spec("bert", 7))
            await served.configure([model("bert", there)])
            assert served.find(spec("bert")) == (7, f"{there}/7")

    event_loop.run(run())


def test_a_version_that_is_loading_is_seen_and_not_asked(tmp_path):
    write_version(tmp_path, 1)
    go_on = threading.Event()

    def slowly(folder):
        assert folder.endswith("/1") or go_on.wait(60)
        return loaded(folder)

    async def run():
        with models(slowly) as served:
            await served.configure([model("bert", tmp_path)])
            write_version(tmp_path, 2)
            await served.refresh()  # sees it
            refreshing = asyncio.create_task(served.refresh())
            while len(served.status(spec("bert"))) < 2:
                await asyncio.sleep(0.01)
            states = {v.number: v.state for v in served.status(spec("bert"))}
            assert states == {2: STATES.LOADING, 1: STATES.AVAILABLE}
            assert served.find(spec("bert"))[0] == 1
            go_on.set()
            await refreshing
            states = {v.number: v.state for v in served.status(spec("bert"))}
            assert states == {2: STATES.AVAILABLE, 1: STATES.END}

    event_loop.run(run())


def test_folders_that_are_gone_are_forgotten(tmp_path):
    write_version(tmp_path, 1)

    async def run():
        with models() as served:
            await served.configure([model("bert", tmp_path)])
            for number in range(2, 6):
                write_version(tmp_path, number, "bad")
                await served.refresh()  # sees it
                await served.refresh()
                assert set(served._failed) == {f"{tmp_path}/{number}"}
                assert served.find(spec("bert"))[0] == 1
                shutil.rmtree(tmp_path / str(number))
            await served.refresh()
            assert not served._failed and set(served._seen) == {f"{tmp_path}/1"}

    event_loop.run(run())
