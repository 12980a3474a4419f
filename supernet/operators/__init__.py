"""Block operators. Importing the package registers those that come with it; none of them needs torch for that."""

from supernet.operators import attention

__all__ = ["attention"]
