"""Timing of operators and networks on this host, for a device file of the kind `measured`."""
