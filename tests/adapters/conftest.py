from tests.demo.conftest import checkpoint, client

__all__ = ["checkpoint", "client"]
