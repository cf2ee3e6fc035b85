"""Asks DuckDB what a line of standard input says, and answers in a line."""

import json
import sys
import time

import duckdb

database = duckdb.connect(sys.argv[1])
# Whatever is printed is read as an answer.
database.execute("SET enable_progress_bar = false")
COLUMNS = """host INTEGER, remote BIGINT, port INTEGER, first BIGINT, last BIGINT,
    sent BIGINT, received BIGINT, pid INTEGER, name VARCHAR"""
database.execute(f"CREATE TABLE IF NOT EXISTS flows ({COLUMNS})")
QUESTION = """SELECT host, count(*), min(first), max(last) FROM {table}
    WHERE {meant} AND first < ? AND first >= ? AND last >= ? {of} GROUP BY host"""


def answer(asked):
    if "load" in asked:
        database.execute("INSERT INTO flows SELECT * FROM read_parquet(?)", [asked["load"]])
        return {}
    if "sort" in asked:
        database.execute("CREATE OR REPLACE TABLE sorted AS SELECT * FROM flows ORDER BY remote, first")
        return {}
    if "checkpoint" in asked:
        database.execute("CHECKPOINT")
        return {}
    parameters = [asked["low"], asked["high"]]
    meant = "remote BETWEEN ? AND ?"
    if asked["name"]:
        meant = f"({meant} OR name = ?)"
        parameters.append(asked["name"])
    parameters += [asked["to"], asked["back"], asked["from"]]
    of = ""
    if asked["host"] is not None:
        of = "AND host = ?"
        parameters.append(asked["host"])
    rows = database.execute(QUESTION.format(table=asked["table"], meant=meant, of=of), parameters).fetchall()
    return {"rows": sum(row[1] for row in rows)}


def say(said):
    print(json.dumps(said), flush=True)


say({"seconds": 0.0, "version": duckdb.__version__})
for line in sys.stdin:
    began = time.perf_counter()
    said = answer(json.loads(line))
    say({"seconds": time.perf_counter() - began, **said})
