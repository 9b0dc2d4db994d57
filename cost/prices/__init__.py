"""What machines cost: a dated snapshot, what was refreshed, and the user's own rates over both."""

from cost.prices.files import Quote, Row
from cost.prices.overlay import Overlay
from cost.prices.table import Component, Price, Prices, Unpriced
from cost.prices.tokens import TokenPrice

__all__ = ["Component", "Overlay", "Price", "Prices", "Quote", "Row", "TokenPrice", "Unpriced"]
