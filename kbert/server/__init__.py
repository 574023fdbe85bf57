"""A small server with TensorFlow Serving's API: one event loop, a few threads that compute.

`servable` computes one version of a model, `batching` what many clients ask at once, `models` knows
which versions there are; `service` answers, and `grpc_api` and `rest_api` are its two doors.
"""
