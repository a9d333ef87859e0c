"""The literal table of mechanisms that come with attnbench: a row for each, and nothing imported by it."""

from __future__ import annotations

from attnbench.catalogue.linear import LINEAR
from attnbench.catalogue.softmax import SOFTMAX

BUILT_IN = (*LINEAR, *SOFTMAX)
