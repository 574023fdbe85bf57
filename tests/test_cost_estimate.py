"""What a run takes: operations counted in TensorFlow's graph, memory counted in variables."""

import numpy as np
import pytest
import tensorflow as tf
from test_step import BERT, NO_DROPOUT, B, L, M, features_of, make_step

from kbert.config import BertConfig
from kbert.model import BertForMaskedLM, BertForPreTraining
from kbert.settings import PretrainConfig
from kbert.train.cost_estimate import step_flops, step_memory

BERT_CONFIG = BertConfig(**BERT | NO_DROPOUT)


def matrix_products(graph):
    """Floating-point operations of the matrix products of a graph, from their shapes."""
    total = 0
    for op in graph.get_operations():
        if op.type in ("MatMul", "BatchMatMulV2", "Einsum"):
            assert op.type != "Einsum"
            inner = op.inputs[0].shape[-2 if op.get_attr(f"{ADJOINT[op.type]}") else -1]
            total += 2 * np.prod(op.outputs[0].shape) * inner
    return total


ADJOINT = {"MatMul": "transpose_a", "BatchMatMulV2": "adj_x"}


@pytest.mark.parametrize("next_sentence", [True, False])
@pytest.mark.parametrize("attention_heads_per_layer", [None, (1, 2)])
def test_operations_are_those_of_the_graph(attention_heads_per_layer, next_sentence):
    """Three times the forward pass: the backward pass has two products for each of its own."""
    config = BertConfig(**BERT | NO_DROPOUT, attention_heads_per_layer=attention_heads_per_layer)
    model = (BertForPreTraining if next_sentence else BertForMaskedLM)(config)
    features = {name: tf.constant(value) for name, value in features_of().items()}
    forward = tf.function(lambda: model(features, training=True)).get_concrete_function()
    expected = 3 * matrix_products(forward.graph)
    assert step_flops(config, B, L, M, next_sentence=next_sentence) == expected


def test_rematerialization_adds_the_forward_pass_of_all_blocks_but_the_last():
    with_it, without = (step_flops(BERT_CONFIG, B, L, M, remat) for remat in (True, False))
    deeper = BertConfig(**BERT | NO_DROPOUT | {"num_hidden_layers": 3})  # a block more
    assert with_it - without == (step_flops(deeper, B, L, M) - without) // 3


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_state_is_that_of_the_step(optimizer):
    step = make_step(optimizer=optimizer)
    weights = sum(np.prod(w.shape) for w in step.model.trainable_variables)
    slots = sum(np.prod(v.shape) for n, v in step.named_variables().items() if n != "iterations")
    config = PretrainConfig(input="x", optimizer=optimizer)
    state, _ = step_memory(BERT_CONFIG, step.model.count_params(), B, L, M, config)
    assert state == 4 * (2 * weights + slots)  # weights, gradients, slots


def test_activations_shrink_with_what_saves_memory():
    def activations(batch=B, **settings):
        config = PretrainConfig(input="x", **settings)
        return step_memory(BERT_CONFIG, 1, batch, L, M, config)[1]

    assert activations(B // 2) < activations()
    assert activations(remat=True) < activations()
    pruned = BertConfig(**BERT | NO_DROPOUT, attention_heads_per_layer=(1, 2))
    assert step_memory(pruned, 1, B, L, M, PretrainConfig(input="x"))[1] < activations()
    assert activations(precision="mixed_bfloat16") < activations()
    config = PretrainConfig(input="x")
    one, two = (step_memory(BERT_CONFIG, 7, B, L, M, config, n)[1] for n in (1, 2))
    assert two - one == 2 * 4 * 7  # packed gradients, before and after
