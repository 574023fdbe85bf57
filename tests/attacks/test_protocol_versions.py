"""Versions that arrive in pieces, fail, are loaded again, or lie on remote storage."""

import asyncio
import contextlib
import gc
import os
import threading
import weakref

import event_loop
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.config import model_server_config_pb2

from kbert.errors import UserError
from kbert.server.errors import RequestError
from kbert.server.loading import load_version
from kbert.server.models import STATES, Models, read_configs


class Loader:
    """Stands for `load_version`: what it returns says whether the folder had its metadata."""

    def __init__(self):
        self.gate, self.count = threading.Event(), 0
        self.gate.set()

    def __call__(self, folder):
        self.count += 1
        assert self.gate.wait(60)
        if os.path.exists(f"{folder}/bad"):
            raise UserError(f"{folder} is bad.")
        return "kbert" if os.path.exists(f"{folder}/assets.extra/kbert.json") else "foreign"


def spec(version=None):
    found = predict_pb2.PredictRequest().model_spec
    found.name = "m"
    if version:
        found.version.value = version
    return found


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@contextlib.asynccontextmanager
async def serving(base):
    loader = Loader()
    models = Models(loader)
    config = model_server_config_pb2.ModelConfig(name="m", base_path=str(base))
    await models.configure([config])
    try:
        yield models, loader
    finally:
        loader.gate.set()
        models.close()


def states(models):
    return {version.number: version.state for version in models.status(spec())}


def test_metadata_that_arrives_last_is_not_missed(tmp_path):
    async def run():
        write(tmp_path / "1/saved_model.pb")
        async with serving(tmp_path) as (models, loader):
            for _ in range(3):
                await models.refresh()
            assert models.find(spec()) == (1, "foreign") and loader.count == 1
            write(tmp_path / "1/assets.extra/kbert.json")
            write(tmp_path / "1/bad")  # and is damaged at first
            await models.refresh()  # sees the files
            await models.refresh()
            assert models.find(spec()) == (1, "foreign") and loader.count == 2
            assert states(models) == {1: STATES.AVAILABLE}
            (tmp_path / "1/bad").unlink()
            await models.refresh()
            assert models.find(spec()) == (1, "foreign")
            await models.refresh()
            assert models.find(spec()) == (1, "kbert") and loader.count == 3
            await models.refresh()
            assert loader.count == 3

    event_loop.run(run())


def test_states_are_true_while_a_failed_version_is_loaded_again(tmp_path):
    async def run():
        write(tmp_path / "1/saved_model.pb")
        async with serving(tmp_path) as (models, loader):
            write(tmp_path / "2/saved_model.pb")
            write(tmp_path / "2/bad")
            await models.refresh()
            await models.refresh()
            assert states(models) == {2: STATES.END, 1: STATES.AVAILABLE}
            assert "2 is bad" in models.status(spec(2))[0].error
            (tmp_path / "2/bad").unlink()
            await models.refresh()
            loader.gate.clear()
            refreshing = asyncio.create_task(models.refresh())
            while loader.count < 3:
                await asyncio.sleep(0.01)
            assert states(models) == {2: STATES.LOADING, 1: STATES.AVAILABLE}
            assert models.status(spec(2))[0].error == ""
            assert models.find(spec())[0] == 1
            loader.gate.set()
            await refreshing
            assert states(models) == {2: STATES.AVAILABLE, 1: STATES.END}

    event_loop.run(run())


class Graph:
    """Refers to itself, as TensorFlow's graphs do."""

    def __init__(self, folder):
        self.itself = self


def test_memory_of_unloaded_versions_is_released(tmp_path):
    async def run():
        loaded = []

        def load(folder):
            loaded.append(weakref.ref(made := Graph(folder)))
            return made

        models = Models(load)
        write(tmp_path / "1/saved_model.pb")
        await models.configure(
            [model_server_config_pb2.ModelConfig(name="m", base_path=str(tmp_path))]
        )
        gc.disable()
        try:
            write(tmp_path / "2/saved_model.pb")
            for _ in range(3):
                await models.refresh()
        finally:
            gc.enable()
            models.close()
        assert [found() is not None for found in loaded] == [False, True]

    event_loop.run(run())


def upload(folder, url):
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            target = f"{url}/{os.path.relpath(path, folder)}"
            tf.io.gfile.makedirs(os.path.dirname(target))
            tf.io.gfile.copy(path, target, overwrite=True)


def test_models_on_remote_storage_are_served(exported, tmp_path):
    """`ram://` stands for gs://: a file system that only TensorFlow knows."""
    folder, method = exported("embed")
    upload(folder, "ram://attacks/models")
    config = 'model_config_list { config { name: "m" base_path: "ram://attacks/models" } }'
    with tf.io.gfile.GFile("ram://attacks/models.config", "w") as file:
        file.write(config)

    async def run():
        models = Models(lambda path: load_version(path, "tensorflow", scratch=str(tmp_path)))
        await models.configure(read_configs("ram://attacks/models.config"))
        number, servable = models.find(spec())
        assert number == 7 and servable.metadata["method"] == "embed"
        assert len(os.listdir(tmp_path)) == 1
        inputs = {"text": np.array([b"the cat"], object)}
        found = servable.compute(servable.signature(""), inputs)["embedding"]
        wanted = method.reference_outputs(["the cat"])["embedding"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        upload(folder / "7", "ram://attacks/models/8")
        del servable
        await models.refresh()
        await models.refresh()
        assert models.available() == {"m": [8]}
        models.close()

    event_loop.run(run())
    with pytest.raises(
        UserError, match=r"ram://attacks/empty.* cannot|cannot .*ram://attacks/empty"
    ):
        load_version("ram://attacks/empty", "tensorflow", scratch=str(tmp_path))


def test_storage_that_fails_leaves_the_others_alone(tmp_path):
    write(tmp_path / "1/saved_model.pb")

    async def run():
        async with serving(tmp_path) as (models, _):
            local = model_server_config_pb2.ModelConfig(name="m", base_path=str(tmp_path))
            remote = model_server_config_pb2.ModelConfig(name="r", base_path="none://bucket/m")
            with pytest.raises(RequestError, match="does not support none://") as error:
                await models.configure([local, remote])
            assert error.value.code == "UNAVAILABLE"
            models._configs["r"] = remote  # as if it had failed later
            write(tmp_path / "2/saved_model.pb")
            for _ in range(2):
                with pytest.raises(UserError, match="does not support none://"):
                    await models.refresh()
            assert models.find(spec())[0] == 2

    event_loop.run(run())
