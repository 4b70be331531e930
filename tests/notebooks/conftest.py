from tests.demo.conftest import checkpoint  # noqa: F401
from tests.e2e.conftest import cache  # noqa: F401
from tests.packaging.conftest import fresh, sdist, sources, wheel  # noqa: F401
