"""The shipped benchmark: ``pytest --pyargs pytest_kvcache.suite``."""
