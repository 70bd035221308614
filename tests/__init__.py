"""Tests. Helpers are in `tests.support`; one test module imports nothing from another."""

import pytest

pytest.register_assert_rewrite("tests.support")
