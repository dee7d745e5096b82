"""Scripts that print tables of measured figures."""

import osum_echat  # noqa: F401  it says how threads wait, before torch loads
