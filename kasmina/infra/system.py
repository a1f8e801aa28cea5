"""The world outside as the ports want it: the machine's clock, and identifiers by chance."""

import base64
import re
import secrets
import unicodedata
from datetime import UTC, datetime

_LONGEST_SLUG = 40


class SystemClock:
    """The machine's clock, in UTC."""

    def now(self) -> datetime:
        """The present, aware, in UTC."""
        return datetime.now(UTC)


class RandomIdentifiers:
    """Identifiers from the system's random source, in lower-case base 32."""

    def run_id(self, name: str) -> str:
        """``name`` as a slug, and 40 random bits: ``"digits-k3v7qx2a"``."""
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        slug = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
        return f"{slug[:_LONGEST_SLUG].strip('-') or 'run'}-{_random(5)}"

    def seed_id(self) -> str:
        """``"s"`` and 40 random bits, which tell the seeds of one run apart."""
        return "s" + _random(5)

    def batch(self) -> str:
        """80 random bits, which tell all writers apart."""
        return _random(10)


def _random(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().lower()
