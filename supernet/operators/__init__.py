"""Block operators. Importing the package registers those that come with it; none of them needs torch for that."""

from supernet.operators import attention, linear_angular

__all__ = ["attention", "linear_angular"]
