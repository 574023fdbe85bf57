"""The precision "auto": what it becomes on a kind of device, and that runs use it."""

import pytest
import tensorflow as tf

from kbert.settings import PretrainConfig
from kbert.train import distribution
from kbert.train.distillation import Distillation
from kbert.train.pretraining import Pretraining


@pytest.fixture
def cpu_info(monkeypatch, tmp_path):
    monkeypatch.setattr(distribution, "_CPU_INFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2 fma", "float32"),
        ("avx2 avx512f avx512bw avx512_vnni", "float32"),
        ("avx2 avx512f avx512_bf16", "mixed_bfloat16"),
        ("avx512f amx_bf16 amx_tile", "mixed_bfloat16"),
    ],
)
def test_cpus_with_bfloat16_instructions_use_them(cpu_info, flags, expected):
    cpu_info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t\t:\n\n" * 2)
    assert distribution.fast_precision("CPU") == expected


def test_float32_where_nothing_is_known_about_the_cpu(cpu_info):
    assert distribution.fast_precision("CPU") == "float32"


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ([{"compute_capability": (9, 0)}] * 2, "mixed_bfloat16"),
        ([{"compute_capability": (8, 0)}, {"compute_capability": (7, 5)}], "float32"),
        ([{}], "float32"),
    ],
)
def test_gpus_from_ampere_on_use_bfloat16(monkeypatch, details, expected):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: details)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: gpu)
    assert distribution.fast_precision("GPU") == expected
    assert distribution.fast_precision("TPU") == "mixed_bfloat16"


def test_workloads_replace_auto_and_nothing_else(cpu_info):
    cpu_info.write_text("flags\t\t: avx512_bf16\n")
    for precision, expected in (("auto", "mixed_bfloat16"), ("float32", "float32")):
        config = PretrainConfig(input="x", precision=precision)
        for workload in (Pretraining(config), Distillation(Pretraining(config))):
            workload.choose_precision("CPU")
            assert workload.config.precision == expected
