"""Batches on PostgreSQL against COPY by hand, with the same encoding and digests."""
# ruff: noqa: INP001 - beside a script

import hashlib
import statistics
import sys
import time
from pathlib import Path

import psycopg
from store_sides import BATCH, ENCODE, EVENTS, Kasmina

from kasmina.infra.event_store import open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.postgres import DURABLE, Server, binaries

TABLE = """
CREATE TABLE events (
    position bigserial PRIMARY KEY, run_id text, sequence bigint, slot_id text, seed_id text,
    type text, schema_version bigint, epoch bigint, recorded_at bigint, payload text, batch text,
    digest bytea, UNIQUE (run_id, sequence)
)
"""
COPY = """
COPY events (run_id, sequence, slot_id, seed_id, type, schema_version, epoch, recorded_at,
             payload, batch, digest) FROM STDIN
"""
WANTED = 0.6


class ByHand:
    """psycopg's COPY, and nothing else."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url)
        self.connection.execute(TABLE)
        self.connection.commit()
        self.sequence = 0
        self.digest = bytes(32)

    def append(self) -> None:
        """Encode, chain, copy."""
        with self.connection.cursor() as cursor, cursor.copy(COPY) as copy:
            for n, one in enumerate(EVENTS, self.sequence + 1):
                payload = ENCODE(one)
                columns = f"run|{n}|{one.slot_id}|{one.seed_id}|GateEvaluated|1|{one.epoch}|0|"
                digest = hashlib.sha256(self.digest + columns.encode() + payload).digest()
                self.digest = digest
                place = ("run", n, one.slot_id, one.seed_id, "GateEvaluated", 1, one.epoch, 0)
                copy.write_row((*place, payload.decode(), None, digest))
        self.connection.commit()
        self.sequence += BATCH


def postgres(rounds: int) -> list[str]:
    """The line of PostgreSQL; none where no server is installed."""
    if binaries() is None:
        return []
    server = Server(DURABLE)
    try:
        hand = ByHand(server.database())
        with open_store(server.database()) as store:
            ours = Kasmina(store)
            works = (hand.append, lambda: ours.append(BATCH))
            pairs = []
            for turn in range(rounds + 1):
                took = {}
                for side in (0, 1) if turn % 2 else (1, 0):
                    start = time.perf_counter()
                    works[side]()
                    took[side] = time.perf_counter() - start
                pairs.append((took[0], took[1]))
        hand.connection.close()
    finally:
        server.close()
    limit, mine = (BATCH / statistics.median(side) for side in zip(*pairs[1:], strict=True))
    ratio = statistics.median(by_hand / own for by_hand, own in pairs[1:])
    verdict = "" if round(ratio, 2) >= WANTED else ", MISSED"
    what = "PostgreSQL, batch append against `COPY` with encoding and chain"
    return [f"| {what} | {mine:,.0f}/s of {limit:,.0f}/s: {ratio:.2f} | ≥ {WANTED}{verdict} |"]
