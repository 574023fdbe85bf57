"""Computes only the matrix products of a row, with TensorFlow's matmul (oneDNN on a CPU).

A step computes each product of the row as many times as the model does, one after the other, always
with the same operands.
"""

import tensorflow as tf

from benchmarks.flops import Product, count_flops
from benchmarks.worker import Work, serve


def gemm(settings):
    """Returns the Work of the matrix products. Units: floating-point operations."""
    products = [Product(*values) for values in settings["products"]]
    dtype = {"mixed_bfloat16": "bfloat16"}.get(settings["precision"], settings["precision"])
    operands = [_operands(p, dtype) for p in products]

    def run(steps):
        for _ in range(steps):
            for p, (a, b) in zip(products, operands, strict=True):
                for _ in range(p.count):
                    multiply(p, a, b)
        return {"units": steps * count_flops(products)}

    return Work(run)


def multiply(p, a, b):
    """Computes a product with the raw ops, to keep the Python overhead of small products low."""
    if p.batch > 1:
        return tf.raw_ops.BatchMatMulV2(x=a, y=b, adj_x=p.transpose_a, adj_y=p.transpose_b)
    return tf.raw_ops.MatMul(a=a, b=b, transpose_a=p.transpose_a, transpose_b=p.transpose_b)


def _operands(p, dtype):
    a = (p.k, p.m) if p.transpose_a else (p.m, p.k)
    b = (p.n, p.k) if p.transpose_b else (p.k, p.n)
    batch = (p.batch,) if p.batch > 1 else ()
    return [tf.cast(tf.random.normal(batch + shape), dtype) for shape in (a, b)]


if __name__ == "__main__":
    serve({name: gemm for name in ("train", "finetune", "infer")}, ["tensorflow"])
