"""A host as if it had been measured, for tests: its times grow with every size."""

import numpy as np

from hwmodel.measured import OPERATORS, Host, InNetwork, MeasuredHost, OperatorGrid


def measured_host(*, largest=100.0, most_tokens=None, power_w=None):
    """Measured from 1 to `largest` in every size, or to `most_tokens` in that of tokens."""

    def grid(sizes):
        ends = [most_tokens if most_tokens and size == "tokens" else largest for size in sizes]
        axes = tuple(np.array([1.0, end // 2, end]) for end in ends)
        return OperatorGrid(axes=axes, time_us=np.asarray(1.0 + sum(np.meshgrid(*axes, indexing="ij"))))

    return MeasuredHost(
        name="host",
        title="a host",
        form="a form",
        clock="a clock",
        host=Host(cpu="a CPU", cores=1, threads=1, runtime="torch", versions={"torch": "2"}),
        power_w=power_w,
        noise=0.0,
        layers={
            "patch_embed": {"patch_embed": 1, "call": 1},
            "qkv": {"linear_up": 3},
            "scores": {"attention": 1},
            "softmax": {},
            "mix": {},
            "proj": {"linear_down": 1},
            "fc1": {"linear_up": 1, "gelu": 1},
            "fc2": {"linear_down": 1},
            "head": {"linear_down": 1},
            "layernorm": {"layernorm": 1},
            "residual": {"residual": 1},
        },
        operators={name: grid(sizes) for name, sizes in OPERATORS.items()},
        in_network=InNetwork(layer_us=0.7, weight_ns=0.3),
        check=(),
    )
