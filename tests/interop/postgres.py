"""Neuronpedia's lines in a real PostgreSQL: ``python postgres.py FOLDER``, in the environment of requirements-readers.txt.

A server of its own starts in a temporary folder, on a socket there. Lines go in by a statement of the form of Neuronpedia's importer:
columns are those of a file's first line that the table has, rows come from ``jsonb_to_recordset``, and rows whose key is there are left.
The answer on stdout is JSON: how many lines and rows each table has, and what is wrong.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

USER = "clkht01d40000jv08hvalcvly"
METADATA = {"release": "SourceRelease", "model": "Model", "sourceset": "SourceSet", "source": "Source"}
BATCHES = {"features": "Neuron", "activations": "Activation", "explanations": "Explanation"}
KEYS = {"SourceRelease": ["name"], "Model": ["id"], "SourceSet": ["modelId", "name"], "Source": ["modelId", "id"]}
COLUMNS = """
    select column_name,
        case data_type when 'ARRAY' then udt_name::regtype::text || '[]' when 'USER-DEFINED' then udt_name else data_type end
    from information_schema.columns where table_name = %s and column_name = any(%s) order by ordinal_position
"""


def main(folder: Path) -> dict:
    programs = server_programs()
    if programs is None:
        return {"skipped": "no PostgreSQL is installed (apt-get install postgresql)"}
    import psycopg

    with tempfile.TemporaryDirectory() as place, server(programs, Path(place)) as address:
        with psycopg.connect(address, autocommit=True) as database:
            database.execute(Path(__file__).with_name("neuronpedia.sql").read_text())
            database.execute('insert into "User" values (%s)', (USER,))
            lines, problems = dict.fromkeys([*METADATA.values(), *BATCHES.values()], 0), []
            keys: dict[str, set] = {table: set() for table in METADATA.values()}
            for source in sorted(file.parent for file in folder.rglob("source.jsonl")):
                for name, table in METADATA.items():
                    text = (source / f"{name}.jsonl").read_text()
                    problems += import_lines(database, table, text)
                    keys[table].add(text)
                for name, table in BATCHES.items():
                    for file in sorted((source / name).glob("*.jsonl.gz")) if (source / name).exists() else []:
                        text = gzip.decompress(file.read_bytes()).decode()
                        problems += import_lines(database, table, text)
                        lines[table] += len(text.strip().split("\n"))
                        problems += import_lines(database, table, text)  # again: nothing may be there twice
            lines |= {table: len({identity(table, text) for text in texts}) for table, texts in keys.items()}
            rows = {table: database.execute(f'select count(*) from "{table}"').fetchone()[0] for table in lines}
            problems += [f"{name}: {count}" for name, count in database.execute(CHECKS).fetchall() if count]
            version = database.execute("show server_version").fetchone()[0].split()[0]
    return {"version": version, "tables": {table: [lines[table], rows[table]] for table in lines}, "problems": problems}


# Each row: what is wrong, and how often.
CHECKS = """
    select 'a context whose values are not one for each token', count(*) from "Activation"
        where cardinality(tokens) <> cardinality("values")
    union all select 'a maximum that is not at its place', count(*) from "Activation" where "values"["maxValueTokenIndex" + 1] <> "maxValue"
    union all select 'a latent without its vector', count(*) from "Neuron" where "hasVector" and cardinality(vector) = 0
    union all select 'a latent that fires and has no context', count(*) from "Neuron" n where frac_nonzero > 0 and not exists (
        select 1 from "Activation" a where (a."modelId", a.layer, a.index) = (n."modelId", n.layer, n.index))
    union all select 'a label that lost its backslash', count(*) from "Explanation" where description not like 'a \\\\u0000 "quoted"%'
    union all select 'a histogram that lost counts', count(*) from "Neuron"
        where frac_nonzero > 0 and cardinality(freq_hist_data_bar_heights) <> cardinality(freq_hist_data_bar_values)
"""


def import_lines(database, table: str, text: str) -> list[str]:
    """Import lines, and return the columns of the first one that the table lacks: the importer would leave them out without a word."""
    text = text.replace("\\u0000", " ")
    lines = text.strip().split("\n")
    named = list(json.loads(lines[0]))
    columns = database.execute(COLUMNS, (table, named)).fetchall()
    listed = ", ".join(f'"{name}"' for name, _ in columns)
    typed = ", ".join(f'"{name}" {kind}' for name, kind in columns)
    statement = f'insert into "{table}" ({listed}) select {listed} from jsonb_to_recordset(%s::jsonb) as t({typed}) on conflict do nothing'
    database.execute(statement, (f"[{','.join(lines)}]",))
    return [f"{table} has no column {name}" for name in sorted(set(named) - {name for name, _ in columns})]


def identity(table: str, text: str) -> tuple:
    line = json.loads(text)
    return tuple(
        line[name] for name in {"SourceRelease": ["name"], "Model": ["id"], "SourceSet": ["modelId", "name"]}.get(table, ["modelId", "id"])
    )


def server_programs() -> Path | None:
    """The folder of initdb and postgres; Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    return Path(found).parent if found else debian[-1].parent if debian else None


@contextmanager
def server(programs: Path, place: Path):
    """A server on a socket below a folder, as another user where this one is root, whom it refuses."""
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(place, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data, log = place / "data", place / "log"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*as_user, programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync"], **quiet)
    options = f"-c listen_addresses='' -k {place} -c fsync=off"
    control = [*as_user, programs / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-l", log, "-o", options, "start"], **quiet)
    try:
        yield f"host={place} user=postgres dbname=postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
