"""Where the FLOPs, bytes, latency and energy of one network go, by type of operator.

Not to be confused with `search.profile`, which says what a whole space offers on a device.
"""
