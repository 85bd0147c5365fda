"""Assertions in the shared helpers are explained like those in tests."""

import pytest

pytest.register_assert_rewrite("tests.integration.support")
